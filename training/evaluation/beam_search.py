"""Translation in PyTorch: greedy and beam search over whole batches.

N sources, K beams, B = N · K rows, M memory positions, V target vocabulary. The service does
the same with exported graphs; this one serves validation, and tests compare the service with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from training.data.pair_batches import pad_sources
from training.data.pairs import Ids
from training.networks.attention import Memory
from training.networks.encoder_decoder import EncoderDecoder

_NEVER = [PAD_ID, BOS_ID, UNK_ID]  # tokens without text
# A beam with one more token: log-probability, which of its source's beams, token.
_Extension: TypeAlias = tuple[float, int, int]
# Sources decoded together: bounds the memory of a large split.
_MAX_ROWS = 2560


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A target and its log-probability."""

    tokens: tuple[int, ...]  # the last one is eos if it ended
    logprob: float  # nats, eos counted

    @property
    def finished(self) -> bool:
        """Whether it ended of its own."""
        return self.tokens[-1:] == (EOS_ID,)

    def score(self, length_penalty: float) -> float:
        """sum logprob / length ** p (Wu et al. 2016 in its simplest form), eos counted."""
        return self.logprob / math.pow(max(1, len(self.tokens)), length_penalty)


@dataclass(slots=True)
class Found:
    """What the search found for one source."""

    hypotheses: list[Hypothesis] = field(default_factory=list)  # best first
    # Nats of the likeliest other candidate, ended or not, in the step after which nothing could be
    # better than the best hypothesis; -inf if there was none. So it does not depend on how many
    # hypotheses are asked for.
    rival: float | None = None  # None while the search goes on


