"""A labeler's bundle: its manifest, its form in memory, and how it is read.

A labeler gives labels to a text, or to each of its characters.

S places (bos, the text's tokens and eos), L labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from service.bundle.files import GraphFiles, read_graphs
from service.bundle.links import BundleFolder
from service.bundle.manifest import (
    Cell,
    Graph,
    Heading,
    Precision,
    Record,
    Sha256,
    StateTensor,
    TrainingRecord,
)
from service.bundle.text_side import TextSide, read_side
from service.bundle.tokenization import Tokenizer

Scope: TypeAlias = Literal["text", "character"]
Scheme: TypeAlias = Literal["plain", "bio"]
Direction: TypeAlias = Literal["both", "forward"]
Pooling: TypeAlias = Literal["attention", "max", "last"]
LabelMetric: TypeAlias = Literal[
    "loss",
    "accuracy",
    "macro_f1",
    "micro_f1",
    "ece",
    "exact_match",
    "span_f1",
    "word_error_rate",
    "character_error_rate",
    "base_errors",
]

MAX_LABELS = 2048
# Longest text that a bundle allows. A worker reads a text in one step, and must not seem to hang.
MAX_TOKENS = 2**15
# The log-probability of a label that its character cannot have. The exponential of it is zero, but
# it is finite itself, so that differences between two graphs stay numbers.
FORBIDDEN = -1e4
# Of a transition. Larger ones would swallow the log-probabilities that they are added to.
Score: TypeAlias = Annotated[float, Field(ge=FORBIDDEN, le=-FORBIDDEN)]


class Labels(Record):
    """The labels, and whether texts or characters have them."""

    names: list[str] = Field(
        min_length=1, max_length=MAX_LABELS, description="The labels; the index is the id."
    )
    scope: Scope = Field(
        description="`text`: a text has labels; `character`: each of its characters has one."
    )
    several: bool = Field(
        description="Whether a text may have several labels, or none. Each label then has a "
        "probability of its own."
    )
    scheme: Scheme = Field(
        "plain",
        description="How characters become tags. `plain`: a run of one label is a tag. `bio`: "
        "`B-x` begins a tag x and `I-x` continues it (Ramshaw and Marcus 1995).",
    )
    outside: str | None = Field(
        None, description="The label of characters that are in no tag; null if there is none."
    )
    applied: bool = Field(
        False,
        description="Whether labels are the characters of a restored text; the empty label leaves "
        "a character as it is.",
    )

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(set(self.names)) != len(self.names):
            raise ValueError("names: they must differ")
        if self.outside is not None and self.outside not in self.names:
            raise ValueError("outside: it must be one of the names")
        if self.scope == "text" and (self.scheme != "plain" or self.outside is not None):
            raise ValueError("scheme, outside: only for labels of characters")
        if self.scope == "character" and self.several:
            raise ValueError("several: only for labels of texts")
        characters = all(len(name) == 1 for name in self.names if name)
        if self.applied and not (self.scope == "character" and self.outside == "" and characters):
            raise ValueError("applied: labels are characters, and the empty one is `outside`")
        return self


class LinearChain(Record):
    """Transitions between the labels of neighbouring characters: a linear-chain CRF.

    p(labels | text) is proportional to exp(first[y_1] + Σ logprob_i(y_i) + Σ transitions[y_i][y_j]
    + last[y_n]), with the graph's log-probabilities (Lafferty et al. 2001).
    """

    transitions: list[list[Score]] = Field(description="[from][to], in nats.")
    first: list[Score] = Field(description="[label] of the first character, in nats.")
    last: list[Score] = Field(description="[label] of the last character, in nats.")


class LabelerShape(Record):
    """The model's architecture; the service uses its `direction` and `pooling`."""

    cell: Cell = Field(description="Recurrent cell.")
    direction: Direction = Field(
        description="`both`: layers read a text in both directions; `forward`: only from its "
        "beginning, so that an answer is known after each token."
    )
    num_layers: int = Field(gt=0, description="Recurrent layers.")
    hidden_size: int = Field(gt=0, description="Units of each direction.")
    embedding_dim: int = Field(gt=0, description="Size of a token's embedding.")
    pooling: Pooling | None = Field(
        description="How the outputs at the places of a text are combined; null for labels of "
        "characters."
    )
    parameters: int = Field(gt=0, description="Trained parameters.")


