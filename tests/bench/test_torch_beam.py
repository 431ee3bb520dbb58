"""The peer of /translate searches for the same thing."""

import numpy as np
import torch

from bench.torch_beam import beam_search
from service.bundle.text import EOS_ID
from training.config import EncoderDecoderNetworkConfig
from training.evaluation.beam_search import translate
from training.networks.encoder_decoder import EncoderDecoder


def test_the_loop_finds_what_the_other_beam_search_finds() -> None:
    torch.manual_seed(3)
    config = EncoderDecoderNetworkConfig(encoder_hidden_size=8, hidden_size=16, embedding_dim=8)
    model = EncoderDecoder(config, 12, 9).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.decoder.output.bias[EOS_ID] += 2.0  # so that targets end
    rng = np.random.default_rng(0)
    sources = [rng.integers(4, 12, 6).astype(np.uint16) for _ in range(20)]
    found = beam_search(model, sources, 4)
    wanted = translate(
        model, sources, beam_size=4, max_tokens=[7 + 12] * 20, device=torch.device("cpu")
    )
    ended = [i for i, x in enumerate(wanted) if x[0].tokens[-1] == EOS_ID]
    assert len(ended) > 10
    assert [found[i] for i in ended] == [list(wanted[i][0].tokens[:-1]) for i in ended]