class Steps(Protocol):
    """A model as the search uses it: every tensor has its sources or rows on axis 0."""

    def encode(self, sources: Tensor, lengths: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The first states and the memory of `sources` [N, S] of `lengths` [N]."""

    def step(
        self, tokens: Tensor, states: Sequence[Tensor], memory: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """log p [B, V] after `tokens` [B], and the states after; each source has B / N rows."""


@dataclass(frozen=True, slots=True)
class NetworkSteps:
    """The steps of a network in PyTorch, on its device."""

    model: EncoderDecoder
    device: torch.device

    def encode(self, sources: Tensor, lengths: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """As `Steps` says."""
        memory = self.model.encode(sources.to(self.device), lengths.to(self.device))
        states = self.model.decoder.initial_states(memory.summary)
        return states, (memory.values, memory.keys, memory.mask, memory.summary)

    def step(
        self, tokens: Tensor, states: Sequence[Tensor], memory: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """As `Steps` says."""
        width = len(tokens) // len(memory[0])
        rows = Memory(*(x.repeat_interleave(width, 0) for x in memory))
        logits, after, _ = self.model.decoder(tokens.unsqueeze(1), states, rows)
        return torch.log_softmax(logits[:, 0], dim=1), after


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
    """The best hypotheses of every source; at most `max_tokens` tokens for each, eos counted."""
    was_training = model.training
    model.eval()
    found = search(
        NetworkSteps(model, device),
        sources,
        beam_size=beam_size,
        num_hypotheses=num_hypotheses,
        length_penalty=length_penalty,
        max_tokens=max_tokens,
    )
    model.train(was_training)
    return [x.hypotheses for x in found]


@torch.no_grad()
def search(
    steps: Steps,
    sources: Sequence[Ids],
    *,
    beam_size: int,
    num_hypotheses: int = 1,
    length_penalty: float = 1.0,
    max_tokens: Sequence[int],
) -> list[Found]:
    """As `translate`, with what each search found. Similar lengths are decoded together."""
    results = [Found() for _ in sources]
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    size = max(1, _MAX_ROWS // beam_size)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        padded, lengths = pad_sources([sources[i] for i in chosen])
        states, memory = steps.encode(torch.from_numpy(padded), torch.from_numpy(lengths))
        beams = _Beams.first(states, memory, beam_size)
        own = [results[i] for i in chosen]
        _Search(beam_size, num_hypotheses, length_penalty).run(
            steps, beams, [max_tokens[i] for i in chosen], own
        )
    return results


@dataclass(frozen=True, slots=True)
class _Beams:
    """The live beams of the sources that are still searched, a source's beams side by side."""

    sources: list[int]  # which of all sources
    width: int
    tokens: Tensor  # [B] the last ones
    states: Sequence[Tensor]  # [B, …] before those are read
    memory: Sequence[Tensor]  # [N, …]
    sums: Tensor  # [N, K] log-probabilities
    written: Tensor  # [B, T] the tokens so far, without bos

    @classmethod
    def first(cls, states: Sequence[Tensor], memory: Sequence[Tensor], width: int) -> "_Beams":
        """Beams that have written nothing."""
        sources, device = len(states[0]), states[0].device
        # Only one beam is live at first: the others would be copies of it.
        sums = torch.full((sources, width), -torch.inf, dtype=torch.float64, device=device)
        sums[:, 0] = 0.0
        return cls(
            list(range(sources)),
            width,
            torch.full((sources * width,), BOS_ID, device=device),
            [state.repeat_interleave(width, 0) for state in states],
            memory,
            sums,
            torch.zeros((sources * width, 0), dtype=torch.long, device=device),
        )

    def extended(self, steps: Steps) -> tuple[list[list[_Extension]], Sequence[Tensor]]:
        """Every source's 2 K likeliest extensions, best first, and the states [B, …] after."""
        logprobs, after = steps.step(self.tokens, self.states, self.memory)
        logprobs[:, _NEVER] = -torch.inf
        totals = self.sums.unsqueeze(2) + logprobs.view(len(self.sources), self.width, -1)
        vocab_size = totals.shape[2]  # of [N, K, V]
        best, places = totals.flatten(1).topk(min(2, vocab_size) * self.width, dim=1)  # [N, 2 K]
        parts = (best.tolist(), (places // vocab_size).tolist(), (places % vocab_size).tolist())
        return [list(zip(*row, strict=True)) for row in zip(*parts, strict=True)], after

    def going_on(
        self, after: Sequence[Tensor], live: Sequence[tuple[int, Sequence[_Extension]]]
    ) -> "_Beams":
        """The beams of the `live` extensions, up to K for each place of a source."""
        nothing: _Extension = (-math.inf, 0, EOS_ID)
        going = [
            (place, [*chosen, *[nothing] * (self.width - len(chosen))]) for place, chosen in live
        ]
        device = self.sums.device
        parents = [place * self.width + beam for place, chosen in going for _, beam, _ in chosen]
        index = torch.tensor(parents, dtype=torch.long, device=device)
        places = torch.tensor([place for place, _ in going], dtype=torch.long, device=device)
        following = [token for _, chosen in going for _, _, token in chosen]
        tokens = torch.tensor(following, dtype=torch.long, device=device)
        sums = [[total for total, _, _ in chosen] for _, chosen in going]
        return _Beams(
            [self.sources[place] for place, _ in going],
            self.width,
            tokens,
            [state[index] for state in after],
            [x[places] for x in self.memory],
            torch.tensor(sums, dtype=torch.float64, device=device),
            torch.cat((self.written[index], tokens.unsqueeze(1)), dim=1),
        )


@dataclass(frozen=True, slots=True)
class _Search:
    """Beam search (Sutskever et al. 2014).

    Of a source's 2 K likeliest extensions, those that end and rank among the first K become
    hypotheses; the first K that do not end go on. A source is done when none that goes on can be
    among the hypotheses asked for, or at its limit, where the live beams become hypotheses too.
    """

    width: int
    num_hypotheses: int
    length_penalty: float

    def run(
        self, steps: Steps, beams: _Beams, max_tokens: Sequence[int], found: Sequence[Found]
    ) -> None:
        """Fill in what is found for every source."""
        ended: list[list[Hypothesis]] = [[] for _ in found]
        while beams.sources:
            extensions, after = beams.extended(steps)
            texts = beams.written.tolist()
            length = beams.written.shape[1] + 1
            going = []
            for place, (source, ranked) in enumerate(zip(beams.sources, extensions, strict=True)):
                written = texts[place * self.width : (place + 1) * self.width]
                live = self._extend(ended[source], written, ranked)
                if length == max_tokens[source]:
                    ended[source] += [_hypothesis(written, x) for x in live]
                    live = []
                best = live[0][0] if live else -math.inf
                if found[source].rival is None and (
                    not live or self._beaten(ended[source], 1, best, max_tokens[source])
                ):
                    found[source].rival = self._rival(ended[source], best)
                if live and not self._beaten(
                    ended[source], self.num_hypotheses, best, max_tokens[source]
                ):
                    going.append((place, live))
            beams = beams.going_on(after, going)
        for each, hypotheses in zip(found, ended, strict=True):
            each.hypotheses = self._ranked(hypotheses)[: self.num_hypotheses]

    def _extend(
        self, ended: list[Hypothesis], written: list[list[int]], ranked: Sequence[_Extension]
    ) -> list[_Extension]:
        """The first K extensions that go on; those that end are added to `ended`."""
        live: list[_Extension] = []
        for rank, extension in enumerate(ranked):
            total, _, token = extension
            if total == -math.inf:
                break
            if token == EOS_ID:
                if rank < self.width:
                    ended.append(_hypothesis(written, extension))
            elif len(live) < self.width:
                live.append(extension)
        return live

    def _beaten(
        self, ended: Sequence[Hypothesis], count: int, live: float, max_tokens: int
    ) -> bool:
        """Whether the best live beam cannot be among the best `count`, if it loses nothing more."""
        if len(ended) < count:
            return False
        if self.width == 1:
            # One beam is greedy: it ends where the end is the likeliest token.
            return True
        last = self._ranked(ended)[count - 1].score(self.length_penalty)
        return last >= live / math.pow(max_tokens, self.length_penalty)

    def _rival(self, ended: Sequence[Hypothesis], live: float) -> float:
        """Nats of the likeliest candidate besides the best hypothesis."""
        others = self._ranked(ended)[1:]
        return max([live, *(x.logprob for x in others)])

    def _ranked(self, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
        def rank(hypothesis: Hypothesis) -> tuple[bool, float]:
            return not hypothesis.finished, -hypothesis.score(self.length_penalty)

        return sorted(hypotheses, key=rank)


def _hypothesis(written: list[list[int]], extension: _Extension) -> Hypothesis:
    total, beam, token = extension
    return Hypothesis((*written[beam], token), total)
