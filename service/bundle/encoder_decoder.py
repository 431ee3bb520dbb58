"""An encoder-decoder's bundle: its manifest, its form in memory, and how it is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator

from service.bundle.confidence import Confidence
from service.bundle.files import BundleError, GraphFiles, read_graphs
from service.bundle.infill import Infill
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

Attention: TypeAlias = Literal["none", "dot", "general", "additive"]
MetricName: TypeAlias = Literal[
    "loss", "exact_match", "word_error_rate", "symbol_error_rate", "bleu", "chrf"
]


class MemoryTensor(Record):
    """One tensor of the encoder's memory of the sources; axis 0 is the source."""

    name: str = Field(description="Output of the encoder and input of the decoder.")
    dtype: Literal["float32"] = Field(description="Element type.")
    shape: list[int | str] = Field(
        description="Sizes after axis 0; M stands for its positions: zeros may follow the source's."
    )

    @model_validator(mode="after")
    def _has_positions(self) -> Self:
        if [size for size in self.shape if isinstance(size, str)] != ["M"]:
            raise ValueError("shape: numbers, and M once")
        return self


class EncoderDecoderShape(Record):
    """The model's architecture; the service only uses whether there are convolutions."""

    cell: Cell = Field(description="Recurrent cell.")
    encoder: Literal["recurrent", "crnn"] = Field(
        description="Bidirectional layers alone, or behind convolutions and pooling."
    )
    encoder_layers: int = Field(gt=0, description="Bidirectional layers.")
    encoder_hidden_size: int = Field(gt=0, description="Units of each direction.")
    decoder_layers: int = Field(gt=0, description="Recurrent layers of the decoder.")
    hidden_size: int = Field(gt=0, description="Units of a decoder layer.")
    embedding_dim: int = Field(gt=0, description="Size of a token's embedding.")
    attention: Attention = Field(description="How the decoder attends to the source.")
    input_feeding: bool = Field(description="Whether a step reads the last step's readout.")
    parameters: int = Field(gt=0, description="Trained parameters.")


class EncoderDecoderLimits(Record):
    """What the bundle allows, whatever the service's own settings allow."""

    max_source_tokens: int = Field(gt=0, description="Longest source, eos not counted.")
    max_tokens_ratio: float = Field(
        ge=0,
        description="A target has at most this many tokens for a token of the source (eos "
        "counted on both sides), …",
    )
    max_tokens_extra: int = Field(ge=1, description="… and this many more.")

    def max_tokens(self, source_tokens: int) -> int:
        """The longest target of a source of so many tokens, eos counted on both sides."""
        return int(self.max_tokens_ratio * source_tokens) + self.max_tokens_extra


class EncoderDecoderDataSource(Record):
    """Where the training pairs come from and on what terms."""

    name: str = Field(description="Title of the data.")
    source: str = Field(description="Where they were taken from, exactly enough to find them.")
    license: str = Field(description="Terms of the data.")
    sha256: Sha256 = Field(description="Checksum over the input files, in order.")
    train_pairs: int = Field(ge=1, description="Pairs in the training split.")
    valid_pairs: int = Field(ge=1, description="Pairs in the validation split.")


class EncoderDecoderMeasurement(Record):
    """One model or baseline measured on a test set."""

    name: str = Field(description="`greedy` and `beam 5`, searched in PyTorch; `copy` and so on.")
    kind: Literal["model", "baseline"] = Field(description="The bundle itself, or a floor.")
    values: dict[MetricName, float] = Field(
        description=(
            "`loss`: nats a target token. `exact_match`, `word_error_rate`: share of sources whose "
            "translation is, or is not, one of their targets. `symbol_error_rate`: edits a target "
            "symbol. `bleu`, `chrf`: sacrebleu's, 0 to 100."
        )
    )


class EncoderDecoderMetrics(Record):
    """What the export measured on one held-out set."""

    split: str = Field(description="`test`, `valid`, or the name of a further test set.")
    pairs: int = Field(gt=0, description="Pairs in it.")
    sources: int = Field(gt=0, description="Different sources in it.")
    measurements: list[EncoderDecoderMeasurement] = Field(
        description="One entry a model and baseline."
    )


class Example(Record):
    """A held-out source and its translation. Not cherry-picked: the first by SHA-256."""

    source: str = Field(description="The source.")
    targets: list[str] = Field(description="Its targets in the data.")
    translation: str = Field(description="The model's translation, with beam 5.")


class EncoderDecoderGoldenVector(Record):
    """A known answer: read `source`, feed `tokens`, and get `logprobs`."""

    precision: Precision = Field(description="The graphs it belongs to.")
    source: list[int] = Field(min_length=1, description="Ids; the last is eos.")
    tokens: list[int] = Field(min_length=2, description="Ids; the first is bos.")
    logprobs: list[float] = Field(
        description="log p(tokens[i + 1] | source, tokens[: i + 1]), in nats."
    )
    tolerance: float = Field(
        gt=0, description="Largest mean absolute difference, in nats per token."
    )


