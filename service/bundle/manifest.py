"""The manifest: everything the server must know about a bundle, so that nothing is inferred."""

from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION = 2
# A plain name of a bundle or a file in its folder: no separators, no leading dot.
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MAX_CURVE_POINTS = 1000

Cell: TypeAlias = Literal["rnn", "gru", "lstm"]
Precision: TypeAlias = Literal["fp32", "int8"]
Role: TypeAlias = Literal["sequence", "step", "adapt", "adapt_step", "encoder", "decoder", "labels"]
FileName: TypeAlias = Annotated[str, Field(pattern=NAME_PATTERN)]
Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _iso_time(text: str) -> str:
    """A time with its offset. Raises ValueError."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without an offset from UTC")
    return text


class Record(BaseModel):
    """Frozen, no unknown fields, no NaN or Infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Tensor(Record):
    """One input or output of a graph."""

    name: str = Field(description="Name in the graph.")
    dtype: Literal["float32", "int64", "int32"] = Field(description="Element type.")
    shape: list[int | str] = Field(
        description="Sizes; a name stands for a size that differs between calls: B batch, T time, "
        "N sources or texts, S their tokens, M positions of the memory."
    )


class StateTensor(Record):
    """One tensor of the recurrent state. The service carries it and never looks inside."""

    name: str = Field(
        description="Input of every graph that steps; the output is called `<name>_out`."
    )
    dtype: Literal["float32"] = Field(description="Element type.")
    shape: list[int] = Field(description="Sizes after the batch axis, which is always axis 0.")


class Graph(Record):
    """One ONNX file: reads tokens, carries the states, gives log-probabilities."""

    role: Role = Field(
        description=(
            "`sequence`: B rows of up to T tokens; row b reads its first `lengths[b]` tokens. "
            "`step`: one token a row, with the same numbers to the bit; where a precision has "
            "none, its sequence graph steps at T = 1. `adapt` and `adapt_step`: an output layer "
            "that learns from each token that it reads, fed with what the `sequence` or `step` "
            "graph gives beside its log-probabilities. `encoder`: N sources of up to S tokens to "
            "their memory and the decoder's first states. `decoder`: one token a row, with the "
            "memory of the sources that the rows belong to, as many rows for each. `labels`: N "
            "texts of up to S tokens to log-probabilities of labels, of the texts or of each "
            "place; if texts are read in parts, with the states before and after."
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


class VocabFile(Record):
    """The vocabulary's file: a JSON list of tokens, where the index is the id."""

    file: FileName = Field(description="File name in the bundle's folder.")
    sha256: Sha256 = Field(description="Checksum of the file.")
    size: int = Field(gt=4, description="Number of tokens, the four special ones included.")
    pad: Literal[0] = Field(description="Id of padding; never predicted, never read.")
    bos: Literal[1] = Field(description="Id of the beginning of a text.")
    eos: Literal[2] = Field(description="Id of the end of a text.")
    unk: Literal[3] = Field(description="Id of every character outside the vocabulary.")


class LearningCurve(Record):
    """What validation measured on the way: `values[i]` after `steps[i]` optimizer steps."""

    unit: str = Field(description="Unit of the values, such as `bits a character`.")
    steps: list[int] = Field(max_length=MAX_CURVE_POINTS, description="Optimizer steps, rising.")
    values: list[float] = Field(
        max_length=MAX_CURVE_POINTS,
        description="Values on the validation split, one for each listed step.",
    )

    @model_validator(mode="after")
    def _points_are_whole(self) -> Self:
        if len(self.steps) != len(self.values):
            raise ValueError("steps, values: they must have the same length")
        if any(a >= b for a, b in pairwise(self.steps)):
            raise ValueError("steps: each is greater than the one before")
        return self


class Parent(Record):
    """The weights that training started from."""

    name: str = Field(description="Name of the bundle, or of the run.")
    sha256: Sha256 = Field(description="SHA-256 of the bundle's manifest, or of the run's weights.")


class TrainingRecord(Record):
    """How the weights were trained."""

    config: dict[str, Any] = Field(description="The whole training configuration.")
    seed: int = Field(description="Seed of the run.")
    steps: int = Field(ge=0, description="Optimizer steps behind the exported weights.")
    git_commit: str | None = Field(description="Commit of the code, null outside a checkout.")
    versions: dict[str, str] = Field(description="Versions of Python and of the libraries.")
    parent: Parent | None = Field(
        None, description="What training started from; null if it started from scratch."
    )
    curve: LearningCurve | None = Field(
        None, description="The learning curve; null in bundles that were written without one."
    )


class Heading(Record):
    """The fields that every manifest has."""

    format_version: Literal[2] = Field(description="Version of this schema.")
    name: str = Field(
        pattern=NAME_PATTERN,
        description="The bundle's name, which is also its folder's.",
    )
    description: str = Field(description="One sentence for people.")
    license: str = Field(description="Terms of the weights.")
    created: Annotated[str, AfterValidator(_iso_time)] = Field(
        description="When it was exported, ISO 8601, UTC."
    )
