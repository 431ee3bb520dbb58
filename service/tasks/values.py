"""Options and results of the tasks, without HTTP."""

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from service.bundle.text import UNK_ID
from service.decoding.constraints import Rule
from service.decoding.rows import TokenDetails
from service.decoding.sampling import SamplingParams
from service.errors import InvalidRequest

UnknownPolicy: TypeAlias = Literal["unk", "error", "skip"]
# A text, or the ids of one; bos comes before it by itself.
Prompt: TypeAlias = str | tuple[int, ...]

DEFAULT_MAX_TOKENS = 128
_BLOCK = 256  # tokens that are made objects together


def _end_of_first(mask: npt.NDArray[np.bool_], count: int) -> int:
    """A place before which at least so many are true."""
    end = count
    while np.count_nonzero(mask[:end]) < count:
        end *= 2
    return end


# Positions in an answer: of more unknown characters it tells the number alone.
MAX_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class Unknown:
    """The characters of a text that are not in the vocabulary."""

    count: int = 0
    positions: tuple[int, ...] = ()  # in the normalized text; of the first MAX_POSITIONS

    @classmethod
    def at(cls, positions: Sequence[int]) -> "Unknown":
        """Those at all these positions."""
        return cls(len(positions), tuple(positions[:MAX_POSITIONS]))

    @classmethod
    def of(cls, ids: npt.NDArray[np.uint16]) -> "Unknown":
        """Those among the ids of a text's characters."""
        unknown = ids == UNK_ID
        count = int(np.count_nonzero(unknown))
        # Of a text's first characters most are enough, and an index takes eight bytes.
        end = len(ids) if count <= MAX_POSITIONS else _end_of_first(unknown, MAX_POSITIONS)
        return cls(count, tuple(np.flatnonzero(unknown[:end])[:MAX_POSITIONS].tolist()))


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """What `/generate` may be asked for, besides the prompts."""

    max_tokens: int | None = None  # None: DEFAULT_MAX_TOKENS, or the limit where that is less
    sampling: SamplingParams = SamplingParams()
    logit_bias: Mapping[str, float] = field(default_factory=dict)  # by printed token
    seed: int | None = None  # None draws one
    stop: tuple[str, ...] = ()
    rule: Rule | None = None  # what the text may be
    n: int = 1
    echo: bool = False
    logprobs: int | None = None  # alternatives a token; None for none of it
    state: str | None = None  # a handle: every prompt is read after it, and begins no document
    return_state: bool = False
    unknown: UnknownPolicy = "unk"  # of the prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """What `/score` may be asked for, besides the texts."""

    tokens: bool = False
    top_logprobs: int = 0
    bos: bool | None = None  # the text begins a document; None: it does, but not after a state
    # The text ends there, and that is counted; None: as the model was trained, which is False for a
    # language model and True for an encoder-decoder.
    eos: bool | None = None
    unknown: UnknownPolicy = "unk"
    state: str | None = None  # a handle: every text is scored after it
    return_state: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token and what the model thought of it. `None` where it had nothing to go by."""

    token: str
    logprob: float | None
    entropy_bits: float | None
    rank: int | None
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation of a prompt."""

    text: str
    finish_reason: Literal["stop", "length"]
    seed: int
    tokens: Sequence[ScoredToken] | None
    completion_tokens: int
    state: str | None = None  # a handle; None after eos
    matched: bool | None = None  # whether the text obeys the rule; None where there is none
    offsets: tuple[int, ...] = ()  # of each of `tokens`: characters of the text before it


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A token of a choice that is being written, or what was echoed before it."""

    prompt: int
    choice: int
    text: str  # empty for what ends the text: eos, or a stop string's tokens
    offset: int  # characters of the choice's text before it
    token: ScoredToken | None  # None for an echoed prompt without log-probabilities


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """A choice has all its tokens."""

    prompt: int
    choice: int
    finish_reason: Literal["stop", "length"]
    seed: int
    completion_tokens: int
    state: str | None = None  # a handle; None after eos
    matched: bool | None = None  # whether the text obeys the rule; None where there is none


@dataclass(frozen=True, slots=True)
class StreamUsage:
    """All choices have; this is the last event."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    unknown: tuple[Unknown, ...] = ()  # of each prompt


StreamEvent: TypeAlias = TokenEvent | ChoiceEnd | StreamUsage


