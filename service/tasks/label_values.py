"""Options and results of `classify` and `tag`, without HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.tasks.unknown import Unknown, UnknownPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifyOptions:
    """The options of `/classify`, besides the texts."""

    top: int | None = None  # the most labels of a text; None: all
    min_probability: float = 0.0  # less likely labels are left out
    unknown: UnknownPolicy = "unk"
    steps: bool = False  # also the likeliest label after each character; models that read forward
    state: str | None = None  # every text continues from there
    return_state: bool = False


@dataclass(frozen=True, slots=True)
class LabelProbability:
    """A label and how likely it is."""

    label: str
    probability: float
    logprob: float  # nats


@dataclass(frozen=True, slots=True)
class LabelStep:
    """The likeliest label once some characters have been read."""

    chars: int  # read so far
    label: str
    probability: float
    logprob: float


@dataclass(frozen=True, slots=True)
class Classified:
    """The labels of one text."""

    labels: Sequence[LabelProbability]  # likeliest first
    unknown: Unknown
    prompt_tokens: int
    steps: Sequence[LabelStep] | None = None
    state: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TagOptions:
    """The options of `/tag`, besides the texts."""

    n: int = 1  # taggings of each text, likeliest first
    places: bool = False  # also the labels of each character
    top: int = 1  # with `places`: the most labels of each character
    unknown: UnknownPolicy = "unk"


@dataclass(frozen=True, slots=True)
class Tag:
    """Neighbouring characters with the same label."""

    start: int  # in the normalized text
    end: int
    label: str
    probability: float  # that all of these characters have their labels
    logprob: float


@dataclass(frozen=True, slots=True)
class Tagging:
    """One label for each character of a text."""

    text: str  # with the labels applied, if they are characters; else the normalized text
    logprob: float  # of all labels, nats
    tags: Sequence[Tag]  # in order


@dataclass(frozen=True, slots=True)
class Place:
    """A character and its likeliest labels."""

    start: int
    end: int
    labels: Sequence[LabelProbability]


@dataclass(frozen=True, slots=True)
class Tagged:
    """The taggings of one text."""

    taggings: Sequence[Tagging]  # likeliest first
    unknown: Unknown
    prompt_tokens: int
    places: Sequence[Place] | None = field(default=None)
