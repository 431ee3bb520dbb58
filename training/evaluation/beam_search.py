"""Translation in PyTorch: greedy and beam search over whole batches.

N sources, K beams, B = N · K rows, M memory positions, V target vocabulary. The service does
the same with exported graphs; this one serves validation, and tests compare the service with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from training.data.pair_batches import pad_sources
from training.data.pairs import Ids
from training.networks.attention import Memory
from training.networks.encoder_decoder import EncoderDecoder

_NEVER = [PAD_ID, BOS_ID, UNK_ID]  # tokens without text
# Sources decoded together: bounds the memory of a large split.
_MAX_ROWS = 2560


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A target and its log-probability."""

    tokens: tuple[int, ...]  # the last one is eos if it ended
    logprob: float  # nats, eos counted

    def score(self, length_penalty: float) -> float:
        """sum logprob / length ** p (Wu et al. 2016 in its simplest form), eos counted."""
        return self.logprob / math.pow(max(1, len(self.tokens)), length_penalty)


@torch.no_grad()
def translate(
    model: EncoderDecoder,
    sources: Sequence[Ids],
    *,
    beam_size: int,
    num_hypotheses: int = 1,
    length_penalty: float = 1.0,
    max_tokens: Sequence[int],
    device: torch.device,
) -> list[list[Hypothesis]]:
    """The best hypotheses of every source; at most `max_tokens` tokens for each, eos counted.

    Sources of similar lengths are decoded together.
    """
    was_training = model.training
    model.eval()
    results: list[list[Hypothesis]] = [[] for _ in sources]
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    size = max(1, _MAX_ROWS // beam_size)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        padded, lengths = pad_sources([sources[i] for i in chosen])
        memory = model.encode(
            torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device)
        )
        search = _Search(beam_size, num_hypotheses, length_penalty)
        found = search.run(model, memory, [max_tokens[i] for i in chosen])
        for i, hypotheses in zip(chosen, found, strict=True):
            results[i] = hypotheses
    model.train(was_training)
    return results


@dataclass(frozen=True, slots=True)
class _Search:
    """Beam search (Sutskever et al. 2014), a source's beams side by side.

    Of a source's 2 K likeliest extensions, those that end and rank among the first K become
    hypotheses; the first K that do not end go on. A source is done when none that goes on can be
    among the hypotheses asked for, or at its limit, where the live beams become hypotheses too.
    """

    width: int
    num_hypotheses: int
    length_penalty: float

    def run(
        self, model: EncoderDecoder, memory: Memory, max_tokens: Sequence[int]
    ) -> list[list[Hypothesis]]:
        """The best hypotheses of every source."""
        width = self.width
        sources = len(memory.summary)
        device = memory.summary.device
        starts = model.decoder.initial_states(memory.summary)
        states = [state.repeat_interleave(width, 0) for state in starts]  # [B, …]
        memory = Memory(*(x.repeat_interleave(width, 0) for x in _tensors(memory)))
        tokens = torch.full((sources * width, 1), BOS_ID, device=device)
        # Only one beam is live at first: the others would be copies of it.
        sums = torch.full((sources, width), -torch.inf, dtype=torch.float64, device=device)
        sums[:, 0] = 0.0
        written = torch.zeros((sources * width, 0), dtype=torch.long, device=device)
        ended: list[list[Hypothesis]] = [[] for _ in range(sources)]
        active = list(range(sources))
        while active:
            logits, after, _ = model.decoder(tokens, states, memory)
            logprobs = torch.log_softmax(logits[:, 0], dim=1)  # [B, V]
            logprobs[:, _NEVER] = -torch.inf
            totals = sums.unsqueeze(2) + logprobs.view(len(active), width, -1)  # [N, K, V]
            vocab_size = totals.shape[2]
            best, places = totals.flatten(1).topk(min(2, vocab_size) * width, dim=1)  # [N, 2 K]
            ranked = torch.stack((places // vocab_size, places % vocab_size), dim=2).tolist()
            texts = written.tolist()
            stays, parents, following, going = [], [], [], []
            for row, (source, scores) in enumerate(zip(active, best.tolist(), strict=True)):
                candidates = [(x, *y) for x, y in zip(scores, ranked[row], strict=True)]
                own = texts[row * width : (row + 1) * width]
                live = _extend(ended[source], own, candidates, width)
                if written.shape[1] + 1 == max_tokens[source]:
                    ended[source] += [
                        Hypothesis((*own[origin], choice), total) for total, origin, choice in live
                    ]
                    live = []
                if not live or self._beaten(ended[source], live[0][0], max_tokens[source]):
                    continue
                stays.append(source)
                live += [(-float("inf"), 0, EOS_ID)] * (width - len(live))
                going.append([total for total, _, _ in live])
                parents += [row * width + origin for _, origin, _ in live]
                following += [choice for _, _, choice in live]
            active = stays
            index = torch.tensor(parents, dtype=torch.long, device=device)
            tokens = torch.tensor(following, dtype=torch.long, device=device).unsqueeze(1)
            sums = torch.tensor(going, dtype=torch.float64, device=device)
            states = [state[index] for state in after]
            written = torch.cat((written[index], tokens), dim=1)
            memory = Memory(*(x[index] for x in _tensors(memory)))
        return [self._best(hypotheses) for hypotheses in ended]

    def _beaten(self, ended: Sequence[Hypothesis], live: float, max_tokens: int) -> bool:
        """Whether the best live beam cannot win, even if it loses nothing more."""
        if len(ended) < self.num_hypotheses:
            return False
        if self.width == 1:
            # One beam is greedy: it ends where the end is the likeliest token.
            return True
        last = self._best(ended)[-1].score(self.length_penalty)
        return last >= live / math.pow(max_tokens, self.length_penalty)

    def _best(self, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
        def rank(hypothesis: Hypothesis) -> tuple[bool, float]:
            return not _finished(hypothesis), -hypothesis.score(self.length_penalty)

        return sorted(hypotheses, key=rank)[: self.num_hypotheses]


def _extend(
    ended: list[Hypothesis],
    written: list[list[int]],
    ranked: list[tuple[float, int, int]],
    width: int,
) -> list[tuple[float, int, int]]:
    """The first K extensions that go on; those that end are added to `ended`."""
    live: list[tuple[float, int, int]] = []
    for rank, (total, origin, choice) in enumerate(ranked):
        if total == -float("inf"):
            break
        if choice == EOS_ID:
            if rank < width:
                ended.append(Hypothesis((*written[origin], choice), total))
        elif len(live) < width:
            live.append((total, origin, choice))
    return live


def _finished(hypothesis: Hypothesis) -> bool:
    return hypothesis.tokens[-1:] == (EOS_ID,)


def _tensors(memory: Memory) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return memory.values, memory.keys, memory.mask, memory.summary
