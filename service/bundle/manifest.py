"""The manifest: everything the server must know about a bundle, written and never inferred."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.bundle.text import Normalization

FORMAT_VERSION = 2

Cell: TypeAlias = Literal["rnn", "gru", "lstm"]
Precision: TypeAlias = Literal["fp32", "int8"]
Role: TypeAlias = Literal["sequence", "step", "encoder", "decoder"]
Tokenization: TypeAlias = Literal["character", "whitespace", "bpe"]
Attention: TypeAlias = Literal["none", "dot", "general", "additive"]
MetricName: TypeAlias = Literal[
    "loss", "exact_match", "word_error_rate", "symbol_error_rate", "bleu", "chrf"
]
# A plain name in the bundle's own folder: no separators, no dot at the front.
FileName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """Frozen, no unknown fields, no NaN or Infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tensor(_Record):
    """One input or output of a graph."""

    name: str = Field(description="Name in the graph.")
    dtype: Literal["float32", "int64", "int32"] = Field(description="Element type.")
    shape: list[int | str] = Field(
        description="Sizes; a name stands for a size that differs between calls: B batch, T time, "
        "N sources, S source tokens, M positions of the memory."
    )


class StateTensor(_Record):
    """One tensor of the recurrent state. The service carries it and never looks inside."""

    name: str = Field(
        description="Input of every graph that steps; the output is called `<name>_out`."
    )
    dtype: Literal["float32"] = Field(description="Element type.")
    shape: list[int] = Field(description="Sizes after the batch axis, which is always axis 0.")


class Graph(_Record):
    """One ONNX file: reads tokens, carries the states, gives log-probabilities."""

    role: Role = Field(
        description=(
            "`sequence`: B rows of up to T tokens; row b reads its first `lengths[b]` tokens. "
            "`step`: one token a row, with the same numbers to the bit; where a precision has "
            "none, its sequence graph steps at T = 1. `encoder`: N sources of up to S tokens to "
            "their memory and the decoder's first states. `decoder`: one token a row, with the "
            "memory of the sources that the rows belong to, as many rows for each."
        )
    )
    precision: Precision = Field(
        description=(
            "Arithmetic of the recurrent products. `int8`: weights in 8 bits with a scale an "
            "output channel, states in 7 bits with a fixed scale, exact integer sums."
        )
    )
    file: FileName = Field(description="File name in the bundle's folder.")
    sha256: Sha256 = Field(description="Checksum of the file.")
    size_bytes: int = Field(gt=0, description="Size of the file.")
    opset: int = Field(ge=18, description="ONNX operator set of the default domain.")
    inputs: list[Tensor] = Field(description="Inputs in order.")
    outputs: list[Tensor] = Field(description="Outputs in order.")


class VocabFile(_Record):
    """The vocabulary's file: a JSON list of tokens, where the index is the id."""

    file: FileName = Field(description="File name in the bundle's folder.")
    sha256: Sha256 = Field(description="Checksum of the file.")
    size: int = Field(gt=4, description="Number of tokens, the four special ones included.")
    pad: Literal[0] = Field(description="Id of padding; never predicted, never read.")
    bos: Literal[1] = Field(description="Id of the beginning of a text.")
    eos: Literal[2] = Field(description="Id of the end of a text.")
    unk: Literal[3] = Field(description="Id of every character outside the vocabulary.")


class ModelShape(_Record):
    """What the model is, for people to read: the service needs none of it."""

    cell: Cell = Field(description="Recurrent cell.")
    num_layers: int = Field(gt=0, description="Recurrent layers.")
    hidden_size: int = Field(gt=0, description="Units a layer.")
    embedding_dim: int = Field(gt=0, description="Size of a character's embedding.")
    parameters: int = Field(gt=0, description="Trained parameters.")


class Limits(_Record):
    """What the bundle allows, whatever the service's own settings allow."""

    max_tokens: int = Field(gt=0, description="Most tokens that one choice may generate.")


class DataSource(_Record):
    """Where the training text comes from and on what terms."""

    name: str = Field(description="Title of the text.")
    source: str = Field(description="Where it was taken from, exactly enough to find it again.")
    license: str = Field(description="Terms of the text.")
    sha256: Sha256 = Field(description="Checksum over the input files, in order.")
    documents: int = Field(ge=1, description="Documents; one that a split cuts counts in both.")
    train_chars: int = Field(ge=1, description="Characters in the training split.")
    valid_chars: int = Field(ge=0, description="Characters in the validation split.")
    test_chars: int = Field(ge=0, description="Characters in the test split.")


