"""Answers as frozen dataclasses. Fields that a newer service adds are ignored.

The fields match the service's wire models, which `tests/client/test_contract.py` checks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from types import GenericAlias, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token of a choice, if `logprobs` were requested."""

    token: str
    logprob: float | None
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation."""

    text: str
    finish_reason: str
    seed: int
    matched: bool | None = None
    logprobs: tuple[GeneratedToken, ...] | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The continuations of one prompt."""

    choices: tuple[Choice, ...]
    unknown: tuple[int, ...] = ()  # positions of the first 1,024
    unknown_chars: int = 0


@dataclass(frozen=True, slots=True)
class GenerateAnswer:
    """Answer of `/generate`."""

    model: str
    precision: str
    results: tuple[GenerateResult, ...]
    usage: Usage
    adapt: bool = False


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A token of a choice that is being written."""

    index: int
    choice: int
    text: str
    offset: int
    token: str | None
    logprob: float | None
    entropy_bits: float | None = None
    rank: int | None = None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamedEnd:
    """How one choice ended."""

    index: int
    choice: int
    finish_reason: str
    seed: int
    matched: bool | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class GenerateDone:
    """The last event of a stream."""

    model: str
    precision: str
    choices: tuple[StreamedEnd, ...]
    usage: Usage
    unknown: tuple[tuple[int, ...], ...] = ()
    unknown_chars: tuple[int, ...] = ()
    adapt: bool = False


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A counted token, if `tokens` were requested."""

    token: str
    logprob: float | None
    surprisal_bits: float | None
    entropy_bits: float | None
    rank: int | None
    top: tuple[Alternative, ...]


@dataclass(frozen=True, slots=True)
class ScoredWord:
    """A word and the white space after it, if `units="word"` was requested."""

    text: str
    start: int
    end: int
    chars: int
    logprob: float
    bits: float


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """The probability of one text."""

    logprob: float
    bits: float
    bits_per_char: float | None
    perplexity_per_char: float | None
    chars: int
    bos: bool
    eos: bool
    unknown: tuple[int, ...]  # positions of the first 1,024
    tokens: tuple[ScoredToken, ...] | None = None
    state: str | None = None
    unknown_chars: int = 0
    words: tuple[ScoredWord, ...] | None = None
    percentile: float | None = None  # if requested; 0 to 100
    percentile_low: float | None = None
    percentile_high: float | None = None
    percentile_texts: int | None = None
    guesses: float | None = None
    guesses_low: float | None = None
    guesses_high: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreAnswer:
    """Answer of `/score`."""

    model: str
    precision: str
    results: tuple[ScoreResult, ...]
    usage: Usage
    adapt: bool = False


@dataclass(frozen=True, slots=True)
class HypothesisToken:
    """A token of a hypothesis, if `tokens` were requested."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One translation."""

    text: str
    logprob: float
    score: float
    finish_reason: str
    tokens: tuple[HypothesisToken, ...] | None = None
    alignment: tuple[tuple[float, ...], ...] | None = None
    matched: bool | None = None
    confidence: float | None = None  # P(right); null where there is none


@dataclass(frozen=True, slots=True)
class TranslateResult:
    """The translations of one source."""

    hypotheses: tuple[Hypothesis, ...]
    unknown: tuple[int, ...]  # positions of the first 1,024
    source_tokens: tuple[str, ...] | None = None
    seed: int | None = None
    unknown_chars: int = 0
    abstained: bool = False  # whether `min_confidence` left out every hypothesis


@dataclass(frozen=True, slots=True)
class TranslateAnswer:
    """Answer of `/translate`, and the last event of its stream."""

    model: str
    precision: str
    results: tuple[TranslateResult, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class TranslatedToken:
    """A token of a translation that can no longer change."""

    index: int
    hypothesis: int
    text: str
    offset: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Fill:
    """Texts for the blanks of one text; `text` is None if there are several blanks."""

    text: str | None
    texts: tuple[str, ...]
    logprob: float
    suffix_logprob: float | None
    posterior: float


@dataclass(frozen=True, slots=True)
class InfillResult:
    """The fills of one text, likeliest first."""

    fills: tuple[Fill, ...]
    compared: int
    found_mass: float | None
    seed: int | None
    unknown: tuple[int, ...]  # positions of the first 1,024
    unknown_chars: int = 0


@dataclass(frozen=True, slots=True)
class InfillAnswer:
    """Answer of `/infill`."""

    model: str
    precision: str
    rescore: str | None
    results: tuple[InfillResult, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Label:
    """A label and how likely it is."""

    label: str
    probability: float
    logprob: float


@dataclass(frozen=True, slots=True)
class LabelStep:
    """The likeliest label once some characters have been read, if `steps` were requested."""

    chars: int
    label: str
    probability: float
    logprob: float


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """The labels of one text, likeliest first."""

    labels: tuple[Label, ...]
    unknown: tuple[int, ...]  # positions of the first 1,024
    unknown_chars: int
    steps: tuple[LabelStep, ...] | None = None
    state: str | None = None


@dataclass(frozen=True, slots=True)
class ClassifyAnswer:
    """Answer of `/classify`."""

    model: str
    precision: str
    results: tuple[ClassifyResult, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Tag:
    """Neighbouring characters with the same label."""

    start: int
    end: int
    label: str
    probability: float
    logprob: float


@dataclass(frozen=True, slots=True)
class Tagging:
    """One label for each character of a text, restored if labels are characters."""

    text: str
    logprob: float
    tags: tuple[Tag, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A character and its likeliest labels, if `places` were requested."""

    start: int
    end: int
    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class TagResult:
    """The likeliest tagging of one text; `alternatives` are further ones, if requested."""

    text: str
    logprob: float
    tags: tuple[Tag, ...]
    unknown: tuple[int, ...]  # positions of the first 1,024
    unknown_chars: int
    alternatives: tuple[Tagging, ...] = ()
    places: tuple[Place, ...] | None = None


@dataclass(frozen=True, slots=True)
class TagAnswer:
    """Answer of `/tag`."""

    model: str
    precision: str
    restored: bool
    results: tuple[TagResult, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of `/models`."""

    name: str
    task: str
    description: str
    precision: str
    adapts: bool = False
    fills: bool = False


def built(kind: type[Answer], data: Any) -> Answer:
    """An answer of this kind from JSON. Raises KeyError and TypeError if it is not one."""
    if not isinstance(data, Mapping):
        raise TypeError(kind.__name__)
    values = {}
    for name, hint in _hints(kind).items():
        if name in data:
            values[name] = _value(hint, data[name])
    return kind(**values)


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


_HINTS: dict[type[Any], dict[str, Any]] = {}


def _value(hint: Any, data: Any) -> Any:
    if data is None:
        return None
    if isinstance(hint, UnionType):
        hint = next(x for x in get_args(hint) if x is not type(None))
    if isinstance(hint, GenericAlias) and get_origin(hint) is tuple:
        return tuple(_value(get_args(hint)[0], each) for each in data)
    return built(hint, data) if isinstance(hint, type) and is_dataclass(hint) else data
