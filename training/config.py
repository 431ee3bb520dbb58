"""The configuration of one experiment: a TOML file, checked at the edge, frozen inside."""

import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from service.bundle.manifest import NAME_PATTERN
from service.bundle.text import SideNormalization
from training.config_changes import NO_CHANGES, Changes, as_word, changed
from training.config_labels import (
    ClassifierDataConfig,
    ClassifierNetworkConfig,
    LabelDataConfig,
    LabelerNetworkConfig,
    LabelerTrainingConfig,
    RestoreDataConfig,
    TaggerDataConfig,
    TaggerNetworkConfig,
)
from training.config_sections import (
    AdaptConfig,
    BaselineConfig,
    EncoderDecoderDataConfig,
    EncoderDecoderNetworkConfig,
    EncoderDecoderTrainingConfig,
    InfillDataConfig,
    LanguageModelDataConfig,
    LanguageModelNetworkConfig,
    LanguageModelTrainingConfig,
    NGramConfig,
    NGramModelConfig,
    OptimizerConfig,
    Section,
    SpansConfig,
    TextSideConfig,
)
from training.errors import ConfigError
from training.text_files import read_text

__all__ = [
    "DEFAULT_TASK",
    "NAME_PATTERN",
    "AdaptConfig",
    "AnyConfig",
    "AnyLanguageModelConfig",
    "BaselineConfig",
    "ClassifierConfig",
    "ClassifierDataConfig",
    "ClassifierNetworkConfig",
    "ConfigError",
    "EncoderDecoderConfig",
    "EncoderDecoderDataConfig",
    "EncoderDecoderNetworkConfig",
    "EncoderDecoderTrainingConfig",
    "InfillConfig",
    "InfillDataConfig",
    "LabelDataConfig",
    "LabelerConfig",
    "LabelerNetworkConfig",
    "LabelerTrainingConfig",
    "LanguageModelConfig",
    "LanguageModelDataConfig",
    "LanguageModelNetworkConfig",
    "LanguageModelTrainingConfig",
    "NGramConfig",
    "NGramLanguageModelConfig",
    "NGramModelConfig",
    "OptimizerConfig",
    "RestoreConfig",
    "RestoreDataConfig",
    "SpansConfig",
    "TaggerConfig",
    "TaggerDataConfig",
    "TaggerNetworkConfig",
    "TextSideConfig",
    "TrainedConfig",
    "labeler_config",
    "load_config",
    "pairs_config",
    "parse_config",
    "read_document",
]


class LanguageModelConfig(Section):
    """One experiment on text."""

    kind: ClassVar[str] = "language_model"  # of the experiment
    task: Literal["language_model"] = "language_model"
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    license: str = "not stated"  # of the trained weights, for the bundle's manifest
    data: LanguageModelDataConfig
    model: LanguageModelNetworkConfig = LanguageModelNetworkConfig()
    training: LanguageModelTrainingConfig = LanguageModelTrainingConfig()
    ngram: NGramConfig | None = None  # mixed in at export; None: no mixture
    adapt: AdaptConfig | None = None  # None: the bundle does not adapt
    baselines: BaselineConfig = BaselineConfig()

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.training.seed


class NGramLanguageModelConfig(Section):
    """One experiment on text whose model is counted: it has no network and no `[training]`."""

    kind: ClassVar[str] = "ngram"  # of the experiment
    seed: ClassVar[int] = 0  # nothing is random
    ngram: ClassVar[NGramConfig | None] = None  # nothing is mixed in
    adapt: ClassVar[AdaptConfig | None] = None  # there is no output layer
    task: Literal["language_model"] = "language_model"
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    license: str = "not stated"  # of the model, for the bundle's manifest
    data: LanguageModelDataConfig
    model: NGramModelConfig
    baselines: BaselineConfig = BaselineConfig()


class EncoderDecoderConfig(Section):
    """One experiment on pairs."""

    kind: ClassVar[str] = "encoder_decoder"  # of the experiment
    task: Literal["encoder_decoder"]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    license: str = "not stated"  # of the trained weights, for the bundle's manifest
    data: EncoderDecoderDataConfig
    model: EncoderDecoderNetworkConfig = EncoderDecoderNetworkConfig()
    training: EncoderDecoderTrainingConfig = EncoderDecoderTrainingConfig()

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.training.seed

    @property
    def pairs(self) -> "EncoderDecoderConfig":
        """Itself."""
        return self


