"""The sections of a configuration: every option with its bounds and its default."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.bundle.encoder_decoder import Attention, MetricName
from service.bundle.manifest import Cell
from service.bundle.text import Normalization, SideNormalization
from service.bundle.tokenization import Tokenization

PositiveInt = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """A part of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class LanguageModelDataConfig(Section):
    """The text, how it is cut into documents and splits, and the terms that it is used on.

    `files` are split; every other list is used whole.
    """

    files: list[str] = []  # relative to the config's folder; folders and globs work too
    train_files: list[str] = []  # only for training
    valid_files: list[str] = []  # only for validation
    test_files: list[str] = []  # only for the test
    documents: Literal["file", "line"] = "file"  # what counts as one document
    strip_lines: bool = False  # with lines as documents: strip the blanks at their ends
    split_by: Literal["document", "position"] = "document"  # position: hold out the end
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # decides which lines or short files
    normalization: Normalization = Normalization()
    min_count: PositiveInt = 1  # rarer characters of the training split become unk
    valid_fraction: Probability = 0.05  # of the lines, of each file, or of all text by position
    test_fraction: Probability = 0.05
    title: str = "untitled"  # for the bundle's manifest
    source: str = "the user's own files"
    license: str = "not stated"

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.normalization.strip:
            raise ValueError("normalization.strip: set strip_lines instead, which strips lines")
        _check_training_split(self)
        if self.strip_lines and self.documents != "line":
            raise ValueError('strip_lines needs documents = "line"')
        return self


class InfillDataConfig(LanguageModelDataConfig):
    """The same for texts whose blanks are filled."""

    lang: str = ""  # for people and clients: a language tag (BCP 47) or a name


class SpansConfig(Section):
    """Which parts of a text become blanks, and how much text around them is read.

    A length is geometric, cut at `max_chars`, as SpanBERT's are in words (Joshi et al. 2020,
    section 3.1); or uniform up to `max_chars`; or that of a whole word.
    """

    context: Annotated[int, Field(ge=8, le=1000)] = 32  # characters read on each side of blanks
    max_chars: PositiveInt = 24  # of a blank
    geometric_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2  # mean length: 1 / geometric_p
    uniform_share: Probability = 0.3  # of the blanks: any length is as likely as another
    word_share: Probability = 0.25  # of the blanks: a whole word
    max_blanks: Annotated[int, Field(ge=1, le=16)] = 5  # in a text
    several_share: Probability = 0.7  # of the texts: two blanks or more
    short_share: Probability = 0.1  # of a text's two sides: cut short, half of them at a line end
    valid_texts: PositiveInt = 1000  # with one blank each, from the validation split
    test_texts: PositiveInt = 2000  # from the test split

    @model_validator(mode="after")
    def _shares_agree(self) -> Self:
        if self.uniform_share + self.word_share > 1.0:
            raise ValueError("uniform_share + word_share: at most 1; the rest is geometric")
        return self

    @property
    def max_source_tokens(self) -> int:
        """Of a text with its blanks: the pieces, the marks of blanks, of the cut, of both edges."""
        return (self.max_blanks + 1) * self.context + self.max_blanks + 1

    @property
    def max_target_tokens(self) -> int:
        """Of the texts of all blanks, with marks between them."""
        return self.max_blanks * (self.max_chars + 1) - 1


class LanguageModelNetworkConfig(Section):
    """The language model. The dropouts are probabilities of zeroing."""

    cell: Cell = "lstm"
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


class OptimizerConfig(Section):
    """What every kind of model trains with: AdamW, its schedule, evaluations, checkpoints."""

    steps: PositiveInt = 5000  # optimizer steps; a few minutes at the default size
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
    patience: PositiveInt | None = None  # evaluations without a better one before stopping
    log_every: PositiveInt = 20  # steps between log lines
    checkpoint_every: PositiveInt = 500  # steps between resumable checkpoints
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    init_from: str | None = None  # a run's folder or a bundle's, relative to the config's
    replicas: PositiveInt = 1  # shares of a batch that are computed in parallel, one thread each
    threads: PositiveInt | None = None  # of all replicas; None: every core this process may use
    device: Literal["cpu", "cuda"] = "cpu"


class LanguageModelTrainingConfig(OptimizerConfig):
    """Truncated backpropagation through time."""

    batch_size: PositiveInt = 32  # lanes that are read side by side
    bptt_len: PositiveInt = 128  # tokens in a window
    order: Literal["stream", "shuffle"] | None = None  # None: files stream, lines shuffle
    restart_probability: Probability = 0.0  # of a window: end at a line end, begin a new text
    ngram_targets: Probability = 0.0  # share of each target from an n-gram of the other texts
    sample_prompt: str = ""  # a sample is printed at every evaluation
    sample_chars: Annotated[int, Field(ge=0)] = 200

    @model_validator(mode="after")
    def _lanes_divide(self) -> Self:
        if self.batch_size % self.replicas:
            raise ValueError("batch_size must be a multiple of replicas")
        return self


class BaselineConfig(Section):
    """The n-gram floors on the same split."""

    max_order: Annotated[int, Field(ge=1, le=8)] = 8
    max_train_chars: PositiveInt = 20_000_000  # n-gram tables are held in memory; more is cut