class LabelerLimits(Record):
    """What the bundle allows, whatever the service's own settings allow."""

    max_tokens: int = Field(
        gt=0, le=MAX_TOKENS, description="Longest text, bos and eos not counted."
    )


class LabelerDataSource(Record):
    """Where the labelled texts come from and on what terms."""

    name: str = Field(description="Title of the data.")
    source: str = Field(description="Where they were taken from, exactly enough to find them.")
    license: str = Field(description="Terms of the data.")
    sha256: Sha256 = Field(description="Checksum over the input files, in order.")
    train_texts: int = Field(ge=1, description="Texts in the training split.")
    valid_texts: int = Field(ge=1, description="Texts in the validation split.")


class LabelerMeasurement(Record):
    """One model or baseline measured on a test set."""

    name: str = Field(description="`fp32`, `int8`; `majority` and so on.")
    kind: Literal["model", "baseline"] = Field(description="The bundle itself, or a floor.")
    values: dict[LabelMetric, float] = Field(
        description=(
            "`loss`: nats per label. `accuracy`: share of right labels; if texts have several, "
            "share of texts whose labels are all right. `macro_f1`: mean F1 of the labels. "
            "`micro_f1`: F1 over all labels together. `ece`: expected calibration error of the "
            "likeliest label, in 15 bins of equal mass. `exact_match`: share of texts whose "
            "characters' labels are all right. `span_f1`: F1 of whole tags. `word_error_rate`, "
            "`character_error_rate`: of restored texts. `base_errors`: characters of restored "
            "texts that became another letter."
        )
    )


class LabelerMetrics(Record):
    """What the export measured on one held-out set."""

    split: str = Field(description="`test`, `valid`, or the name of a further test set.")
    texts: int = Field(gt=0, description="Texts in it.")
    labels: int = Field(gt=0, description="Labels in it: those of its texts, or of its characters.")
    measurements: list[LabelerMeasurement] = Field(
        description="One entry for each model and baseline."
    )


class LabelledExample(Record):
    """A held-out text and its labels. Not cherry-picked: the first by SHA-256."""

    text: str = Field(description="The text.")
    labels: list[str] = Field(description="Its labels in the data.")
    found: list[str] = Field(description="The model's labels.")


class LabelerGoldenVector(Record):
    """A known answer: read `tokens`, and get `logprobs`."""

    precision: Precision = Field(description="The graphs it belongs to.")
    tokens: list[int] = Field(min_length=1, description="Ids, bos and eos included.")
    labels: list[int] = Field(
        min_length=1,
        description="Ids of labels: of the text, or one for each character after bos.",
    )
    logprobs: list[float] = Field(description="log P of each of these labels, in nats.")
    tolerance: float = Field(
        gt=0, description="Largest mean absolute difference, in nats per label."
    )

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if len(self.labels) != len(self.logprobs):
            raise ValueError("logprobs: one for every label")
        return self