class Measurement(_Record):
    """One model or baseline measured on the split that `Metrics` names."""

    name: str = Field(description="`fp32`, `unigram`, `kneser-ney 5-gram` and so on.")
    kind: Literal["model", "baseline"] = Field(description="The bundle itself, or a floor.")
    loss: float = Field(description="Mean negative log-probability, nats a predicted token.")
    bits_per_char: float = Field(
        description="Total negative log-probability / (characters · ln 2)."
    )
    perplexity: float = Field(description="exp(loss), over every predicted token.")


class Metrics(_Record):
    """What the export measured on held-out text, beside the baselines on the same text."""

    split: Literal["valid", "test"] = Field(description="The held-out split.")
    chars: int = Field(gt=0, description="Characters in it.")
    tokens: int = Field(gt=0, description="Predicted tokens: the characters, and eos a document.")
    measurements: list[Measurement] = Field(description="One entry a precision and a baseline.")


class TrainingRecord(_Record):
    """How the weights came to be."""

    config: dict[str, Any] = Field(description="The whole training configuration.")
    seed: int = Field(description="Seed of the run.")
    steps: int = Field(ge=0, description="Optimizer steps behind the exported weights.")
    git_commit: str | None = Field(description="Commit of the code, null outside a checkout.")
    versions: dict[str, str] = Field(description="Versions of Python and of the libraries.")


class GoldenVector(_Record):
    """A known answer: feed `tokens` from the zero state, and get `logprobs`."""

    precision: Precision = Field(description="The graph it belongs to.")
    tokens: list[int] = Field(min_length=2, description="Ids; the first is bos.")
    logprobs: list[float] = Field(description="log p(tokens[i + 1] | tokens[: i + 1]), in nats.")
    tolerance: float = Field(gt=0, description="Largest mean absolute difference, in nats a token.")


class Heading(_Record):
    """What every manifest begins with."""

    format_version: Literal[2] = Field(description="Version of this schema.")
    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$",
        description="The bundle's name, which is also its folder's.",
    )
    description: str = Field(description="One sentence for people.")
    license: str = Field(description="Terms of the weights.")
    created: str = Field(description="When it was exported, ISO 8601, UTC.")


class Manifest(Heading):
    """`manifest.json` of a language model, field by field."""

    task: Literal["language_model"] = Field(description="Which endpoints the bundle answers.")
    tokenization: Literal["character"] = Field(description="How a text becomes tokens.")
    normalization: Normalization = Field(description="What is done to a text before that.")
    vocab: VocabFile = Field(description="The vocabulary and the special ids.")
    graphs: list[Graph] = Field(min_length=1, description="The ONNX graphs.")
    precision: Precision = Field(
        description=(
            "What `auto` serves: `int8` where the export found it at most 0.002 bits a character "
            "worse than `fp32` on held-out text, else `fp32`."
        )
    )
    states: list[StateTensor] = Field(
        min_length=1, description="The recurrent state: tensors to carry, all zero at the start."
    )
    model: ModelShape = Field(description="What the model is.")
    limits: Limits = Field(description="What the bundle allows.")
    data: DataSource = Field(description="What it was trained on.")
    metrics: Metrics = Field(description="What it is worth.")
    training: TrainingRecord = Field(description="How it was trained.")
    golden: list[GoldenVector] = Field(
        min_length=1, description="Known answers that the loader checks."
    )

    @model_validator(mode="after")
    def _references_hold(self) -> Self:
        names = [state.name for state in self.states]
        if len(set(names)) != len(names):
            raise ValueError("states: every name may stand once")
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


class TokenizerFile(_Record):
    """A tokenizer of the `tokenizers` library, as its own JSON."""

    file: FileName = Field(description="File name in the bundle's folder.")
    sha256: Sha256 = Field(description="Checksum of the file.")


class TextSide(_Record):
    """How the texts of one side, source or target, become tokens."""

    lang: str = Field(description="Its language, for people and clients.")
    tokenization: Tokenization = Field(
        description=(
            "`character`; `whitespace`: symbols with spaces between them; `bpe`: subwords by byte "
            "pair encoding, with the `tokenizer`'s file."
        )
    )
    normalization: Normalization = Field(description="What is done to a text before that.")
    vocab: VocabFile = Field(description="The vocabulary and the special ids.")
    tokenizer: TokenizerFile | None = Field(description="With `bpe`: its merges; else null.")

    @model_validator(mode="after")
    def _bpe_has_a_file(self) -> Self:
        if (self.tokenization == "bpe") != (self.tokenizer is not None):
            raise ValueError("tokenizer: there is one with bpe, and none without")
        return self


