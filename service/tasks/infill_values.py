"""Options and results of `infill`, without HTTP.

A text with n blanks has n + 1 pieces: the text before, between and after the blanks. If there is
one blank, these are the prefix and the suffix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from service.decoding.constraints import Rule
from service.tasks.unknown import Unknown, UnknownPolicy

DEFAULT_NUM_FILLS = 5
# Most characters of an open blank if a request sets no limit.
DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Blanks:
    """A text around its blanks."""

    pieces: tuple[str, ...]  # two or more: one more than there are blanks


@dataclass(frozen=True, kw_only=True, slots=True)
class InfillOptions:
    """The options of `/infill`, besides the texts."""

    candidates: tuple[str, ...] | None = None  # of every blank; None: it is open
    rule: Rule | None = None  # of every open blank
    length: int | None = None  # of every open blank, in characters; None: from 1 to max_tokens
    max_tokens: int | None = None  # of an open blank; None: DEFAULT_MAX_TOKENS or the limit
    num_fills: int = DEFAULT_NUM_FILLS
    num_proposals: int | None = None  # texts to compare for an open blank; None: the default
    seed: int | None = None  # of sampled proposals; None draws one
    bos: bool = True  # the first piece begins a document
    eos: bool = False  # the last piece ends the document, and that is counted
    unknown: UnknownPolicy = "unk"


@dataclass(frozen=True, slots=True)
class Proposal:
    """Texts for the blanks of one text, by a model that sees both sides."""

    texts: tuple[str, ...]  # one a blank
    logprob: float  # log q(texts | pieces), nats


@dataclass(frozen=True, slots=True)
class Fill:
    """Texts for the blanks of one text, and their probabilities."""

    texts: tuple[str, ...]  # one a blank
    logprob: float  # of the texts, each after everything before it; nats
    suffix_logprob: float | None  # of the pieces after the first, likewise; None: not computed
    posterior: float  # share of the joint probability of what was compared


@dataclass(frozen=True, slots=True)
class Infilled:
    """The fills of one text, likeliest first."""

    fills: tuple[Fill, ...]
    compared: int  # how many fills were compared
    found_mass: float | None  # None if candidates were listed
    seed: int | None  # of sampled proposals
    unknown: Unknown
    prompt_tokens: int
    completion_tokens: int  # of the proposals
    cached_tokens: int


def one_blank(prefixes: Sequence[str], suffixes: Sequence[str]) -> list[Blanks]:
    """Texts with one blank each."""
    return [Blanks(pieces) for pieces in zip(prefixes, suffixes, strict=True)]
