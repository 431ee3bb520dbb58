"""The wire that all streamed paths share: lines in both directions, and how they are documented."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.http.body import inlined_schema
from service.http.wire import Answer, Problem

TEXT, NDJSON = "text/plain", "application/x-ndjson"


class StreamQuery(BaseModel):
    """The query parameters of a streamed body."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="Name of a served model.")


class StreamedLine(BaseModel):
    """A line of an NDJSON body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str = Field(description="The text.")
    id: Annotated[str, Field(max_length=256)] | int | None = Field(
        None, description="Returned with the answer."
    )


class AnsweredLine(Answer):
    """The answer to a line."""

    line: int = Field(description="Its number, from 1 on.")
    id: str | int | None = Field(None, description="The id from the line; absent if it had none.")


class StreamedError(Answer):
    """The error for a line, in place of its answer, or the last line of a failed stream."""

    line: int | None = Field(
        None, description="Its number; absent if the error is about the whole stream."
    )
    id: str | int | None = Field(None, description="The id from the line; absent if it had none.")
    error: Problem = Field(description="The same problem document as in other answers.")


def answered_lines(*schemas: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entry of the answers: the schema of a line, as in OpenAPI 3.2 (`itemSchema`)."""
    shown = [*map(inlined_schema, schemas), inlined_schema(StreamedError)]
    return {200: {"content": {NDJSON: {"itemSchema": {"anyOf": shown}}}}}


def stream_documentation(
    operation: dict[str, Any], query: type[StreamQuery], line: type[StreamedLine], text: str
) -> dict[str, Any]:
    """The OpenAPI entry of a path, with the streamed bodies; `text` is an example."""
    as_json = json.dumps({"text": text.partition("\n")[0], "id": 1}, ensure_ascii=False)
    operation["requestBody"]["content"] |= {
        TEXT: {"schema": {"type": "string"}, "example": text},
        NDJSON: {
            "schema": {"type": "string", "description": "Lines of JSON."},
            "itemSchema": inlined_schema(line),
            "example": f"{as_json}\n",
        },
    }
    properties = query.model_json_schema()["properties"]
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


def json_line(told: dict[str, Any]) -> bytes:
    """A line of the answer."""
    # In ASCII: some clients treat U+2028 and its like as the end of a line.
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"