class InfillConfig(Section):
    """One experiment on text whose blanks an encoder-decoder learns to fill."""

    kind: ClassVar[str] = "infill"  # of the experiment
    task: Literal["infill"]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    license: str = "not stated"  # of the trained weights, for the bundle's manifest
    data: InfillDataConfig
    spans: SpansConfig = SpansConfig()
    model: EncoderDecoderNetworkConfig = EncoderDecoderNetworkConfig()
    training: EncoderDecoderTrainingConfig = EncoderDecoderTrainingConfig()

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.training.seed

    @property
    def pairs(self) -> EncoderDecoderConfig:
        """The same as an experiment on pairs: texts with blanks, and what stood there."""
        data, spans = self.data, self.spans
        rules = {**data.normalization.model_dump(), "strip": False}
        side = TextSideConfig(
            lang=data.lang,
            normalization=SideNormalization(**rules),
            min_count=data.min_count,
        )
        return EncoderDecoderConfig(
            task="encoder_decoder",
            name=self.name,
            description=self.description,
            license=self.license,
            data=EncoderDecoderDataConfig(
                train_files=[*data.files, *data.train_files],
                source=side,
                target=side,
                share_vocab=True,
                max_source_tokens=spans.max_source_tokens,
                max_target_tokens=spans.max_target_tokens,
                title=data.title,
                origin=data.source,
                license=data.license,
            ),
            model=self.model,
            training=self.training,
        )


class _LabelsConfig(Section):
    """What every experiment on labels has."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    license: str = "not stated"  # of the trained weights, for the bundle's manifest
    training: LabelerTrainingConfig = LabelerTrainingConfig()

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.training.seed


class ClassifierConfig(_LabelsConfig):
    """One experiment on texts with labels."""

    kind: ClassVar[str] = "classifier"  # of the experiment
    task: Literal["classifier"]
    data: ClassifierDataConfig
    model: ClassifierNetworkConfig = ClassifierNetworkConfig()

    @model_validator(mode="after")
    def _parts_join(self) -> Self:
        text = self.data.text
        whole = text.tokenization != "character" or text.normalization.strip
        if self.model.direction == "forward" and whole:
            raise ValueError(
                'model.direction = "forward" reads a text in parts, so it needs characters as '
                "tokens and data.text.normalization.strip = false"
            )
        return self


class TaggerConfig(_LabelsConfig):
    """One experiment on texts with a label for each character."""

    kind: ClassVar[str] = "tagger"  # of the experiment
    task: Literal["tagger"]
    data: TaggerDataConfig
    model: TaggerNetworkConfig = TaggerNetworkConfig()


class RestoreConfig(_LabelsConfig):
    """One experiment on any text, which loses something that is to be put back."""

    kind: ClassVar[str] = "restore"  # of the experiment
    task: Literal["restore"]
    data: RestoreDataConfig
    model: TaggerNetworkConfig = TaggerNetworkConfig()


AnyLanguageModelConfig: TypeAlias = LanguageModelConfig | NGramLanguageModelConfig
PairsConfig: TypeAlias = EncoderDecoderConfig | InfillConfig
LabelerConfig: TypeAlias = ClassifierConfig | TaggerConfig | RestoreConfig
TrainedConfig: TypeAlias = LanguageModelConfig | PairsConfig | LabelerConfig  # by gradient descent
AnyConfig: TypeAlias = TrainedConfig | NGramLanguageModelConfig

# The schema of each task: a new kind of model joins here and in the union.
_SCHEMAS: Mapping[str, type[AnyConfig]] = {
    "language_model": LanguageModelConfig,
    "encoder_decoder": EncoderDecoderConfig,
    "infill": InfillConfig,
    "classifier": ClassifierConfig,
    "tagger": TaggerConfig,
    "restore": RestoreConfig,
}
# Those that train an encoder-decoder.
_SCHEMAS_OF_PAIRS: Mapping[str, type[PairsConfig]] = {
    "encoder_decoder": EncoderDecoderConfig,
    "infill": InfillConfig,
}
# Those that train a labeler.
_SCHEMAS_OF_LABELERS: Mapping[str, type[LabelerConfig]] = {
    "classifier": ClassifierConfig,
    "tagger": TaggerConfig,
    "restore": RestoreConfig,
}
# The schema of a task and a cell, where the cell has one of its own.
_SCHEMAS_OF_CELLS: Mapping[tuple[str, str], type[AnyConfig]] = {
    ("language_model", "ngram"): NGramLanguageModelConfig,
}
DEFAULT_TASK = "language_model"  # of a document that names none


def load_config(path: Path, changes: Changes = NO_CHANGES) -> AnyConfig:
    """Read and check a configuration. Raises ConfigError, with a line for each mistake."""
    document = changed(read_document(path), changes)
    if document.get("task", DEFAULT_TASK) not in [*_SCHEMAS]:
        *tasks, last = (f'"{task}"' for task in _SCHEMAS)
        raise ConfigError(f"{path}: task: it must be {', '.join(tasks)} or {last}")
    try:
        return parse_config(document)
    except ValidationError as error:
        lines = _explain(path, _schema(document), error, changes)
        raise ConfigError("\n".join(lines)) from error


def read_document(path: Path) -> dict[str, Any]:
    """The document in a configuration's file. Raises ConfigError if it is not TOML."""
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        if path.suffix == ".toml":
            raise ConfigError(f"{path}: {error}") from error
        raise ConfigError(
            f"{path}: not a configuration, which is a TOML file. To train on a text as it is: "
            f"python -m training learn {shlex.quote(str(path))}. To choose yourself: copy "
            "training/configs/lines.toml, files.toml or pairs.toml, and name the text in data.files"
        ) from error


