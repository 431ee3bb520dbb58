"""The options of each request: the service's fields, under the same names (see its `/docs`)."""

from collections.abc import Mapping
from typing import TypedDict

Texts = str | list[str]


class GenerateOptions(TypedDict, total=False):
    """Fields of `/generate`, besides the prompt."""

    model: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[str, float]
    seed: int
    stop: Texts
    n: int
    echo: bool
    logprobs: int
    pattern: str
    choices: list[str]
    allowed_chars: str | list[str]
    unknown: str
    adapt: bool
    state: str
    return_state: bool


class ScoreOptions(TypedDict, total=False):
    """Fields of `/score`, besides the text."""

    model: str
    source: Texts
    context: Texts
    label: Texts
    tokens: bool
    top_logprobs: int
    units: str
    guesses: bool
    bos: bool
    eos: bool
    unknown: str
    adapt: bool
    percentile: bool
    state: str
    return_state: bool


class LineOptions(TypedDict, total=False):
    """Query parameters of a streamed `/score`."""

    model: str
    bos: bool
    eos: bool
    unknown: str
    adapt: bool
    units: str
    percentile: bool
    guesses: bool


class TranslateOptions(TypedDict, total=False):
    """Fields of `/translate`, besides the source."""

    model: str
    beam_size: int
    num_hypotheses: int
    length_penalty: float
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    target_prefix: Texts
    tokens: bool
    return_alignments: bool
    unknown: str
    copy_unknown: bool
    pattern: str
    choices: list[str]
    allowed_chars: str | list[str]
    must_contain: str | list[str]
    min_confidence: float


class InfillOptions(TypedDict, total=False):
    """Fields of `/infill`, besides prefix and suffix."""

    model: str
    text: Texts
    blank: str
    candidates: list[str]
    choices: list[str]
    pattern: str
    allowed_chars: str | list[str]
    length: int
    max_tokens: int
    num_fills: int
    num_proposals: int
    seed: int
    bos: bool
    eos: bool
    unknown: str
    rescore: str


class ClassifyOptions(TypedDict, total=False):
    """Fields of `/classify`, besides the text."""

    model: str
    top: int
    min_probability: float
    unknown: str
    steps: bool
    state: str
    return_state: bool


class TagOptions(TypedDict, total=False):
    """Fields of `/tag`, besides the text."""

    model: str
    n: int
    places: bool
    top: int
    unknown: str


class ClassifyLineOptions(TypedDict, total=False):
    """Query parameters of a streamed `/classify`."""

    model: str
    top: int
    min_probability: float
    unknown: str
    steps: bool


class TagLineOptions(TypedDict, total=False):
    """Query parameters of a streamed `/tag`."""

    model: str
    n: int
    places: bool
    top: int
    unknown: str
