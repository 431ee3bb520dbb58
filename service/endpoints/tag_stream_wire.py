"""The wire of a streamed `/tag`: its query parameters, and its answers."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from service.endpoints.stream_wire import AnsweredLine, StreamQuery
from service.endpoints.tag_wire import (
    PLACES,
    TAGGINGS,
    TOP_LABELS,
    PlaceOut,
    TaggingOut,
    TagResult,
    check_top,
)
from service.http.wire import MAX_ALTERNATIVES, UNKNOWN, UNKNOWN_CHARS
from service.tasks.label_values import Tagged, TagOptions


class TagStreamQuery(StreamQuery):
    """The query parameters of a streamed `/tag`."""

    n: int = Field(1, ge=1, description=TAGGINGS)
    places: bool = Field(False, description=PLACES)
    top: int = Field(1, ge=1, le=MAX_ALTERNATIVES, description=TOP_LABELS)
    unknown: Literal["unk", "error", "skip"] = Field("unk", description="As in the JSON request.")

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_top(self.top, places=self.places)
        return self

    def options(self) -> TagOptions:
        """The engine's options."""
        return TagOptions(n=self.n, places=self.places, top=self.top, unknown=self.unknown)


class StreamedTags(TaggingOut, AnsweredLine):
    """The answer to a line."""

    alternatives: list[TaggingOut] | None = Field(
        None, description="As in the JSON answer; absent unless `n` is above 1."
    )
    places: list[PlaceOut] | None = Field(
        None, description="As in the JSON answer; absent if not requested."
    )
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)


def tagged_told(result: Tagged, options: TagOptions) -> dict[str, Any]:
    """The fields of the answer to a line."""
    told = TagResult.of(result).model_dump()
    if options.n == 1:
        del told["alternatives"]
    if not options.places:
        del told["places"]
    return told
