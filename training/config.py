"""The configuration of one experiment: a TOML file, checked at the edge, frozen inside."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.bundle import Normalization

PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"  # of a run and its bundle: the manifest's


class ConfigError(Exception):
    """A configuration that cannot be used; the message names the option and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class DataConfig(_Section):
    """The text, how it is cut into documents and splits, and on what terms it is used."""

    files: Annotated[list[str], Field(min_length=1)]  # relative to the config's folder; globs too
    documents: Literal["file", "line"] = "file"  # what one document is
    normalization: Normalization = Normalization()
    min_count: PositiveInt = 1  # characters rarer than this in the training split become unk
    valid_fraction: Probability = 0.05  # after the training split, by position
    test_fraction: Probability = 0.05  # the end of the text, by position
    title: str = "untitled"  # for the bundle's manifest
    source: str = "the user's own files"
    license: str = "not stated"

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.valid_fraction + self.test_fraction >= 1.0:
            raise ValueError("valid_fraction + test_fraction must leave a training split")
        return self


class ModelConfig(_Section):
    """The language model. The dropouts are probabilities of zeroing."""

    cell: Literal["rnn", "gru", "lstm"] = "lstm"
    num_layers: PositiveInt = 1
    hidden_size: PositiveInt = 256
    embedding_dim: PositiveInt = 64
    tie_embeddings: bool = False  # output weights = embedding; needs embedding_dim = hidden_size
    dropout_input: Probability = 0.0  # variational, on the embeddings
    dropout_between: Probability = 0.0  # variational, between recurrent layers
    dropout_output: Probability = 0.0  # variational, before the output layer
    weight_drop: Probability = 0.0  # DropConnect on the recurrent matrices

    @model_validator(mode="after")
    def _tied_sizes_agree(self) -> Self:
        if self.tie_embeddings and self.embedding_dim != self.hidden_size:
            raise ValueError("tie_embeddings needs embedding_dim = hidden_size")
        return self


class TrainingConfig(_Section):
    """Truncated backpropagation through time with AdamW."""

    steps: PositiveInt  # optimizer steps
    batch_size: PositiveInt = 32  # lanes read side by side
    bptt_len: PositiveInt = 128  # tokens a window
    order: Literal["stream", "shuffle"] | None = None  # None: files stream, lines shuffle
    restart_probability: Probability = 0.0  # a window: end the text at a line end, begin anew
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    final_learning_rate_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    beta1: Probability = 0.9
    beta2: Probability = 0.999
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    grad_clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    grad_clip_value: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Probability | None = None  # None: no averaging of weights
    eval_every: PositiveInt = 500  # steps between evaluations
    patience: PositiveInt | None = None  # evaluations without a better loss before stopping
    log_every: PositiveInt = 20  # steps between log lines
    checkpoint_every: PositiveInt = 500  # steps between resumable checkpoints
    sample_prompt: str = ""  # a sample is printed at every evaluation
    sample_chars: Annotated[int, Field(ge=0)] = 200
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    replicas: PositiveInt = 1  # groups of lanes computed side by side, a thread each
    threads: PositiveInt | None = None  # for all of them; None: every core this process may use
    device: Literal["cpu", "cuda"] = "cpu"

    @model_validator(mode="after")
    def _lanes_divide(self) -> Self:
        if self.batch_size % self.replicas:
            raise ValueError("batch_size must be a multiple of replicas")
        return self


class BaselineConfig(_Section):
    """The n-gram floors on the same split."""

    max_order: Annotated[int, Field(ge=1, le=8)] = 8
    max_train_chars: PositiveInt = 20_000_000  # n-gram tables stand in memory; more is cut


class Config(_Section):
    """One experiment."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    license: str = "not stated"  # of the trained weights, for the bundle's manifest
    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    baselines: BaselineConfig = BaselineConfig()


def load_config(path: Path) -> Config:
    """Read and check a configuration. Raises ConfigError, one line a mistake."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, error))) from error


def _explain(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for mistake in error.errors(include_url=False):
        option = ".".join(str(part) for part in mistake["loc"])
        reason = mistake["msg"]
        if mistake["type"] == "extra_forbidden":
            allowed = ", ".join(_options_beside(mistake["loc"]))
            reason = f"no such option; there are {allowed}"
        lines.append(f"{path}: {option or 'the document'}: {reason}")
    return lines


def _options_beside(location: tuple[int | str, ...]) -> list[str]:
    section: type[BaseModel] = Config
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return list(section.model_fields)