class NGramConfig(Section):
    """Interpolated modified Kneser-Ney of the training split, and what is pruned from it.

    Pruning costs accuracy, so prune only for size: Alice's 8-gram has 2.098 bits a character with
    all its 273,000 n-grams, 2.113 with 108,000 and 2.177 with 41,000.
    """

    order: Annotated[int, Field(ge=2, le=10)] = 6  # tokens of the longest n-grams
    prune: Annotated[float, Field(ge=0)] = 0.0  # drop n-grams worth less (nats a token); 0: none
    max_ngrams: PositiveInt | None = None  # of two tokens and more, the most valuable; None: all


class NGramModelConfig(NGramConfig):
    """An n-gram as the model itself."""

    cell: Literal["ngram"]


class AdaptConfig(Section):
    """An output layer that learns from the text that it reads."""

    rank: PositiveInt | None = None  # directions of the hidden outputs that it reads; None: all


class TextSideConfig(Section):
    """How the texts of one side, source or target, become tokens."""

    lang: str = ""  # for people and clients: a language tag (BCP 47) or a name
    tokenization: Tokenization = "character"
    normalization: SideNormalization = SideNormalization()
    vocab_size: Annotated[int, Field(ge=64, le=65_000)] = 2000  # bpe: learn at most so many tokens
    min_count: PositiveInt = 1  # rarer tokens become unk; bpe learns no rarer merge


class EncoderDecoderDataConfig(Section):
    """Pairs of source and target: how they are filtered and split, and on what terms used.

    `files` are split by source; every other list is used whole. A file is TSV (source, tab,
    target); two aligned files are written `"sources.txt || targets.txt"`.
    """

    files: list[str] = []  # relative to the config's folder; globs work too
    train_files: list[str] = []  # only for training
    valid_files: list[str] = []  # only for validation
    test_files: list[str] = []  # only for the test
    extra_tests: dict[str, list[str]] = {}  # further test sets, by name
    source: TextSideConfig = TextSideConfig()
    target: TextSideConfig = TextSideConfig()
    share_vocab: bool = False  # one vocabulary for both sides, which must be tokenized alike
    valid_fraction: Probability = 0.05  # of the sources in `files`
    test_fraction: Probability = 0.05
    max_source_tokens: PositiveInt = 200  # longer pairs are dropped, and counted
    max_target_tokens: PositiveInt = 200
    # Tokens of the longer side for each of the shorter.
    max_length_ratio: Annotated[float, Field(gt=1)] | None = None
    title: str = "untitled"  # for the bundle's manifest
    origin: str = "the user's own files"
    license: str = "not stated"

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        _check_training_split(self)
        if self.share_vocab and (
            self.source.model_dump(exclude={"lang"}) != self.target.model_dump(exclude={"lang"})
        ):
            raise ValueError("share_vocab needs the same options in source and target")
        return self


class EncoderDecoderNetworkConfig(Section):
    """The encoder-decoder model. The dropouts are probabilities of zeroing."""

    cell: Cell = "lstm"
    encoder: Literal["recurrent", "crnn"] = "recurrent"
    encoder_layers: PositiveInt = 1
    encoder_hidden_size: PositiveInt = 256  # of each direction
    conv_widths: list[PositiveInt] = [1, 2, 3, 4, 5]  # crnn: characters that a filter covers
    conv_filters: list[PositiveInt] = [64, 64, 96, 96, 128]  # crnn: filters of each width
    pool_stride: PositiveInt = 3  # crnn: source positions that are pooled into one
    highway_layers: Annotated[int, Field(ge=0)] = 2  # crnn
    decoder_layers: PositiveInt = 1
    hidden_size: PositiveInt = 256  # of the decoder
    embedding_dim: PositiveInt = 128
    attention: Attention = "general"
    input_feeding: bool = False
    tie_embeddings: bool = False  # the decoder's output weights are its embeddings
    dropout_embedding: Probability = 0.0  # variational, on the embeddings
    dropout_between: Probability = 0.0  # variational, between recurrent layers
    dropout_output: Probability = 0.0  # variational, before the output layer

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if self.attention == "dot" and self.hidden_size != 2 * self.encoder_hidden_size:
            raise ValueError('attention "dot" needs hidden_size = 2 · encoder_hidden_size')
        if len(self.conv_widths) != len(self.conv_filters):
            raise ValueError("conv_filters must have one number for each of conv_widths")
        return self


class EncoderDecoderTrainingConfig(OptimizerConfig):
    """Training on pairs."""

    batch_size: PositiveInt = 64  # pairs
    label_smoothing: Probability = 0.0
    teacher_forcing: Annotated[float, Field(ge=0, le=1)] = 1.0  # 1: always the true target
    select_by: MetricName = "loss"  # the validation metric that decides which weights are kept
    beam_size: PositiveInt = 5  # of the final evaluation; validation is greedy
    max_valid_sources: PositiveInt = 2000  # translated at an evaluation; the loss covers all pairs
    show: Annotated[int, Field(ge=0)] = 3  # translations printed at every evaluation


def _check_training_split(data: LanguageModelDataConfig | EncoderDecoderDataConfig) -> None:
    if not data.files and not data.train_files:
        raise ValueError("files or train_files must name something to train on")
    if data.valid_fraction + data.test_fraction >= 1.0:
        raise ValueError("valid_fraction + test_fraction must leave a training split")
