"""Options and results of `translate`, without HTTP."""

from dataclasses import dataclass

from service.bundle.arrays import Float32Array
from service.bundle.confidence import BEAM_SIZE
from service.decoding.constraints import Rule
from service.decoding.sampling import SamplingParams
from service.decoding.search import FinishReason
from service.tasks.unknown import Unknown, UnknownPolicy

DEFAULT_BEAM_SIZE = BEAM_SIZE
# Roughly the weights in one token's row of an alignment: they set the cost of writing the answer.
ALIGNMENT_SIZE = 64


def default_beam_size(limit: int) -> int:
    """The beam size of a request that names none, where `limit` is the service's."""
    return min(DEFAULT_BEAM_SIZE, limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslateOptions:
    """The options of `/translate`, besides sources and prefixes."""

    beam_size: int | None = None  # None: DEFAULT_BEAM_SIZE, or the limit where that is less
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    max_tokens: int | None = None  # None: what the bundle allows for the source
    sampling: SamplingParams | None = None  # None searches with beams
    seed: int | None = None  # None draws one
    tokens: bool = False
    return_alignments: bool = False
    unknown: UnknownPolicy = "unk"
    copy_unknown: bool = False
    rule: Rule | None = None  # restricts the targets
    min_confidence: float | None = None  # hypotheses below it are left out

    @property
    def width(self) -> int:
        """Rows of a source."""
        if self.sampling is not None or self.beam_size is None:
            return self.num_hypotheses
        return self.beam_size

    @property
    def attends(self) -> bool:
        """Whether the request needs the model's attention."""
        return self.return_alignments or self.copy_unknown


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of a hypothesis."""

    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Translation:
    """One hypothesis as text."""

    text: str
    logprob: float
    score: float
    confidence: float | None  # P(right); None if there is no map for it
    finish_reason: FinishReason
    tokens: tuple[TokenLogprob, ...] | None
    alignment: Float32Array | None  # [T, M]
    completion_tokens: int
    matched: bool | None = None  # whether the text obeys the rule; None if there is none


@dataclass(frozen=True, slots=True)
class Translated:
    """The translations of one source."""

    hypotheses: tuple[Translation, ...]
    abstained: bool  # whether no hypothesis reached min_confidence
    unknown: Unknown
    source_tokens: tuple[str, ...] | None  # of each memory position, with alignments
    seed: int | None  # of samples
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TranslatedToken:
    """A token that a translation has, whatever follows it."""

    source: int
    hypothesis: int  # with beams always 0: only the best is streamed
    text: str  # empty for eos
    offset: int  # characters of the translation before it
    token: TokenLogprob
