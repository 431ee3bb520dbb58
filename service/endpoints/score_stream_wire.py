"""The wire of a streamed `/score`: its query parameters, and its lines in both directions."""

from typing import Any, Literal

from pydantic import Field

from service.endpoints.score_wire import ScoreFigures, ScoreWord, guess_fields
from service.endpoints.stream_wire import AnsweredLine, StreamedLine, StreamQuery
from service.tasks.values import Figures, Scored


class ScoreStreamQuery(StreamQuery):
    """The query parameters of a streamed `/score`."""

    mode: Literal["lines", "total"] = Field(
        "lines", description="Every line is a text, or the whole stream is one (`text/plain`)."
    )
    bos: bool = Field(True, description="As in the JSON request.")
    eos: bool | None = Field(None, description="As in the JSON request.")
    unknown: Literal["unk", "error", "skip"] = Field("unk", description="As in the JSON request.")
    adapt: bool = Field(
        False,
        description="As in the JSON request: each line is a text, or in mode `total` the whole "
        "stream.",
    )
    guesses: bool = Field(False, description="As in the JSON request; not in mode `total`.")
    units: Literal["word"] | None = Field(
        None, description="As in the JSON request; not in mode `total`."
    )
    percentile: bool = Field(False, description="Mode `lines`: as in the JSON request.")
    every: int = Field(
        65_536, ge=1, description="Mode `total`: characters from one running total to the next."
    )


class StreamedText(StreamedLine):
    """A line of an NDJSON body."""

    context: str = Field("", description="Read before it and not counted.")
    source: str | None = Field(None, description="Encoder-decoders: what it is a translation of.")


class StreamedScore(ScoreFigures, AnsweredLine):
    """The answer to a line."""

    unknown: list[int] = Field(description="As in the JSON answer.")
    unknown_chars: int = Field(description="As in the JSON answer.")
    guesses: float | None = Field(
        None, description="As in the JSON answer; absent, like its bounds, if not requested."
    )
    guesses_low: float | None = Field(None, description="As in the JSON answer.")
    guesses_high: float | None = Field(None, description="As in the JSON answer.")
    words: list[ScoreWord] | None = Field(
        None, description="As in the JSON answer; absent without `units`."
    )
    percentile: float | None = Field(None, description="As in the JSON answer; if requested.")
    percentile_low: float | None = Field(None, description="As in the JSON answer; if requested.")
    percentile_high: float | None = Field(None, description="As in the JSON answer; if requested.")
    percentile_texts: int | None = Field(None, description="As in the JSON answer; if requested.")


class StreamedTotal(ScoreFigures):
    """Mode `total`: the score of the text read so far."""

    done: bool = Field(description="Whether this is the whole text.")
    unknown_chars: int = Field(description="How many characters were outside the vocabulary.")


def figures_of(scored: Figures) -> dict[str, Any]:
    """The figures in every answered line."""
    return {name: getattr(scored, name) for name in ScoreFigures.model_fields}


def parts_of(scored: Scored) -> dict[str, Any]:
    """What the answer to a line has besides its figures, if requested."""
    parts: dict[str, Any] = {} if scored.guesses is None else {**guess_fields(scored.guesses)}
    if scored.words is not None:
        parts["words"] = [ScoreWord.taken_from(word).model_dump() for word in scored.words]
    return parts
