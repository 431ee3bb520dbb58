"""A language model's bundle: its manifest, its form in memory, and how it is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from service.bundle.files import GraphFiles, check_size, parsed, read_graphs, read_vocab
from service.bundle.guesses import GuessCurve
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
    VocabFile,
)
from service.bundle.percentiles import Percentiles
from service.bundle.text import Normalization, Vocabulary

# What a row carries while it adapts, in bytes: many rows run side by side.
MAX_ADAPT_BYTES = 2**20
_FLOAT_BYTES = 4
# By how much weights may miss 1, which they add up to but for rounding.
_WEIGHTS_TOLERANCE = 1e-6


class LanguageModelShape(Record):
    """What the model is, for people to read: the service needs none of it."""

    cell: Cell | Literal["ngram"] = Field(description="Recurrent cell, or `ngram`.")
    num_layers: int | None = Field(gt=0, description="Recurrent layers; null for an n-gram.")
    hidden_size: int | None = Field(gt=0, description="Units a layer; null for an n-gram.")
    embedding_dim: int | None = Field(
        gt=0, description="Size of a character's embedding; null for an n-gram."
    )
    parameters: int = Field(gt=0, description="Trained parameters, or an n-gram's n-grams.")
    order: int | None = Field(
        None, gt=1, description="Tokens of the longest n-gram; null for a network."
    )


class MixturePart(Record):
    """One of the models whose probabilities are averaged."""

    name: str = Field(description="Name of its measurement in `metrics`, such as `lstm`.")
    model: LanguageModelShape = Field(description="What it is.")
    weight: float = Field(gt=0.0, le=1.0, description="Its share; those of all parts add up to 1.")
    temperature: float | None = Field(
        None, gt=0.0, description="What its logits are divided by; null for an n-gram."
    )


class Fit(Record):
    """The text that weights, temperatures and rates were fitted on, after training."""

    split: Literal["valid"] = Field(description="Its split; figures are measured on other text.")
    chars: int = Field(gt=0, description="Its characters.")


class Adapt(Record):
    """How the output layers learn from the text that they read.

    With h the hidden outputs of a network, P its projection to `rank` numbers and p its prediction,
    D P h is added to the logits. Once the next token is known, D <- (1 - decay) D - rate (p - e)
    (P h)^T, where e is 1 at that token and 0 elsewhere.
    """

    states: list[StateTensor] = Field(
        min_length=1, description="Tensors to carry besides `states`; all zero at the start."
    )
    rank: int | None = Field(gt=0, description="Rows of P; null where P is left out.")
    rate: float = Field(gt=0.0, description="Learning rate.")
    decay: float = Field(ge=0.0, lt=1.0, description="What D loses at every token.")
    weights: list[Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        description="While adapting: the weights of the parts."
    )
    temperatures: list[Annotated[float, Field(gt=0.0)] | None] = Field(
        description="While adapting: their temperatures."
    )
    exponent: float = Field(1.0, gt=0.0, description="While adapting: the mixture's exponent.")

    @property
    def size_bytes(self) -> int:
        """The states of a row."""
        return _FLOAT_BYTES * sum(math.prod(state.shape) for state in self.states)

    @model_validator(mode="after")
    def _states_are_bounded(self) -> Self:
        if self.size_bytes > MAX_ADAPT_BYTES:
            raise ValueError(
                f"adapt.states: {self.size_bytes} bytes a row, at most {MAX_ADAPT_BYTES} are "
                "allowed; a lower rank makes them smaller"
            )
        return self


class LanguageModelLimits(Record):
    """What the bundle allows, whatever the service's own settings allow."""

    max_tokens: int = Field(gt=0, description="Most tokens that one choice may generate.")


class LanguageModelDataSource(Record):
    """Where the training text comes from and on what terms."""

    name: str = Field(description="Title of the text.")
    source: str = Field(description="Where it was taken from, exactly enough to find it again.")
    license: str = Field(description="Terms of the text.")
    sha256: Sha256 = Field(description="Checksum over the input files, in order.")
    documents: int = Field(ge=1, description="Documents; one that a split cuts counts in both.")
    train_chars: int = Field(ge=1, description="Characters in the training split.")
    valid_chars: int = Field(ge=0, description="Characters in the validation split.")
    test_chars: int = Field(ge=0, description="Characters in the test split.")