def parse_config(document: dict[str, Any]) -> AnyConfig:
    """The configuration that a document holds. Raises pydantic's ValidationError."""
    return _schema(document).model_validate(document)


def pairs_config(document: dict[str, Any]) -> EncoderDecoderConfig:
    """The configuration of an encoder-decoder, whatever its pairs are made from."""
    return _SCHEMAS_OF_PAIRS[document["task"]].model_validate(document).pairs


def labeler_config(document: dict[str, Any]) -> LabelerConfig:
    """The configuration of a labeler, whether texts or characters have its labels."""
    return _SCHEMAS_OF_LABELERS[document["task"]].model_validate(document)


def _schema(document: dict[str, Any]) -> type[AnyConfig]:
    task, model = document.get("task", DEFAULT_TASK), document.get("model")
    schema = _SCHEMAS.get(task, _SCHEMAS[DEFAULT_TASK])  # which says that it knows no such task
    cell = model.get("cell") if isinstance(model, Mapping) else None
    return _SCHEMAS_OF_CELLS.get((task, str(cell)), schema)


def _explain(
    path: Path, schema: type[BaseModel], error: ValidationError, changes: Changes
) -> list[str]:
    lines = []
    for mistake in error.errors(include_url=False):
        option = ".".join(str(part) for part in mistake["loc"])
        reason = mistake["msg"]
        unknown = mistake["type"] == "extra_forbidden"
        if unknown:
            allowed = ", ".join(_options_beside(schema, mistake["loc"]))
            reason = f"no such option; there are {allowed}"
        place = _place(path, option, changes, unknown=unknown)
        lines.append(f"{place}: {option or 'the document'}: {reason}")
    return lines


def _place(path: Path, option: str, changes: Changes, *, unknown: bool) -> str:
    """Where a mistake is: in an option of the command line, or in the file with those options."""
    for key, value in changes.items():
        below = f"{option}.".startswith(f"{key}.")
        if below or (unknown and key.startswith(f"{option}.")):
            return f"--set {as_word(key, value)}"
    words = ", ".join(as_word(key, value) for key, value in changes.items())
    return f"{path} with {words}" if words else str(path)


def _options_beside(section: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        for choice in (annotation, *get_args(annotation)):  # of one that may be left out: two
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                section = choice
    return list(section.model_fields)