class EncoderDecoderManifest(Heading):
    """`manifest.json` of an encoder-decoder, field by field."""

    task: Literal["encoder_decoder"] = Field(description="Which endpoints the bundle answers.")
    source: TextSide = Field(description="The side that is read.")
    target: TextSide = Field(description="The side that is written.")
    graphs: list[Graph] = Field(
        min_length=2, description="The ONNX graphs: an encoder and a decoder for each precision."
    )
    precision: Precision = Field(
        description=(
            "What `auto` serves: `int8` where the export found it at most 0.002 bits per "
            "target token worse than `fp32` on held-out pairs, else `fp32`."
        )
    )
    states: list[StateTensor] = Field(
        min_length=1, description="The decoder's state; the encoder gives its beginning."
    )
    memory: list[MemoryTensor] = Field(
        description="What the decoder attends to; empty without attention."
    )
    memory_stride: int = Field(
        ge=1, description="Source tokens that one position of the memory stands for."
    )
    model: EncoderDecoderShape = Field(description="What the model is.")
    limits: EncoderDecoderLimits = Field(description="What the bundle allows.")
    infill: Infill | None = Field(
        None,
        description="How blanks are read and written, if the model was trained to fill them: it "
        "then answers /infill and not /translate. Left out otherwise.",
    )
    confidence: Confidence | None = Field(
        None,
        description="How sure a translation is. Left out: there were too few pairs to fit it on, "
        "or the bundle was written before.",
    )
    data: EncoderDecoderDataSource = Field(description="What it was trained on.")
    metrics: list[EncoderDecoderMetrics] = Field(min_length=1, description="Its measured quality.")
    examples: list[Example] = Field(description="Ten held-out sources, not cherry-picked.")
    training: TrainingRecord = Field(description="How it was trained.")
    golden: list[EncoderDecoderGoldenVector] = Field(
        min_length=1, description="Known answers that the loader checks."
    )

    @property
    def fills(self) -> bool:
        """Whether it fills blanks, and does not translate."""
        return self.infill is not None

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [x.name for x in self.states] + [x.name for x in self.memory]
        if len(set(names)) != len(names):
            raise ValueError("states, memory: names must be unique")
        sides = [self.source.files, self.target.files]
        # The two sides may share their files.
        shared = sides[:1] if self.source.vocab == self.target.vocab else sides
        files = [graph.file for graph in self.graphs]
        files += [file for side in shared for file in side]
        if len(set(files)) != len(files) or "manifest.json" in files:
            raise ValueError("graphs, vocab, tokenizer: they must be different files")
        return self

    @model_validator(mode="after")
    def _graphs_are_there(self) -> Self:
        kinds = [(graph.precision, graph.role) for graph in self.graphs]
        if len(set(kinds)) != len(kinds):
            raise ValueError("graphs: one graph for each precision and role")
        for precision in {self.precision, "fp32", *(graph.precision for graph in self.graphs)}:
            for role in ("encoder", "decoder"):
                if (precision, role) not in kinds:
                    raise ValueError(f"graphs: there is no {role} in {precision}")
            if all(vector.precision != precision for vector in self.golden):
                raise ValueError(f"golden: there is no vector for {precision}")
        return self

    @model_validator(mode="after")
    def _blanks_fit(self) -> Self:
        sides = (self.source, self.target)
        plain = all(x.tokenization == "character" and not x.normalization.strip for x in sides)
        if self.infill is not None and not (plain and self.source.vocab == self.target.vocab):
            raise ValueError(
                "infill: both sides need the same characters, and must not be stripped"
            )
        return self

    @model_validator(mode="after")
    def _golden_vectors_fit(self) -> Self:
        for vector in self.golden:
            if len(vector.logprobs) != len(vector.tokens) - 1:
                raise ValueError("golden: one logprob for every token after the first")
            in_source = all(0 <= token < self.source.vocab.size for token in vector.source)
            if not in_source or not all(0 <= x < self.target.vocab.size for x in vector.tokens):
                raise ValueError("golden: token outside the vocabulary")
        return self


@dataclass(frozen=True, slots=True)
class EncoderDecoderBundle(GraphFiles):
    """An encoder-decoder in memory, every checksum verified."""

    manifest: EncoderDecoderManifest
    source: Tokenizer
    target: Tokenizer
    graphs: Mapping[str, bytes]  # file name to ONNX bytes


def read(folder: BundleFolder, manifest: EncoderDecoderManifest) -> EncoderDecoderBundle:
    """Read and verify the other files of a bundle. Raises BundleError with a one-line cause."""
    source, target = (read_side(folder, side) for side in (manifest.source, manifest.target))
    if manifest.infill is not None and not set(manifest.infill.marks) <= set(source.tokens):
        raise BundleError(f"{folder.name}: infill: the vocabulary lacks a mark")
    return EncoderDecoderBundle(manifest, source, target, read_graphs(folder, manifest.graphs))