class LabelerManifest(Heading):
    """`manifest.json` of a labeler, field by field."""

    task: Literal["labeler"] = Field(description="Which endpoints the bundle answers.")
    text: TextSide = Field(description="How texts become tokens.")
    labels: Labels = Field(description="The labels.")
    chain: LinearChain | None = Field(
        None, description="Transitions between labels of characters; null if there are none."
    )
    graphs: list[Graph] = Field(
        min_length=1, description="The ONNX graphs: one for each precision."
    )
    precision: Precision = Field(
        description=(
            "What `auto` serves: `int8` where the export found it at most 0.002 bits per label "
            "worse than `fp32` on held-out texts, else `fp32`."
        )
    )
    states: list[StateTensor] = Field(
        description="The state after a part of a text; empty if texts are read in both directions."
    )
    temperature: float = Field(
        gt=0,
        description="What the graphs divide logits by; fitted on the validation split.",
    )
    model: LabelerShape = Field(description="What the model is.")
    limits: LabelerLimits = Field(description="What the bundle allows.")
    data: LabelerDataSource = Field(description="What it was trained on.")
    metrics: list[LabelerMetrics] = Field(
        min_length=1, description="What it is worth, beside the baselines."
    )
    examples: list[LabelledExample] = Field(description="Held-out texts, unpicked.")
    training: TrainingRecord = Field(description="How it was trained.")
    golden: list[LabelerGoldenVector] = Field(
        min_length=1, description="Known answers, checked when the bundle is loaded."
    )

    @property
    def fills(self) -> bool:
        """Whether it fills blanks; no labeler does."""
        return False

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        count = len(self.labels.names)
        chain = self.chain
        if chain is not None:
            if self.labels.scope == "text":
                raise ValueError("chain: only for labels of characters")
            rows = [chain.first, chain.last, *chain.transitions]
            if len(chain.transitions) != count or any(len(row) != count for row in rows):
                raise ValueError("chain: one number for every label, or pair of labels")
        names = [state.name for state in self.states]
        if len(set(names)) != len(names):
            raise ValueError("states: names must be unique")
        if (self.model.direction == "forward") != bool(self.states):
            raise ValueError("states: for models that read forward, and for no others")
        if self.model.direction == "forward" and self.labels.scope == "character":
            raise ValueError("model.direction: labels of characters need both directions")
        if self.labels.scope == "character" and self.text.tokenization != "character":
            raise ValueError("text.tokenization: labels of characters need tokens of characters")
        if (self.labels.scope == "text") != (self.model.pooling is not None):
            raise ValueError("model.pooling: for labels of texts, and for no others")
        return self

    @model_validator(mode="after")
    def _files_are_there(self) -> Self:
        precisions = [graph.precision for graph in self.graphs]
        if any(graph.role != "labels" for graph in self.graphs):
            raise ValueError("graphs: their role is labels")
        if len(set(precisions)) != len(precisions):
            raise ValueError("graphs: one graph for each precision")
        for precision in {self.precision, "fp32", *precisions}:
            if precision not in precisions:
                raise ValueError(f"graphs: there is none in {precision}")
            if all(vector.precision != precision for vector in self.golden):
                raise ValueError(f"golden: there is no vector for {precision}")
        files = [*(graph.file for graph in self.graphs), *self.text.files]
        if len(set(files)) != len(files) or "manifest.json" in files:
            raise ValueError("graphs, vocab, tokenizer: they must be different files")
        return self

    @model_validator(mode="after")
    def _golden_vectors_fit(self) -> Self:
        for vector in self.golden:
            if not all(0 <= token < self.text.vocab.size for token in vector.tokens):
                raise ValueError("golden: token outside the vocabulary")
            if not all(0 <= label < len(self.labels.names) for label in vector.labels):
                raise ValueError("golden: no such label")
            # Characters stand between bos and eos.
            is_of_text = self.labels.scope == "text"
            if not is_of_text and len(vector.labels) != len(vector.tokens) - 2:
                raise ValueError("golden: one label for every character")
        return self


@dataclass(frozen=True, slots=True)
class LabelerBundle(GraphFiles):
    """A labeler in memory, every checksum verified."""

    manifest: LabelerManifest
    text: Tokenizer
    graphs: Mapping[str, bytes]  # file name to ONNX bytes


def read(folder: BundleFolder, manifest: LabelerManifest) -> LabelerBundle:
    """Read and verify the other files of a bundle. Raises BundleError with a one-line cause."""
    text = read_side(folder, manifest.text)
    return LabelerBundle(manifest, text, read_graphs(folder, manifest.graphs))
