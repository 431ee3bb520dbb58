"""The gaps and the figures of `bench.infill`, with models that are made up."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pytest

from bench.infill_figures import difference, figures, outcomes, ratio
from bench.infill_gaps import PREFIX_CHARS, SIZES, SUFFIX_CHARS, Gap, Size
from bench.infill_rows import Guess, Infill, LeastEdits
from service.bundle.text import SPECIAL_TOKENS, UNK_ID
from service.tasks.infill_values import Blanks, Fill, Infilled, InfillOptions, Proposal
from service.tasks.unknown import Unknown

UNKNOWN = SPECIAL_TOKENS[UNK_ID]
TEXT = "It's a fine day, 42 of us agreed.\n" * 100
TWO, WORD = SIZES[1], SIZES[-1]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_gaps_are_pieces_of_the_text_and_the_same_each_time(size: Size) -> None:
    gaps = size.gaps(TEXT, 20)

    assert gaps == size.gaps(TEXT, 20)
    assert len(set(gaps)) > 1
    for gap in gaps:
        assert gap.prefix + gap.truth + gap.suffix in TEXT
        assert (len(gap.prefix), len(gap.suffix)) == (PREFIX_CHARS, SUFFIX_CHARS)
        assert len(gap.truth) == (size.length or len(gap.truth))


def test_a_word_is_taken_out_whole() -> None:
    truths = {gap.truth for gap in WORD.gaps(TEXT, 400)}

    assert truths == {"It", "s", "a", "fine", "day", "of", "us", "agreed"}


def test_no_gap_is_near_an_unknown_character() -> None:
    text = TEXT[:400] + UNKNOWN + TEXT

    gaps = TWO.gaps(text, len(text))

    assert len(gaps) == (400 - PREFIX_CHARS - SUFFIX_CHARS - 1) + (
        len(TEXT) - PREFIX_CHARS - SUFFIX_CHARS - 1
    )
    assert not any(UNKNOWN in gap.prefix + gap.truth + gap.suffix for gap in gaps)


class Says:
    """A way that knows two fills of every gap."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    async def fill(self, gap: Gap, size: Size) -> Guess:
        assert size is TWO

        async def nats() -> float | None:
            return 1.5 if gap.truth == "ab" else 2.5

        return Guess(self._texts, nats)


def test_figures_are_of_the_first_fill_and_of_all_of_them() -> None:
    gaps = [Gap("", "ab", ""), Gap("", "xb", ""), Gap("", "yz", ""), Gap("", "zzzz", "")]

    found = asyncio.run(outcomes(Says("ab", "yz"), gaps, TWO))
    row = figures("x", TWO, found)

    assert found.errors.tolist() == [0, 1, 2, 4]
    assert row.error_rate == pytest.approx(7 / 10)
    assert (row.first, row.found, row.nats, row.found_mass) == (0.25, 0.5, 2.25, None)


def test_ways_are_compared_on_the_same_gaps() -> None:
    gaps = [Gap("", "ab", ""), Gap("", "cd", "")]
    one, other = (asyncio.run(outcomes(Says(text), gaps, TWO)) for text in ("ab", "ad"))

    assert np.allclose(difference(one, other), (0.0, math.sqrt(2) / 4))


def test_the_error_of_a_mean_is_that_of_independent_draws() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 10_000)

    assert np.allclose(ratio(values), (3.0, 2.0 / 100), rtol=0.03)


class TwoFills:
    """A language model that finds `b` (p = 0.3) and `c` (0.1), and knows that `d` has 0.2."""

    probs: Mapping[str, float] = MappingProxyType({"b": 0.3, "c": 0.1, "d": 0.2})
    found: tuple[str, ...] = ("b", "c")

    async def infill(
        self,
        texts: Sequence[Blanks],
        options: InfillOptions,
        *,
        proposals: Sequence[Sequence[Proposal]] | None = None,
    ) -> list[Infilled]:
        assert proposals is None
        names = options.candidates or self.found
        total = sum(self.probs[name] for name in names)
        # Half of the logarithm is the left side's.
        halves = [math.log(self.probs[name]) / 2 for name in names]
        fills = tuple(
            Fill((name,), half, half, self.probs[name] / total)
            for name, half in zip(names, halves, strict=True)
        )
        return [Infilled(fills, len(fills), 0.4, None, Unknown.at([]), 0, 0, 0) for _ in texts]


@pytest.mark.parametrize(("truth", "posterior"), [("c", 0.1 / 0.4), ("d", 0.2 / 0.6)])
def test_a_truth_that_was_not_found_is_compared_as_well(truth: str, posterior: float) -> None:
    async def nats() -> float | None:
        guess = await Infill(TwoFills()).fill(Gap("a", truth, "e"), SIZES[0])
        assert list(guess.texts) == ["b", "c"]
        return await guess.nats()

    assert asyncio.run(nats()) == pytest.approx(-math.log(posterior))


class ThreeFills(TwoFills):
    """The likeliest fill resembles no other one."""

    probs: Mapping[str, float] = MappingProxyType({"xyz": 0.4, "abc": 0.3, "abd": 0.3})
    found = tuple(probs)


def test_least_edits_prefers_what_resembles_the_others() -> None:
    gap, likeliest = Gap("a", "abc", "e"), Infill(ThreeFills())

    likely = asyncio.run(likeliest.fill(gap, SIZES[2]))
    careful = asyncio.run(LeastEdits(likeliest).fill(gap, SIZES[2]))

    assert list(likely.texts) == ["xyz", "abc", "abd"]
    assert list(careful.texts) == ["abc", "xyz", "abd"]