@dataclass(frozen=True, slots=True)
class Generated:
    """The continuations of one prompt."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    cached_tokens: int  # of those: read before, or with another input
    unknown: Unknown = Unknown()


class Figures:
    """A text's log-probability in the units that people read."""

    __slots__ = ()

    logprob: float  # nats
    chars: int  # that it counts

    @property
    def bits(self) -> float:
        """Total surprisal."""
        # Not -0.0 for the empty text.
        return -self.logprob / math.log(2) + 0.0

    @property
    def bits_per_char(self) -> float | None:
        """Total bits over the counted characters; `None` where there are none."""
        return self.bits / self.chars if self.chars else None

    @property
    def perplexity_per_char(self) -> float | None:
        """2 ** bits_per_char; `None` where there are no characters or it overflows."""
        if not self.chars:
            return None
        exponent = -self.logprob / self.chars
        return math.exp(exponent) if exponent < math.log(np.finfo(np.float64).max) else None


@dataclass(frozen=True, slots=True)
class Scored(Figures):
    """The probability of one text."""

    logprob: float  # nats, over `chars` characters, and eos where it is counted
    chars: int
    bos: bool
    eos: bool
    unknown: Unknown
    tokens: Sequence[ScoredToken] | None
    prompt_tokens: int
    cached_tokens: int  # of those: read before, or with another input
    state: str | None = None  # a handle; None after eos, and where nothing was read


def best_choices(choices: Sequence[Choice], count: int) -> list[Choice]:
    """The choices with the best mean log-probability a token, best first; ties as they came."""
    if len(choices) == count:
        return list(choices)

    def mean(choice: Choice) -> float:
        generated = (choice.tokens or ())[-choice.completion_tokens :]
        if not choice.completion_tokens:
            return 0.0
        return sum(x.logprob or 0.0 for x in generated) / choice.completion_tokens

    return sorted(choices, key=mean, reverse=True)[:count]


def unknown_text(option: str, unknown: Unknown) -> InvalidRequest:
    """The error of a text that holds what the model does not know."""
    shown = ", ".join(map(str, unknown.positions[:16]))
    return InvalidRequest.of_option(
        option,
        f"{unknown.count} characters are not in the model's vocabulary, at positions "
        f"{shown}{', …' if unknown.count > 16 else ''} of the normalized text",
    )


class ScoredTokens(Sequence[ScoredToken]):
    """Tokens with what the model thought of them, each made when it is looked at.

    One takes 2 kB as an object, and some tens of bytes in these columns.
    """

    def __init__(
        self, names: Sequence[str], ids: npt.NDArray[np.uint16], parts: Sequence[TokenDetails]
    ) -> None:
        """`names` are the printed tokens, `ids` [T] those that are told of."""
        self._names = names
        self._ids = ids
        self._details = TokenDetails.joined(parts) if len(ids) else None
        self._first: tuple[ScoredToken, ...] = ()

    def after(self, first: Sequence[ScoredToken]) -> "ScoredTokens":
        """These after some others."""
        whole = copy(self)
        whole._first = (*first, *self._first)  # noqa: SLF001 (its own)
        return whole

    def __len__(self) -> int:
        return len(self._first) + len(self._ids)

    def __iter__(self) -> Iterator[ScoredToken]:
        yield from self._first
        for start in range(0, len(self._ids), _BLOCK):
            yield from self._block(slice(start, start + _BLOCK))

    @overload
    def __getitem__(self, index: int) -> ScoredToken: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ScoredToken, ...]: ...

    def __getitem__(self, index: int | slice) -> ScoredToken | tuple[ScoredToken, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index] - len(self._first)
        if place < 0:
            return self._first[place]
        return next(self._block(slice(place, place + 1)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def _block(self, places: slice) -> Iterator[ScoredToken]:
        details, names = self._details, self._names
        if details is None:
            return
        columns = zip(
            self._ids[places].tolist(),
            details.logprob[places].tolist(),
            (details.entropy[places] / math.log(2)).tolist(),
            details.rank[places].tolist(),
            details.top_ids[places].tolist(),
            details.top_logprobs[places].tolist(),
            strict=True,
        )
        for token, logprob, entropy_bits, rank, top_ids, top_logprobs in columns:
            pairs = zip(top_ids, top_logprobs, strict=True)
            top = tuple(Alternative(names[i], x) for i, x in pairs)
            yield ScoredToken(names[token], logprob, entropy_bits, rank, top)


def scored_tokens(
    names: Sequence[str], ids: Sequence[int] | npt.NDArray[np.uint16], parts: Sequence[TokenDetails]
) -> ScoredTokens:
    """Tokens with what the model thought of them; `names` are the printed tokens."""
    return ScoredTokens(names, np.asarray(ids, np.uint16), parts)