class LanguageModelMeasurement(Record):
    """One model or baseline measured on the split that `Metrics` names."""

    name: str = Field(description="`fp32`, `unigram`, `kneser-ney 5-gram` and so on.")
    kind: Literal["model", "adapting", "part", "baseline"] = Field(
        description="The bundle itself, the bundle while it adapts, a part of it, or a baseline."
    )
    loss: float = Field(description="Mean negative log-probability, nats a predicted token.")
    bits_per_char: float = Field(
        description="Total negative log-probability / (characters · ln 2)."
    )
    perplexity: float = Field(description="exp(loss), over every predicted token.")
    standard_error: float | None = Field(
        default=None,
        ge=0,
        description="Of `bits_per_char`, over the held-out texts or stretches of a long one.",
    )
    difference_error: float | None = Field(
        default=None,
        ge=0,
        description=(
            "Of a baseline: the standard error of its `bits_per_char` less the model's, which is "
            "smaller than either's own, since both are measured on the same texts."
        ),
    )


class LanguageModelMetrics(Record):
    """What the export measured on held-out text, beside the baselines on the same text."""

    split: Literal["valid", "test"] = Field(description="The held-out split.")
    chars: int = Field(gt=0, description="Characters in it.")
    tokens: int = Field(gt=0, description="Predicted tokens: the characters, and eos a document.")
    measurements: list[LanguageModelMeasurement] = Field(
        description="One entry for each precision (adapting or not), part and baseline."
    )
    expected_bits_per_char: float | None = Field(
        None,
        ge=0.0,
        description="Bits per character that the model in `fp32` expects to need: the mean entropy "
        "of its predictions. A calibrated model needs as many.",
    )


class LanguageModelGoldenVector(Record):
    """A known answer: feed `tokens` from the zero state, and get `logprobs`."""

    precision: Precision = Field(description="The graph it belongs to.")
    adapt: bool = Field(False, description="Whether the output layer adapts.")
    tokens: list[int] = Field(min_length=2, description="Ids; the first is bos.")
    logprobs: list[float] = Field(description="log p(tokens[i + 1] | tokens[: i + 1]), in nats.")
    tolerance: float = Field(
        gt=0, description="Largest mean absolute difference, in nats per token."
    )


