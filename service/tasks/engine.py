"""The protocol of engines, whatever their kind of model, and the abilities they may have.

An ability is one thing that some models can do, with a protocol of its methods; an engine lists the
abilities that it has. Endpoints, registry and command line ask for an ability, never for a kind of
model.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from service.bundle.arrays import Ids
from service.bundle.encoder_decoder import EncoderDecoderManifest
from service.bundle.guesses import GuessCurve
from service.bundle.manifest import Precision
from service.bundle.store import Manifest
from service.bundle.text import Normalization
from service.scheduling.workers import Workers
from service.tasks.carried_labels import CarriedLabels
from service.tasks.carried_score import CarriedScore
from service.tasks.infill_values import Blanks, Infilled, InfillOptions, Proposal
from service.tasks.label_values import (
    Classified,
    ClassifyOptions,
    LabelProbability,
    Tagged,
    TagOptions,
)
from service.tasks.translations import Translated, TranslatedToken, TranslateOptions
from service.tasks.values import (
    Generated,
    GenerateOptions,
    Prompt,
    Scored,
    ScoreOptions,
    StreamEvent,
)
from service.tasks.vocabularies import Vocabularies

Able = TypeVar("Able")


class Engine(Protocol):
    """One served version of a model."""

    holds: int  # requests that it is answering (request_context.Held)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""

    @property
    def precision(self) -> Precision:
        """The precision that it runs in."""

    @property
    def workers(self) -> Workers[Any]:
        """The threads that run its model."""

    @property
    def vocabularies(self) -> Vocabularies:
        """Its tokens, one vocabulary a side."""

    @property
    def adapts(self) -> bool:
        """Whether its output layer can learn from the text that it reads (the option `adapt`)."""

    @property
    def abilities(self) -> "Abilities":
        """What it can do."""

    def start(self) -> None:
        """Start its workers; call it in the event loop that requests run in."""

    async def stop(self, timeout_s: float | None = None) -> None:
        """End its workers; one that hangs in a step is left after so long."""


class Ability(Generic[Able]):
    """Something that some engines can do and others cannot. The methods are `Able`'s."""

    def __init__(self, does: str, path: str | None = None) -> None:
        """`does` completes "this model does not …"; the path is the one that is for it."""
        self.does = does
        self.path = path

    def lacking(self, abilities: "Iterable[Ability[Any]]") -> str:
        """The error for a model that has only these, and what it can be asked instead."""
        paths = [x.path for x in abilities if x.path is not None]
        *others, last = paths or ["nothing"]
        answered = f"{', '.join(others)} and {last}" if others else last
        return f"this model does not {self.does}; it answers {answered}"

    def of(self, engine: Engine) -> Able | None:
        """The engine, typed by what the ability needs; None if the engine lacks it."""
        found: Able | None = engine.abilities.get(self)
        return found

    def given_by(self, able: Able) -> "tuple[Ability[Any], Any]":
        """An entry for an engine's `abilities`."""
        return self, able


Abilities: TypeAlias = Mapping[Ability[Any], Any]


class Generates(Engine, Protocol):
    """Continues texts."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""

    @property
    def max_tokens(self) -> int:
        """Most tokens that one choice may have."""

    async def generate(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> list[Generated]:
        """Continue every prompt."""

    def stream(
        self, prompts: Sequence[Prompt], options: GenerateOptions
    ) -> AsyncGenerator[StreamEvent, None]:
        """Stream the choices of `generate` token by token; the usage comes last."""


class Scores(Engine, Protocol):
    """Computes the probability of texts."""

    @property
    def needs_sources(self) -> bool:
        """Whether a text is scored given a source; else it may have a context."""

    @property
    def has_percentiles(self) -> bool:
        """Whether it knows how surprising held-out texts are (the option `percentile`)."""

    @property
    def guess_curve(self) -> GuessCurve | None:
        """What it knows of guess numbers (the option `guesses`); None if nothing."""

    async def score(
        self,
        texts: Sequence[str],
        options: ScoreOptions,
        *,
        contexts: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> list[Scored]:
        """The probability of every text, after its context or given its source."""


class ScoresInParts(Engine, Protocol):
    """Scores one text of any length, part by part."""

    @property
    def normalization(self) -> Normalization:
        """How the text is normalized first."""

    def ids_of(self, text: str) -> Ids:
        """The ids of a part's normalized characters."""

    async def carry_on(
        self, carried: CarriedScore, ids: Ids | None, options: ScoreOptions
    ) -> CarriedScore:
        """The score including the next part; None ends the text."""


