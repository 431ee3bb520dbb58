"""Options and results of the tasks, without HTTP."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from service.bundle.guesses import Guesses
from service.decoding.constraints import Rule
from service.decoding.sampling import SamplingParams
from service.tasks.percentiles import Standing
from service.tasks.scored_tokens import ScoredToken
from service.tasks.scored_words import ScoredWords
from service.tasks.unknown import Unknown, UnknownPolicy

# A text, or its ids; bos is added automatically.
Prompt: TypeAlias = str | tuple[int, ...]

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateOptions:
    """The options of `/generate`, besides the prompts."""

    max_tokens: int | None = None  # None: DEFAULT_MAX_TOKENS, or the limit where that is less
    sampling: SamplingParams = SamplingParams()
    logit_bias: Mapping[str, float] = field(default_factory=dict)  # by printed token
    seed: int | None = None  # None draws one
    stop: tuple[str, ...] = ()
    rule: Rule | None = None  # restricts the text
    adapt: bool = False  # the output layer learns from the text as it is read and written
    n: int = 1
    echo: bool = False
    logprobs: int | None = None  # alternatives a token; None: no logprobs
    state: str | None = None  # a handle: every prompt continues that text
    return_state: bool = False
    unknown: UnknownPolicy = "unk"  # of the prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """The options of `/score`, besides the texts."""

    adapt: bool = False  # the output layer learns from the text as it is read
    percentile: bool = False  # where each text ranks among held-out texts of its length
    tokens: bool = False
    top_logprobs: int = 0
    guesses: bool = False  # how many each text takes; `eos` is then true
    units: Literal["word"] | None = None  # also scored one by one
    bos: bool | None = None  # the text begins a document; None: it does, but not after a state
    # The text ends there, and that is counted; None: as the model was trained, which is False for a
    # language model and True for an encoder-decoder.
    eos: bool | None = None
    unknown: UnknownPolicy = "unk"
    state: str | None = None  # a handle: every text is scored after it
    return_state: bool = False

    @property
    def detail_top(self) -> int | None:
        """How many alternatives every token needs; None if tokens need no figures of their own."""
        return self.top_logprobs if self.tokens or self.units is not None else None


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
    """Token counts for the whole request; the last event."""

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
    cached_tokens: int  # of those: cached, or read with another input
    unknown: Unknown


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
    cached_tokens: int  # of those: cached, or read with another input
    state: str | None = None  # a handle; None after eos, and where nothing was read
    words: ScoredWords | None = None
    # None if it was not requested, or there are no held-out texts of that length
    standing: Standing | None = None
    guesses: Guesses | None = None


def best_choices(choices: Sequence[Choice], count: int) -> list[Choice]:
    """The choices with the best mean log-probability a token, best first; ties keep their order."""
    if len(choices) == count:
        return list(choices)

    def mean(choice: Choice) -> float:
        generated = (choice.tokens or ())[-choice.completion_tokens :]
        if not choice.completion_tokens:
            return 0.0
        return sum(x.logprob or 0.0 for x in generated) / choice.completion_tokens

    return sorted(choices, key=mean, reverse=True)[:count]
