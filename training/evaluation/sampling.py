"""Samples from a PyTorch model, to read while it trains. The service has the full sampler."""

import torch

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Normalization, Vocabulary, normalize
from training.networks.mixture import AnyLanguageModel


@torch.no_grad()
def sample(
    model: AnyLanguageModel,
    vocab: Vocabulary,
    rules: Normalization,
    *,
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> tuple[str, bool]:
    """The text that continues `prompt`, and whether it ended within `max_tokens`.

    Temperature 0 is greedy. The random generator of training is not touched.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    states = model.initial_states(1)
    device = states[0].device
    tokens = [BOS_ID, *vocab.encode(normalize(prompt, rules)).tolist()]
    generated: list[int] = []
    ended = False
    for _ in range(max_tokens):
        logits, states = model(torch.tensor([tokens], device=device), states)
        last = logits[0, -1].cpu()  # [V]
        last[[PAD_ID, BOS_ID, UNK_ID]] = -torch.inf
        if temperature == 0.0:
            token = int(last.argmax())
        else:
            probs = torch.softmax(last / temperature, dim=0)
            token = int(torch.multinomial(probs, 1, generator=generator))
        if ended := token == EOS_ID:
            break
        generated.append(token)
        tokens = [token]
    model.train(was_training)
    return vocab.decode(generated), ended
