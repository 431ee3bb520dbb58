"""Filling blanks in PyTorch: a beam search whose targets have one text for each blank, none empty.

The service searches alike, with exported graphs. N sources, K beams, B = N · K rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from service.bundle.infill import Infill
from service.bundle.text import BOS_ID, EOS_ID
from training.data.pairs import PairCorpus
from training.evaluation.beam_search import NetworkSteps, Steps, search
from training.networks.encoder_decoder import EncoderDecoder


@dataclass(frozen=True, slots=True)
class _FillSteps:
    """Steps that write as many texts as the source has blanks, of 1 to `max_chars` tokens each.

    Two counts come after the model's own states, [N] or [B] each: the texts that are still to
    begin, and the tokens that the present one may still have.
    """

    steps: Steps
    mark: int  # the token between two texts, which is also that of a blank in a source
    max_chars: int

    def encode(self, sources: Tensor, lengths: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """As `Steps` says."""
        states, memory = self.steps.encode(sources, lengths)
        blanks = (sources == self.mark).sum(dim=1).to(states[0].device)
        return [*states, blanks, torch.zeros_like(blanks)], memory

    def step(
        self, tokens: Tensor, states: Sequence[Tensor], memory: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """As `Steps` says."""
        *own, texts, room = states
        logprobs, after = self.steps.step(tokens, own, memory)
        begins = (tokens == BOS_ID) | (tokens == self.mark)
        texts = texts - begins.long()
        room = torch.where(begins, self.max_chars, room - 1)
        ends = logprobs[:, [EOS_ID, self.mark]]
        ends[begins] = -torch.inf
        ends[texts > 0, 0] = -torch.inf
        ends[texts <= 0, 1] = -torch.inf
        logprobs[room <= 0] = -torch.inf
        logprobs[:, [EOS_ID, self.mark]] = ends
        return logprobs, [*after, texts, room]


def fill_blanks(
    model: EncoderDecoder,
    corpus: PairCorpus,
    infill: Infill,
    sources: Sequence[str],
    *,
    beam_size: int,
    device: torch.device,
) -> list[tuple[str, ...]]:
    """The likeliest texts of each source's blanks, of 1 to `infill.max_chars` characters each."""
    model.eval()
    (mark,) = corpus.target.encode(infill.blank).tolist()
    found = search(
        _FillSteps(NetworkSteps(model, device), mark, infill.max_chars),
        [corpus.source.encode(text) for text in sources],
        beam_size=beam_size,
        length_penalty=0.0,  # the likeliest text, as the service ranks them
        max_tokens=[text.count(infill.blank) * (infill.max_chars + 1) for text in sources],
    )
    return [infill.texts(corpus.target.decode(x.hypotheses[0].tokens)) for x in found]