class MemoryTensor(_Record):
    """One tensor of what the encoder makes of a source; axis 0 is the source."""

    name: str = Field(description="Output of the encoder and input of the decoder.")
    dtype: Literal["float32"] = Field(description="Element type.")
    shape: list[int | str] = Field(description="Sizes after axis 0; M stands for its positions.")


class EncoderDecoderShape(_Record):
    """What the model is, for people to read: the service needs none of it."""

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


class PairLimits(_Record):
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


class PairSource(_Record):
    """Where the training pairs come from and on what terms."""

    name: str = Field(description="Title of the data.")
    source: str = Field(description="Where they were taken from, exactly enough to find them.")
    license: str = Field(description="Terms of the data.")
    sha256: Sha256 = Field(description="Checksum over the input files, in order.")
    train_pairs: int = Field(ge=1, description="Pairs in the training split.")
    valid_pairs: int = Field(ge=1, description="Pairs in the validation split.")


class PairMeasurement(_Record):
    """One model or baseline measured on a test set."""

    name: str = Field(description="`fp32, beam 5`, `copy`, `nearest source` and so on.")
    kind: Literal["model", "baseline"] = Field(description="The bundle itself, or a floor.")
    values: dict[MetricName, float] = Field(
        description=(
            "`loss`: nats a target token. `exact_match`, `word_error_rate`: share of sources whose "
            "translation is, or is not, one of their targets. `symbol_error_rate`: edits a target "
            "symbol. `bleu`, `chrf`: sacrebleu's, 0 to 100."
        )
    )


class PairMetrics(_Record):
    """What the export measured on one held-out set."""

    split: str = Field(description="`test`, `valid`, or the name of a further test set.")
    pairs: int = Field(gt=0, description="Pairs in it.")
    sources: int = Field(gt=0, description="Different sources in it.")
    measurements: list[PairMeasurement] = Field(description="One entry a model and baseline.")


class Example(_Record):
    """A held-out source and what became of it. Not picked: the first by SHA-256."""

    source: str = Field(description="The source.")
    targets: list[str] = Field(description="What the data have for it.")
    translation: str = Field(description="What the model says, with beam 5.")


class PairGoldenVector(_Record):
    """A known answer: read `source`, feed `tokens`, and get `logprobs`."""

    precision: Precision = Field(description="The decoder it belongs to.")
    source: list[int] = Field(min_length=1, description="Ids; the last is eos.")
    tokens: list[int] = Field(min_length=2, description="Ids; the first is bos.")
    logprobs: list[float] = Field(
        description="log p(tokens[i + 1] | source, tokens[: i + 1]), in nats."
    )
    tolerance: float = Field(gt=0, description="Largest mean absolute difference, in nats a token.")


class EncoderDecoderManifest(Heading):
    """`manifest.json` of an encoder-decoder, field by field."""

    task: Literal["encoder_decoder"] = Field(description="Which endpoints the bundle answers.")
    source: TextSide = Field(description="What is read.")
    target: TextSide = Field(description="What is written.")
    graphs: list[Graph] = Field(
        min_length=2, description="The ONNX graphs: an encoder in fp32, a decoder a precision."
    )
    precision: Precision = Field(
        description=(
            "The decoder that `auto` serves: `int8` where the export found it at most 0.002 bits a "
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
    limits: PairLimits = Field(description="What the bundle allows.")
    data: PairSource = Field(description="What it was trained on.")
    metrics: list[PairMetrics] = Field(min_length=1, description="What it is worth.")
    examples: list[Example] = Field(description="Ten held-out sources, unpicked.")
    training: TrainingRecord = Field(description="How it was trained.")
    golden: list[PairGoldenVector] = Field(
        min_length=1, description="Known answers that the loader checks."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [x.name for x in self.states] + [x.name for x in self.memory]
        if len(set(names)) != len(names):
            raise ValueError("states, memory: every name may stand once")
        sides = [_side_files(self.source), _side_files(self.target)]
        # Both sides may share their files.
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
        if ("fp32", "encoder") not in kinds:
            raise ValueError("graphs: there is no encoder in fp32")
        for precision in {self.precision, "fp32", *(graph.precision for graph in self.graphs)}:
            if (precision, "decoder") not in kinds:
                raise ValueError(f"graphs: there is no decoder in {precision}")
            if all(vector.precision != precision for vector in self.golden):
                raise ValueError(f"golden: there is no vector for {precision}")
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


def _side_files(side: TextSide) -> list[str]:
    return [side.vocab.file, *([side.tokenizer.file] if side.tokenizer is not None else [])]


AnyManifest: TypeAlias = Annotated[Manifest | EncoderDecoderManifest, Field(discriminator="task")]
