"""A language model's bundle: its manifest, its form in memory, and how it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from service.bundle.files import GraphFiles, check_size, parsed, read_graphs, read_vocab
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
from service.bundle.text import Normalization, Vocabulary


class LanguageModelShape(Record):
    """What the model is, for people to read: the service needs none of it."""

    cell: Cell = Field(description="Recurrent cell.")
    num_layers: int = Field(gt=0, description="Recurrent layers.")
    hidden_size: int = Field(gt=0, description="Units a layer.")
    embedding_dim: int = Field(gt=0, description="Size of a character's embedding.")
    parameters: int = Field(gt=0, description="Trained parameters.")


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
    kind: Literal["model", "baseline"] = Field(description="The bundle itself, or a floor.")
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
        description="One entry a precision and a baseline."
    )


class LanguageModelGoldenVector(Record):
    """A known answer: feed `tokens` from the zero state, and get `logprobs`."""

    precision: Precision = Field(description="The graph it belongs to.")
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
            "worse than `fp32` on held-out text, else `fp32`."
        )
    )
    states: list[StateTensor] = Field(
        min_length=1, description="The recurrent state: tensors to carry, all zero at the start."
    )
    model: LanguageModelShape = Field(description="What the model is.")
    limits: LanguageModelLimits = Field(description="What the bundle allows.")
    data: LanguageModelDataSource = Field(description="What it was trained on.")
    metrics: LanguageModelMetrics = Field(description="Its measured quality.")
    training: TrainingRecord = Field(description="How it was trained.")
    golden: list[LanguageModelGoldenVector] = Field(
        min_length=1, description="Known answers that the loader checks."
    )

    @model_validator(mode="after")
    def _texts_are_whole(self) -> Self:
        if self.normalization.strip:
            raise ValueError("normalization.strip: a language model's texts are not stripped")
        return self

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        names = [state.name for state in self.states]
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
            if all(vector.precision != precision for vector in self.golden):
                raise ValueError(f"golden: there is no vector for {precision}")
        for vector in self.golden:
            if len(vector.logprobs) != len(vector.tokens) - 1:
                raise ValueError("golden: one logprob for every token after the first")
            if not all(0 <= token < self.vocab.size for token in vector.tokens):
                raise ValueError("golden: token outside the vocabulary")
        return self


@dataclass(frozen=True, slots=True)
class LanguageModelBundle(GraphFiles):
    """A language model in memory, every checksum verified. Nothing is read from disk after this."""

    manifest: LanguageModelManifest
    vocab: Vocabulary
    graphs: Mapping[str, bytes]  # file name to ONNX bytes


def read(folder: Path, manifest: LanguageModelManifest) -> LanguageModelBundle:
    """Read and verify the other files of a bundle. Raises BundleError with a one-line cause."""
    tokens = read_vocab(folder, manifest.vocab)
    vocab = parsed(folder.name, manifest.vocab.file, lambda: Vocabulary(tokens))
    check_size(folder.name, manifest.vocab, tokens)
    return LanguageModelBundle(manifest, vocab, read_graphs(folder, manifest.graphs))
