"""The wire of a streamed `/score`: its query parameters, and its lines in both directions."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.endpoints.score_wire import ScoreFigures, ScoreWord, guess_fields
from service.http.body import inlined_schema
from service.http.wire import Answer, Problem
from service.tasks.values import Figures, Scored

TEXT, NDJSON = "text/plain", "application/x-ndjson"


class StreamQuery(BaseModel):
    """The query parameters of a streamed `/score`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="Name of a served model.")
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


class StreamedText(BaseModel):
    """A line of an NDJSON body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str = Field(description="The text.")
    context: str = Field("", description="Read before it and not counted.")
    source: str | None = Field(None, description="Encoder-decoders: what it is a translation of.")
    id: Annotated[str, Field(max_length=256)] | int | None = Field(
        None, description="Returned with the answer."
    )


class StreamedScore(ScoreFigures):
    """The answer to a line."""

    line: int = Field(description="Its number, from 1 on.")
    id: str | int | None = Field(None, description="The id from the line; absent if it had none.")
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


class StreamedError(Answer):
    """The error for a line, in place of its score, or the last line of a failed stream."""

    line: int | None = Field(
        None, description="Its number; absent if the error is about the whole stream."
    )
    id: str | int | None = Field(None, description="The id from the line; absent if it had none.")
    error: Problem = Field(description="The same problem document as in other answers.")


class StreamedTotal(ScoreFigures):
    """Mode `total`: the score of the text read so far."""

    done: bool = Field(description="Whether this is the whole text.")
    unknown_chars: int = Field(description="How many characters were outside the vocabulary.")


# The schema of one line, as in OpenAPI 3.2 (`itemSchema`).
ANSWERED_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            NDJSON: {
                "itemSchema": {
                    "anyOf": [
                        inlined_schema(each)
                        for each in (StreamedScore, StreamedError, StreamedTotal)
                    ]
                }
            }
        }
    }
}


def stream_documentation(operation: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI entry of `/score`, with the streamed bodies."""
    operation["requestBody"]["content"] |= {
        TEXT: {"schema": {"type": "string"}, "example": "the white rabbit\nthe whjte rabbit\n"},
        NDJSON: {
            "schema": {"type": "string", "description": "Lines of JSON."},
            "itemSchema": inlined_schema(StreamedText),
            "example": '{"text": "the white rabbit", "id": 1}\n',
        },
    }
    properties = StreamQuery.model_json_schema()["properties"]
    operation["parameters"] = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description") + " For streamed bodies.",
            "schema": schema,
        }
        for name, schema in properties.items()
    ]
    return operation


def figures_of(scored: Figures) -> dict[str, Any]:
    """The figures in every answered line."""
    return {name: getattr(scored, name) for name in ScoreFigures.model_fields}


def parts_of(scored: Scored) -> dict[str, Any]:
    """What the answer to a line has besides its figures, if requested."""
    parts: dict[str, Any] = {} if scored.guesses is None else {**guess_fields(scored.guesses)}
    if scored.words is not None:
        parts["words"] = [ScoreWord.taken_from(word).model_dump() for word in scored.words]
    return parts


def json_line(told: dict[str, Any]) -> bytes:
    """A line of the answer."""
    # In ASCII: some clients treat U+2028 and its like as the end of a line.
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"
