"""Sampling: one token for each row from its log-probabilities, all rows at once.

B batch, V vocabulary, A the tokens that can be generated. A row's token depends only on its own
numbers: the noise comes from a counter-based generator with the key (seed, choice, position), and
nothing is reduced over rows.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from service.bundle.text import EOS_ID, UNK_ID

NOISE_BLOCK = 256  # positions a draw; four 64-bit numbers a Philox counter
_COUNTERS_A_BLOCK = NOISE_BLOCK // 4
# Pad, bos and unk are never generated, since they have no text. Pad and bos come first and are left
# out of the arrays; unk stands among the rest and is masked there.
_FIRST_ID = EOS_ID
_UNK_COLUMN = UNK_ID - _FIRST_ID

# Rounding cannot take the product of this and a total up to the total: inverting a cumulated
# distribution always ends at a token that can occur.
LARGEST_UNIFORM = 1.0 - 2.0**-52

_NOWHERE: Int64Array = np.empty(0, np.int64)

# Rows [B'], and which tokens each of them may have, [B', V]: one at least.
Mask: TypeAlias = tuple[Int64Array, BoolArray]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How log-probabilities become one token; applied in the order of the fields."""

    logit_bias: tuple[tuple[int, float], ...] = ()  # token id and what its score gains
    presence_penalty: float = 0.0  # what a token's score loses once the choice has it
    frequency_penalty: float = 0.0  # what it loses each time that the choice has it
    temperature: float = 1.0  # 0 is greedy
    top_k: int | None = None  # None keeps the whole vocabulary
    top_p: float = 1.0  # smallest set of tokens with at least this probability
    min_p: float = 0.0  # at least this fraction of the likeliest token's probability

    @property
    def is_plain(self) -> bool:
        """Whether a token is drawn from the model's own distribution."""
        return self.temperature == 1.0 and not self.adjusts and not self.filters

    @property
    def adjusts(self) -> bool:
        """Whether any score is changed."""
        return bool(self.logit_bias or self.presence_penalty or self.frequency_penalty)

    @property
    def filters(self) -> bool:
        """Whether any token can be cut off."""
        drawn = self.temperature > 0.0
        return drawn and (self.top_k is not None or self.top_p < 1.0 or self.min_p > 0.0)


def noise_block(seed: int, choice: int, block: int) -> Float64Array:
    """Uniform numbers in [0, LARGEST_UNIFORM] for positions `block` · 256 and on, [256].

    Philox 4x64-10 (Salmon et al. 2011), key (seed, choice), 53 bits a number. numpy promises that
    a bit generator's raw stream never changes.
    """
    raw = _STREAM.raw(seed, choice, block * _COUNTERS_A_BLOCK)
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.minimum(uniform, LARGEST_UNIFORM)


class _Stream(threading.local):
    """Philox's raw stream at any place. One generator a thread: making one takes 15 µs."""

    def __init__(self) -> None:
        self._generator = np.random.Philox(key=0)
        self._state = self._generator.state

    def raw(self, seed: int, choice: int, counter: int) -> npt.NDArray[np.uint64]:
        """The numbers of a block."""
        place = self._state["state"]
        place["key"][:] = seed, choice
        place["counter"][:] = counter, 0, 0, 0
        self._generator.state = self._state
        return self._generator.random_raw(NOISE_BLOCK)


_STREAM = _Stream()


class Room:
    """Arrays that samplers fill anew at each choice; those of one thread can share them.

    numpy's time for small arrays is mostly what it takes to make them, so they are made once.
    """

    def __init__(self, rows: int, vocab_size: int) -> None:
        shape = (rows, vocab_size - _FIRST_ID)
        self.scores = np.empty(shape)  # [B, A]
        self.cumulated = np.empty(shape)
        self.exceeds = np.empty(shape, np.bool_)
        self.most = np.empty((rows, 1))
        self.threshold = np.empty((rows, 1))