class LanguageModelManifest(Heading):
    """`manifest.json` of a language model, field by field."""

    task: Literal["language_model"] = Field(description="Which endpoints the bundle answers.")
    tokenization: Literal["character"] = Field(description="How a text becomes tokens.")
    normalization: Normalization = Field(description="What is done to a text before that.")
    vocab: VocabFile = Field(description="The vocabulary and the special ids.")
    graphs: list[Graph] = Field(min_length=1, description="The ONNX graphs.")
    precision: Precision = Field(
        description=(
            "What `auto` serves: `int8` where the export found it at most 0.002 bits per character "
            "worse than `fp32` on held-out text, else `fp32`. A small LSTM or GRU may hold `int8` "
            "and is served in `fp32`, which reads faster."
        )
    )
    states: list[StateTensor] = Field(
        min_length=1, description="The recurrent state: tensors to carry, all zero at the start."
    )
    model: LanguageModelShape = Field(description="What the model is; the first part of a mixture.")
    parts: list[MixturePart] = Field(
        [], description="The models that are mixed; empty in older bundles."
    )
    exponent: float = Field(
        1.0,
        gt=0.0,
        description="The power that the mixture's probabilities are raised to; they are normalized "
        "again. Without it, an average of several predictions is less sure than it should be.",
    )
    fit: Fit | None = Field(
        None, description="What weights, temperatures and rates were fitted on."
    )
    adapt: Adapt | None = Field(None, description="How it adapts; null where it cannot.")
    limits: LanguageModelLimits = Field(description="What the bundle allows.")
    data: LanguageModelDataSource = Field(description="What it was trained on.")
    metrics: LanguageModelMetrics = Field(description="Its measured quality.")
    percentiles: Percentiles | None = Field(
        None,
        description="How surprising held-out texts are, by length; null in older bundles, and if "
        "there are too few.",
    )
    guesses: GuessCurve | None = Field(
        None,
        description="The curve of guess numbers; null if texts are not lines or are too varied for "
        "the samples, and in older bundles.",
    )
    training: TrainingRecord = Field(description="How it was trained.")
    golden: list[LanguageModelGoldenVector] = Field(
        min_length=1, description="Known answers that the loader checks."
    )

    @property
    def fills(self) -> bool:
        """Whether it fills blanks: a language model compares what a blank may be."""
        return True

    @model_validator(mode="after")
    def _texts_are_whole(self) -> Self:
        if self.normalization.strip:
            raise ValueError("normalization.strip: a language model's texts are not stripped")
        return self

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        adapt_states = [] if self.adapt is None else self.adapt.states
        names = [state.name for state in [*self.states, *adapt_states]]
        if len(set(names)) != len(names):
            raise ValueError("states: names must be unique")
        files = [self.vocab.file, *(graph.file for graph in self.graphs)]
        if len(set(files)) != len(files) or "manifest.json" in files:
            raise ValueError("vocab.file and graphs[].file must be different files")
        kinds = [(graph.precision, graph.role) for graph in self.graphs]
        if len(set(kinds)) != len(kinds):
            raise ValueError("graphs: one graph for each precision and role")
        for precision in {self.precision, "fp32", *(graph.precision for graph in self.graphs)}:
            if (precision, "sequence") not in kinds:
                raise ValueError(f"graphs: there is no sequence graph in {precision}")
            if all(x.precision != precision or x.adapt for x in self.golden):
                raise ValueError(f"golden: there is no vector for {precision}")
        for vector in self.golden:
            if len(vector.logprobs) != len(vector.tokens) - 1:
                raise ValueError("golden: one logprob for every token after the first")
            if not all(0 <= token < self.vocab.size for token in vector.tokens):
                raise ValueError("golden: token outside the vocabulary")
        return self

    @model_validator(mode="after")
    def _weights_add_up(self) -> Self:
        _check_weights("parts", [part.weight for part in self.parts])
        if self.adapt is not None:
            _check_weights("adapt.weights", self.adapt.weights)
        return self

    @model_validator(mode="after")
    def _adapting_is_whole(self) -> Self:
        roles = {graph.role for graph in self.graphs}
        adapting = {vector.precision for vector in self.golden if vector.adapt}
        if self.adapt is None:
            if "adapt" in roles or "adapt_step" in roles or adapting:
                raise ValueError("adapt: graphs and golden vectors that adapt need it")
            return self
        if "adapt" not in roles:
            raise ValueError("graphs: there is no adapt graph")
        if missing := {graph.precision for graph in self.graphs} - adapting:
            raise ValueError(f"golden: there is no adapting vector for {min(missing)}")
        if not len(self.adapt.weights) == len(self.adapt.temperatures) == len(self.parts):
            raise ValueError("adapt: one weight and one temperature for every part")
        return self


def _check_weights(where: str, weights: Sequence[float]) -> None:
    """Raise ValueError where there are weights that do not add up to 1."""
    if weights and not math.isclose(sum(weights), 1.0, abs_tol=_WEIGHTS_TOLERANCE):
        raise ValueError(f"{where}: weights add up to {sum(weights):.6g}, not to 1")


@dataclass(frozen=True, slots=True)
class LanguageModelBundle(GraphFiles):
    """A language model in memory, every checksum verified. Nothing is read from disk after this."""

    manifest: LanguageModelManifest
    vocab: Vocabulary
    graphs: Mapping[str, bytes]  # file name to ONNX bytes


def read(folder: BundleFolder, manifest: LanguageModelManifest) -> LanguageModelBundle:
    """Read and verify the other files of a bundle. Raises BundleError with a one-line cause."""
    tokens = read_vocab(folder, manifest.vocab)
    vocab = parsed(folder.name, manifest.vocab.file, lambda: Vocabulary(tokens))
    check_size(folder.name, manifest.vocab, tokens)
    return LanguageModelBundle(manifest, vocab, read_graphs(folder, manifest.graphs))
