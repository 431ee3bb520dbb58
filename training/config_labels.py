"""The sections of a labeler's configuration: every option with its bounds and its default."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from service.bundle.labeler import MAX_TOKENS, Direction, Pooling
from service.bundle.manifest import Cell
from training.config_sections import (
    OptimizerConfig,
    PositiveInt,
    Probability,
    Section,
    TextSideConfig,
)


class LabelDataConfig(Section):
    """Labelled texts: where they are, how they are split, and the terms on which they are used.

    `files` are split by text; every other list is used whole.
    """

    files: list[str] = Field(
        default_factory=list
    )  # relative to the config's folder; globs work too
    train_files: list[str] = Field(default_factory=list)  # only for training
    valid_files: list[str] = Field(default_factory=list)  # only for validation
    test_files: list[str] = Field(default_factory=list)  # only for the test
    extra_tests: dict[str, list[str]] = Field(default_factory=dict)  # further test sets, by name
    text: TextSideConfig = TextSideConfig()
    valid_fraction: Probability = 0.05  # of the texts in `files`
    test_fraction: Probability = 0.05
    max_tokens: Annotated[int, Field(gt=0, le=MAX_TOKENS)] = 400  # of a text; longer ones are cut
    title: str = "untitled"  # for the bundle's manifest
    origin: str = "the user's own files"
    license: str = "not stated"

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if not self.files and not self.train_files:
            raise ValueError("files or train_files must name something to train on")
        if self.valid_fraction + self.test_fraction >= 1.0:
            raise ValueError("valid_fraction + test_fraction must leave a training split")
        return self


class ClassifierDataConfig(LabelDataConfig):
    """Texts that have one label each, or several.

    A file is TSV: text, tab, label. With `form = "folders"` the entries name folders that hold one
    folder for each label; every file in there is a text, or every line of it.
    """

    form: Literal["tsv", "folders"] = "tsv"
    label_first: bool = False  # tsv: label, tab, text
    documents: Literal["file", "line"] = "file"  # folders: what counts as one text
    several: bool = False  # a text has any number of labels
    label_separator: Annotated[str, Field(min_length=1)] = ","  # several: between labels
    min_texts: PositiveInt = 2  # labels of fewer training texts are dropped with their texts


class TaggerDataConfig(LabelDataConfig):
    """Texts with a label for each character.

    `aligned` is TSV: text, tab, a string with one label per character. `columns` is CoNLL's form:
    one word per line, its label in the last column, a blank line after each text.
    """

    form: Literal["aligned", "columns"] = "aligned"
    joiner: str = " "  # columns: between two words of a text
    outside: str = "O"  # the label of characters that are in no tag


class RestoreDataConfig(LabelDataConfig):
    """Any text: it loses something, which is to be put back, character by character."""

    documents: Literal["file", "line"] = "line"  # what counts as one text
    loss: list[Literal["accents", "case"]] = Field(["accents"])  # what a text loses
    min_count: PositiveInt = 2  # characters that would be restored less often are not lost

    @model_validator(mode="after")
    def _loses_something(self) -> Self:
        if not self.loss or len(set(self.loss)) != len(self.loss):
            raise ValueError('loss: "accents", "case" or both')
        return self


class LabelerNetworkConfig(Section):
    """What every labeler has. The dropouts are probabilities of zeroing."""

    cell: Cell = "lstm"
    num_layers: PositiveInt = 1
    hidden_size: PositiveInt = 128  # of each direction
    embedding_dim: PositiveInt = 64
    dropout_embedding: Probability = 0.0  # variational, on the embeddings
    dropout_between: Probability = 0.0  # variational, between recurrent layers
    dropout_output: Probability = 0.0  # variational, before the output layer


class ClassifierNetworkConfig(LabelerNetworkConfig):
    """The classifier. If it reads forward, its answer is known after each token."""

    crf: ClassVar[bool] = False  # labels of texts have no neighbours
    direction: Direction = "both"
    pooling: Pooling = "max"

    @model_validator(mode="after")
    def _pooling_fits(self) -> Self:
        if self.direction == "forward" and self.pooling == "attention":
            raise ValueError('pooling: "attention" needs direction = "both"')
        return self


class TaggerNetworkConfig(LabelerNetworkConfig):
    """The tagger, which reads a text in both directions."""

    direction: ClassVar[Direction] = "both"
    pooling: ClassVar[None] = None  # every character has a label
    crf: bool = False  # a linear-chain CRF: labels of neighbours depend on each other


class LabelerTrainingConfig(OptimizerConfig):
    """Training on labelled texts."""

    batch_size: PositiveInt = 64  # texts
    label_smoothing: Probability = 0.0
    class_weights: Literal["none", "balanced"] = "none"  # balanced: every label counts the same
    select_by: Literal["loss", "accuracy", "macro_f1"] = "loss"  # which weights are kept
    max_valid_texts: PositiveInt = 5000  # labelled at an evaluation
    show: Annotated[int, Field(ge=0)] = 3  # labelled texts printed at every evaluation
