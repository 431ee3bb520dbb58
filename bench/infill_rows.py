"""The ways to fill a gap that `bench.infill` compares."""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from rapidfuzz.distance.Levenshtein import distance as edit_distance

from bench.infill_exact import Automaton, Fills
from bench.infill_gaps import NUM_FILLS, Gap, Size
from service.bundle.text import BOS_ID, Vocabulary
from service.decoding.constraints import Pattern
from service.decoding.sampling import SamplingParams
from service.tasks.engine import Generates, Proposes
from service.tasks.infill_values import Blanks, Fill, Infilled, InfillOptions, Proposal
from service.tasks.values import GenerateOptions


@dataclass(frozen=True, slots=True)
class Guess:
    """What a way says of a gap."""

    texts: Sequence[str]  # likeliest first
    # -log p(the truth): what it costs to be told the truth; None where there is no such figure.
    nats: Callable[[], Awaitable[float | None]]
    found_mass: float | None = None


class Way(Protocol):
    """A way to fill gaps."""

    async def fill(self, gap: Gap, size: Size) -> Guess:
        """The likeliest fills."""


class FillsBlanks(Protocol):
    """What is used of an engine (service/tasks/engine.py)."""

    async def infill(
        self,
        texts: Sequence[Blanks],
        options: InfillOptions,
        *,
        proposals: Sequence[Sequence[Proposal]] | None = None,
    ) -> list[Infilled]:
        """Fill every text."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """A language model that continues the prefix and never sees the suffix."""

    generates: Generates
    infills: FillsBlanks  # the same

    async def fill(self, gap: Gap, size: Size) -> Guess:
        greedy = SamplingParams(temperature=0.0)
        options = GenerateOptions(max_tokens=size.length, sampling=greedy)
        if size.length is None:
            # The word ends where the model would write something else than a letter.
            rule = Pattern("[a-zA-Z]+[^a-zA-Z]")
            options = replace(options, max_tokens=size.longest + 1, rule=rule)
        (result,) = await self.generates.generate([gap.prefix], options)
        text = result.choices[0].text

        async def nats() -> float | None:
            if size.length is None:
                return None  # where a word ends is no part of p(word | prefix)
            alone = Gap(gap.prefix, gap.truth, "")
            return -(await _scored(self.infills, alone, size)).logprob

        return Guess([text if size.length else "".join(filter(str.isalpha, text))], nats)


@dataclass(frozen=True, slots=True)
class ExactNGram:
    """An n-gram, with every fill there is."""

    automaton: Automaton
    vocab: Vocabulary

    async def fill(self, gap: Gap, size: Size) -> Guess:
        prefix = [BOS_ID, *self.vocab.encode(gap.prefix).tolist()]
        suffix = self.vocab.encode(gap.suffix).tolist()
        fills = Fills(self.automaton, prefix, suffix, size.blank(self.vocab))

        async def nats() -> float:
            return -math.log(fills.posterior(self.vocab.encode(gap.truth).tolist()))

        return Guess([self.vocab.decode(fill.ids) for fill in fills.likeliest(NUM_FILLS)], nats)


@dataclass(frozen=True, slots=True)
class Infill:
    """`/infill` of a language model; with a proposer, what `rescore` does."""

    infills: FillsBlanks
    proposes: Proposes | None = None
    _results: dict[tuple[Gap, Size], Infilled] = field(default_factory=dict)

    async def result(self, gap: Gap, size: Size) -> Infilled:
        """What was compared; it is computed once."""
        if (gap, size) not in self._results:
            proposals = None
            if self.proposes is not None:
                proposals = await self.proposes.propose([gap.blanks], _own_beam(size))
            (found,) = await self.infills.infill([gap.blanks], size.options, proposals=proposals)
            self._results[gap, size] = found
        return self._results[gap, size]

    async def fill(self, gap: Gap, size: Size) -> Guess:
        result = await self.result(gap, size)

        async def nats() -> float:
            return -_log_posterior(await _scored(self.infills, gap, size), result)

        return Guess(_texts(result), nats, result.found_mass)


@dataclass(frozen=True, slots=True)
class LeastEdits:
    """The fill with the fewest expected edits, instead of the likeliest.

    The choice of minimum Bayes risk (Kumar and Byrne, NAACL 2004) for the error rate that is
    measured, over what `infill` compared.
    """

    infill: Infill

    async def fill(self, gap: Gap, size: Size) -> Guess:
        result = await self.infill.result(gap, size)
        texts, shares = _texts(result), [fill.posterior for fill in result.fills]

        def risk(text: str) -> float:
            return sum(p * edit_distance(text, x) for p, x in zip(shares, texts, strict=True))

        best = min(texts[:NUM_FILLS], key=risk)
        guess = await self.infill.fill(gap, size)
        return replace(guess, texts=[best, *(text for text in texts if text != best)])


@dataclass(frozen=True, slots=True)
class Cloze:
    """`/infill` of a model that was trained for it, alone."""

    infills: FillsBlanks

    async def fill(self, gap: Gap, size: Size) -> Guess:
        (result,) = await self.infills.infill([gap.blanks], _own_beam(size))

        async def nats() -> float:
            return -(await _scored(self.infills, gap, size)).logprob

        return Guess(_texts(result), nats)


def _own_beam(size: Size) -> InfillOptions:
    """A cloze model's beam has the width that it has by itself."""
    return replace(size.options, num_proposals=None)


async def _scored(infills: FillsBlanks, gap: Gap, size: Size) -> Fill:
    """The truth, as the only candidate."""
    options = replace(
        size.options,
        candidates=(gap.truth,),
        length=None,
        max_tokens=None,
        num_proposals=None,
        rule=None,
    )
    (result,) = await infills.infill([gap.blanks], options)
    return result.fills[0]


def _log_posterior(truth: Fill, result: Infilled) -> float:
    """Of the truth among what was compared, and among the truth as well if it was not found."""
    for fill in result.fills:
        if fill.texts == truth.texts:
            return math.log(fill.posterior)
    best = result.fills[0]
    others = _total(best) - math.log(best.posterior)  # the logarithm of a sum
    return -math.log1p(math.exp(others - _total(truth)))


def _total(fill: Fill) -> float:
    return fill.logprob + (fill.suffix_logprob or 0.0)


def _texts(result: Infilled) -> list[str]:
    return [fill.texts[0] for fill in result.fills]
