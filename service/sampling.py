"""From log-probabilities to one token a row, all rows at once.

B batch, V vocabulary. Every row's token depends on its own numbers alone: the noise is drawn from
a counter-based generator keyed by (seed, choice, position), and nothing is reduced over rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.bundle import BOS_ID, PAD_ID, UNK_ID

# These are never generated: they have no text.
_MASKED = (PAD_ID, BOS_ID, UNK_ID)
NOISE_BLOCK = 256  # positions a draw; four 64-bit numbers a Philox counter
_COUNTERS_A_BLOCK = NOISE_BLOCK // 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How log-probabilities become one token; applied in the order of the fields."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int | None = None  # None keeps the whole vocabulary
    top_p: float = 1.0  # smallest set of tokens with at least this probability
    min_p: float = 0.0  # at least this fraction of the likeliest token's probability

    @property
    def filters(self) -> bool:
        """Whether any token can be cut off."""
        return self.top_k is not None or self.top_p < 1.0 or self.min_p > 0.0


def noise_block(seed: int, choice: int, block: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) for positions `block` · 256 and on, [256].

    Philox 4x64-10 (Salmon et al. 2011), key (seed, choice), 53 bits a number. numpy promises that
    a bit generator's raw stream never changes.
    """
    key = np.array([seed, choice], np.uint64)
    counter = np.array([block * _COUNTERS_A_BLOCK, 0, 0, 0], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(NOISE_BLOCK)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample(
    logprobs: npt.NDArray[np.float32],
    params: Sequence[SamplingParams],
    uniform: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """One token id a row, [B], from `logprobs` [B, V] and one `uniform` number a row, [B].

    Inverse transform sampling: over ids in order where nothing is cut off, else over the tokens
    that stay, likeliest first.
    """
    scores = logprobs.astype(np.float64)  # [B, V]
    scores[:, _MASKED] = -np.inf
    temperature = np.array([p.temperature for p in params])  # [B]
    chosen: npt.NDArray[np.int64] = scores.argmax(axis=1)  # [B]
    drawn = temperature > 0.0
    filtered = drawn & np.array([p.filters for p in params])
    plain = np.flatnonzero(drawn & ~filtered)
    if len(plain):
        probs = _tempered(scores[plain], temperature[plain])
        chosen[plain] = _invert(probs, uniform[plain])
    cut = np.flatnonzero(filtered)
    if len(cut):
        probs = _tempered(scores[cut], temperature[cut])
        # By score: a high temperature can make unequal ones equal.
        order = np.argsort(-scores[cut], axis=1, kind="stable")  # [B', V] likeliest first
        ranked = np.take_along_axis(probs, order, axis=1)
        ranked = _filter(ranked, [params[i] for i in cut.tolist()])
        place = _invert(ranked, uniform[cut])
        chosen[cut] = np.take_along_axis(order, place[:, None], axis=1)[:, 0]
    return chosen


def _tempered(
    scores: npt.NDArray[np.float64], temperature: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Unnormalized probabilities [B, V]; the likeliest token has 1, so nothing overflows."""
    # A tiny temperature takes the differences to -inf, which is what it means.
    with np.errstate(over="ignore"):
        scaled = (scores - scores.max(axis=1, keepdims=True)) / temperature[:, None]
    probs: npt.NDArray[np.float64] = np.exp(scaled)
    return probs


def _filter(
    ranked: npt.NDArray[np.float64], params: Sequence[SamplingParams]
) -> npt.NDArray[np.float64]:
    """Zero what top-k, top-p and min-p cut off; `ranked` [B, V] falls along each row."""
    vocab_size = ranked.shape[1]
    top_k = np.array([p.top_k or vocab_size for p in params])[:, None]
    top_p = np.array([p.top_p for p in params])[:, None]
    min_p = np.array([p.min_p for p in params])[:, None]
    ranked = np.where(np.arange(vocab_size) < top_k, ranked, 0.0)
    cumulated = np.cumsum(ranked, axis=1)
    # A token stays while those before it have not reached top_p; the first always stays.
    keep = cumulated - ranked < top_p * cumulated[:, -1:]
    keep[:, 0] = True
    keep &= ranked >= min_p * ranked[:, :1]
    return np.where(keep, ranked, 0.0)


def _invert(
    probs: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The first index whose cumulated probability exceeds uniform · total, [B]."""
    cumulated = np.cumsum(probs, axis=1)
    threshold = uniform[:, None] * cumulated[:, -1:]
    index = (cumulated <= threshold).sum(axis=1)
    # Rounding can take the threshold up to the total: then it is the last token that can occur.
    last = probs.shape[1] - 1 - (probs[:, ::-1] > 0.0).argmax(axis=1)
    clipped: npt.NDArray[np.int64] = np.minimum(index, last)
    return clipped