class Sampler:
    """The sampling options of the rows of a batch, and the choice of their next tokens.

    Options lie in arrays over rows. What no row asks for is not computed; what some rows ask for is
    computed for them alone. A result never depends on which of the two it was.
    """

    def __init__(
        self, params: Sequence[SamplingParams], vocab_size: int, room: Room | None = None
    ) -> None:
        """`room` has at least as many rows, and is of the same vocabulary."""
        self._columns = vocab_size - _FIRST_ID
        rows = len(params)
        room = room or Room(rows, vocab_size)
        self._scores = room.scores[:rows]  # [B, A]
        self._unk_scores = self._scores[:, _UNK_COLUMN]
        self._most = room.most[:rows]
        self._inverse = _Inverse(room, rows)
        # A row that takes the likeliest token draws at 1, and what it draws is not looked at.
        self._greedy = _places(x.temperature == 0.0 for x in params)
        self._divisor: Float64Array | None = None  # [B, 1]
        if any(x.temperature not in {0.0, 1.0} for x in params):
            self._divisor = np.array([x.temperature or 1.0 for x in params])[:, None]
        self._cut = _places(x.filters for x in params)
        if len(self._cut):
            self._set_filters([params[i] for i in self._cut.tolist()], vocab_size)
        self._adjusted = _places(x.adjusts for x in params)
        if len(self._adjusted):
            self._set_adjustments([params[i] for i in self._adjusted.tolist()])

    def _set_filters(self, kept: Sequence[SamplingParams], vocab_size: int) -> None:
        self._top_k = np.array([min(x.top_k or vocab_size, vocab_size) for x in kept])[:, None]
        self._top_p = np.array([x.top_p for x in kept])[:, None]
        self._min_p = np.array([x.min_p for x in kept])[:, None]

    def _set_adjustments(self, adjusting: Sequence[SamplingParams]) -> None:
        self._bias = np.array([_bias(x, self._columns) for x in adjusting])  # [B', A]
        self._presence = np.array([x.presence_penalty for x in adjusting])[:, None]
        self._frequency = np.array([x.frequency_penalty for x in adjusting])[:, None]

    @property
    def adjusted(self) -> Int64Array:
        """The rows whose counts `choose` reads."""
        return self._adjusted

    def choose(
        self,
        logprobs: Float32Array,
        uniform: Float64Array,
        counts: Int64Array,
        masks: Sequence[Mask] = (),
    ) -> Int64Array:
        """One token id a row, [B], from `logprobs` [B, V] and one `uniform` number a row, [B].

        `counts` [B', V] says how often each `adjusted` row has each token; `masks` say of some rows
        which tokens they may have, and everything acts on those alone. Inverse transform
        sampling: over ids in order where nothing is cut off, else over the tokens that stay,
        likeliest first.
        """
        scores = self._scores  # [B, A]
        np.copyto(scores, logprobs[:, _FIRST_ID:])
        self._unk_scores.fill(-np.inf)
        for rows, allowed in masks:
            scores[rows] = np.where(allowed[:, _FIRST_ID:], scores[rows], -np.inf)
        if len(self._adjusted):
            seen = counts[:, _FIRST_ID:]
            penalty = self._frequency * seen + self._presence * (seen > 0)
            scores[self._adjusted] += self._bias - penalty
        likeliest = scores.argmax(axis=1) if len(self._greedy) else None
        ranks = np.argsort(-scores[self._cut], axis=1, kind="stable") if len(self._cut) else None
        # Unnormalized probabilities: the likeliest token has 1, so that nothing overflows.
        np.maximum.reduce(scores, axis=1, keepdims=True, out=self._most)
        np.subtract(scores, self._most, out=scores)
        if self._divisor is not None:
            # A tiny temperature takes the differences to -inf, which is what it means.
            with np.errstate(over="ignore"):
                scores /= self._divisor
        probs = np.exp(scores, out=scores)
        if ranks is not None:
            # By score and before the temperature, which can make unequal ones equal.
            probs[self._cut] = self._filter(np.take_along_axis(probs[self._cut], ranks, axis=1))
        chosen = self._inverse.of(probs, uniform)
        if ranks is not None:
            places = chosen[self._cut, None]
            chosen[self._cut] = np.take_along_axis(ranks, places, axis=1)[:, 0]
        if likeliest is not None:
            chosen[self._greedy] = likeliest[self._greedy]
        chosen += _FIRST_ID
        return chosen

    def _filter(self, ranked: Float64Array) -> Float64Array:
        """Zero what top-k, top-p and min-p cut off; `ranked` [B', A] falls along each row."""
        ranked = np.where(np.arange(self._columns) < self._top_k, ranked, 0.0)
        cumulated = np.cumsum(ranked, axis=1)
        # A token stays while those before it have not reached top_p; the first always stays.
        keep = cumulated - ranked < self._top_p * cumulated[:, -1:]
        keep[:, 0] = True
        keep &= ranked >= self._min_p * ranked[:, :1]
        return np.where(keep, ranked, 0.0)


def _places(flags: Iterable[bool]) -> Int64Array:
    """The indices of the true ones."""
    found = [i for i, flag in enumerate(flags) if flag]
    return np.array(found, np.int64) if found else _NOWHERE


def _bias(params: SamplingParams, columns: int) -> Float64Array:
    """What each generated token's score gains, [A]."""
    bias = np.zeros(columns)
    for token, gain in params.logit_bias:
        if token >= _FIRST_ID:
            bias[token - _FIRST_ID] = gain
    return bias


class _Inverse:
    """The inverse of cumulated distributions, over arrays that are made once."""

    def __init__(self, room: Room, rows: int) -> None:
        self._cumulated = room.cumulated[:rows]
        self._totals = self._cumulated[:, -1]
        self._threshold = room.threshold[:rows]
        self._thresholds = self._threshold[:, 0]
        self._exceeds = room.exceeds[:rows]

    def of(self, probs: Float64Array, uniform: Float64Array) -> Int64Array:
        """The first index whose cumulated probability exceeds uniform · total, [B]."""
        np.add.accumulate(probs, axis=1, out=self._cumulated)
        np.multiply(uniform, self._totals, out=self._thresholds)
        np.greater(self._cumulated, self._threshold, out=self._exceeds)
        index: Int64Array = self._exceeds.argmax(axis=1)
        return index