class Translates(Engine, Protocol):
    """Translates sources into targets."""

    @property
    def manifest(self) -> EncoderDecoderManifest:
        """The bundle's manifest, with both languages."""

    def fits(self, text: str) -> bool:
        """Whether a source is within the model's limit."""

    async def translate(
        self, texts: Sequence[str], prefixes: Sequence[str], options: TranslateOptions
    ) -> list[Translated]:
        """Translate every source; each target begins with its prefix."""

    def stream(
        self, texts: Sequence[str], prefixes: Sequence[str], options: TranslateOptions
    ) -> AsyncGenerator[TranslatedToken | list[Translated], None]:
        """Stream tokens as they become certain; the result of `translate` comes last."""


class Infills(Engine, Protocol):
    """Fills the blanks of texts."""

    async def infill(
        self,
        texts: Sequence[Blanks],
        options: InfillOptions,
        *,
        proposals: Sequence[Sequence[Proposal]] | None = None,
    ) -> list[Infilled]:
        """Fill every text; `proposals` are those of another model for each text."""


class Proposes(Engine, Protocol):
    """Proposes texts for blanks, for another model to rank."""

    async def propose(
        self, texts: Sequence[Blanks], options: InfillOptions
    ) -> list[list[Proposal]]:
        """Proposals for every text, likeliest first."""


class Classifies(Engine, Protocol):
    """Gives labels to texts."""

    @property
    def label_names(self) -> Sequence[str]:
        """Every label that a text can have."""

    @property
    def reads_in_parts(self) -> bool:
        """Whether a text can continue from a state (the option `state`)."""

    def check_classify(self, options: ClassifyOptions) -> None:
        """Raise InvalidRequest for options that no text could be classified with."""

    async def classify(self, texts: Sequence[str], options: ClassifyOptions) -> list[Classified]:
        """The labels of every text."""


class ClassifiesInParts(Engine, Protocol):
    """Gives labels to one text of any length, part by part."""

    @property
    def normalization(self) -> Normalization:
        """How the text is normalized first."""

    def ids_of(self, text: str) -> Ids:
        """The ids of a part's normalized characters."""

    async def carry_on(
        self, carried: CarriedLabels, ids: Ids, options: ClassifyOptions
    ) -> CarriedLabels:
        """The labels including the next part, which may be empty."""

    def labels_of(self, carried: CarriedLabels, options: ClassifyOptions) -> list[LabelProbability]:
        """The labels of what has been read, likeliest first."""


class ScoresLabels(Engine, Protocol):
    """Computes the probability of labels."""

    async def score_labels(
        self, texts: Sequence[str], labels: Sequence[str], options: ScoreOptions
    ) -> list[Scored]:
        """The probability of each text's label, given the text."""


class Tags(Engine, Protocol):
    """Gives a label to each character of texts."""

    @property
    def restores(self) -> bool:
        """Whether a label is the character that stands in the restored text."""

    def check_tag(self, options: TagOptions) -> None:
        """Raise InvalidRequest for options that no text could be tagged with."""

    async def tag(self, texts: Sequence[str], options: TagOptions) -> list[Tagged]:
        """The tags of every text."""


GENERATE: Ability[Generates] = Ability("continue texts", "/generate")
SCORE: Ability[Scores] = Ability("score texts", "/score")
SCORE_IN_PARTS: Ability[ScoresInParts] = Ability("score a text in parts")
TRANSLATE: Ability[Translates] = Ability("translate", "/translate")
INFILL: Ability[Infills] = Ability("fill blanks", "/infill")
PROPOSE: Ability[Proposes] = Ability("propose texts for another model to rank (`rescore`)")
CLASSIFY: Ability[Classifies] = Ability("classify texts", "/classify")
CLASSIFY_IN_PARTS: Ability[ClassifiesInParts] = Ability("classify a text in parts")
SCORE_LABELS: Ability[ScoresLabels] = Ability("score labels", "/score with `label`")
TAG: Ability[Tags] = Ability("tag texts", "/tag")
# Of language models.
DECIDE: Ability[Infills] = Ability("rank what another model proposes")
