"""Texts between a prefix and a suffix for completion interfaces: fills drawn by their posterior.

The sampling options act on the posterior of the fills that were compared, as they otherwise act on
the distribution of a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.bundle.text import UNK_ID
from service.decoding.sampling import Sampler, SamplingParams, noise_block
from service.settings import Settings
from service.tasks.engine import Infills
from service.tasks.infill_values import Blanks, Fill, Infilled, InfillOptions
from service.tasks.limits import at_most, check_stop
from service.tasks.seed import drawn_seed

# Keys of the noise: proposals have the small numbers.
_FIRST_CHOICE = 2**32
_FIRST_FILL = UNK_ID + 1  # the sampler's columns of special tokens stay empty


@dataclass(frozen=True, kw_only=True, slots=True)
class InsertOptions:
    """The options of an insertion, besides the texts."""

    max_tokens: int | None = None  # most characters; None: DEFAULT_MAX_TOKENS or the limit
    sampling: SamplingParams = SamplingParams()  # temperature 0: the `n` likeliest
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()  # a fill with one of these is left out


@dataclass(frozen=True, slots=True)
class InsertedText:
    """A text for a blank."""

    text: str  # empty where no text was found that fits
    stop: str | None  # the stop string that this text was cut at, if all fills have one


@dataclass(frozen=True, slots=True)
class Inserted:
    """The texts for one blank."""

    choices: tuple[InsertedText, ...]  # `n`, or at temperature 0 fewer if fewer were compared
    infilled: Infilled  # what they were drawn from


async def inserted(
    engine: Infills, texts: Sequence[Blanks], options: InsertOptions, settings: Settings
) -> list[Inserted]:
    """`n` texts for the blank of each text. Raises the errors of `infill`."""
    at_most("n", options.n, settings.max_n, "choices")
    check_stop(options.stop, settings)
    seed = drawn_seed(options.seed)
    # A draw is among all that were compared; no engine compares more proposals.
    most = settings.max_choices
    asked = InfillOptions(max_tokens=options.max_tokens, num_fills=most, seed=seed)
    found = await engine.infill(texts, asked)
    return [Inserted(_chosen(each.fills, options, seed), each) for each in found]


def _chosen(fills: Sequence[Fill], options: InsertOptions, seed: int) -> tuple[InsertedText, ...]:
    if not fills:
        return (InsertedText("", None),) * options.n
    free = [fill for fill in fills if not _first_stop(fill.texts[0], options.stop)]
    places = _drawn(free or fills, options, seed)
    return tuple(_cut((free or fills)[i].texts[0], options.stop) for i in places)


def _drawn(fills: Sequence[Fill], options: InsertOptions, seed: int) -> list[int]:
    """Indices of fills: the first at temperature 0, else drawn one by one from the posterior."""
    sampling, count = options.sampling, options.n
    if sampling.temperature == 0.0:
        return list(range(min(count, len(fills))))
    scores = np.full((count, _FIRST_FILL + len(fills)), -np.inf, np.float32)
    # Fills far behind the best one have a posterior of 0, which has no logarithm.
    posteriors = np.array([fill.posterior for fill in fills])
    scores[:, _FIRST_FILL:] = np.log(np.maximum(posteriors, np.finfo(np.float64).tiny))
    uniform = np.array([noise_block(seed, _FIRST_CHOICE + k, 0)[0] for k in range(count)])
    sampler = Sampler([sampling] * count, scores.shape[1])
    chosen = sampler.choose(scores, uniform, np.zeros((0, scores.shape[1]), np.int64))
    places: list[int] = (chosen - _FIRST_FILL).tolist()
    return places


def _first_stop(text: str, stop: Sequence[str]) -> str | None:
    """The stop string that begins first in a text."""
    found = [(text.index(each), each) for each in stop if each in text]
    return min(found)[1] if found else None


def _cut(text: str, stop: Sequence[str]) -> InsertedText:
    first = _first_stop(text, stop)
    return InsertedText(text if first is None else text[: text.index(first)], first)
