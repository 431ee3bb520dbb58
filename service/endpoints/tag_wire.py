"""The wire of `/tag` with a JSON body."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from service.endpoints.classify_wire import LOGPROB, POLICY, LabelOut
from service.http.wire import (
    MAX_ALTERNATIVES,
    UNKNOWN,
    UNKNOWN_CHARS,
    Answer,
    RequestBody,
    Texts,
    Usage,
    unknown_fields,
)
from service.tasks.engine import Tags
from service.tasks.label_values import Place, Tagged, Tagging, TagOptions

TAGGINGS = "How many taggings of each text to return, likeliest first."
PLACES = "Also return the likeliest labels of each character."
TOP_LABELS = "With `places`: the most labels to return for each character."


def check_top(top: int, *, places: bool) -> None:
    """Raise ValueError if labels of places are requested, but no places."""
    if top > 1 and not places:
        raise ValueError("top needs places: true")


class TagRequest(RequestBody):
    """A label for each character of one text or of a list of texts."""

    text: Texts = Field(description="A text or a list of texts; it may be empty.")
    n: int = Field(1, ge=1, description=TAGGINGS)
    places: bool = Field(False, description=PLACES)
    top: int = Field(1, ge=1, le=MAX_ALTERNATIVES, description=TOP_LABELS)
    unknown: Literal["unk", "error", "skip"] = Field("unk", description=POLICY)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        check_top(self.top, places=self.places)
        return self

    def options(self) -> TagOptions:
        """The engine's options."""
        return TagOptions(n=self.n, places=self.places, top=self.top, unknown=self.unknown)


class TagOut(Answer):
    """Neighbouring characters with the same label."""

    start: int = Field(description="Characters before it, in `text`.")
    end: int = Field(description="Characters up to its end.")
    label: str = Field(
        description="The label; in a restored text, the character that now stands there."
    )
    probability: float = Field(
        description="How likely it is that all of these characters have their labels, whatever "
        "labels the others have."
    )
    logprob: float = Field(description=LOGPROB)


class TaggingOut(Answer):
    """One label for each character of a text."""

    text: str = Field(
        description="The text that positions refer to: the normalized text, or, if labels are "
        "characters, the restored text, which is as long."
    )
    logprob: float = Field(
        description="Natural log of the probability of all labels together, including those of "
        "characters in no tag."
    )
    tags: list[TagOut] = Field(
        description='The tags, in order. Characters whose label means "no tag" are in none.'
    )

    @classmethod
    def fields_of(cls, tagging: Tagging) -> dict[str, Any]:
        """The values of `TaggingOut`."""
        tags = [TagOut.taken_from(tag) for tag in tagging.tags]
        return {"text": tagging.text, "logprob": tagging.logprob, "tags": tags}


class PlaceOut(Answer):
    """A character and its likeliest labels."""

    start: int = Field(description="Characters before it.")
    end: int = Field(description="Characters up to its end.")
    labels: list[LabelOut] = Field(
        description="Likeliest first, whatever labels the other characters have. Labels that the "
        "character cannot have are left out."
    )

    @classmethod
    def of(cls, place: Place) -> "PlaceOut":
        """From the engine's place."""
        return cls.taken_from(place, labels=[LabelOut.taken_from(x) for x in place.labels])


class TagResult(TaggingOut):
    """The likeliest tagging of one text, and further ones."""

    alternatives: list[TaggingOut] = Field(
        description="With `n`: the further taggings, likeliest first."
    )
    places: list[PlaceOut] | None = Field(
        description="If requested: every character of the normalized text, in order, with labels "
        "as the model knows them, such as `B-name`."
    )
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)

    @classmethod
    def of(cls, result: Tagged) -> "TagResult":
        """From the engine's result."""
        best, *others = result.taggings
        places = result.places
        return cls.model_construct(
            **TaggingOut.fields_of(best),
            alternatives=[
                TaggingOut.model_construct(**TaggingOut.fields_of(tagging)) for tagging in others
            ],
            places=None if places is None else [PlaceOut.of(place) for place in places],
            **unknown_fields(result.unknown),
        )


class TagResponse(Answer):
    """Answer of `/tag`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    restored: bool = Field(
        description="Whether labels are characters, so that `text` is a restored text."
    )
    results: list[TagResult] = Field(description="One for each text, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(cls, engine: Tags, results: Sequence[Tagged]) -> "TagResponse":
        """From the engine's results."""
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            restored=engine.restores,
            results=[TagResult.of(result) for result in results],
            usage=Usage(
                prompt_tokens=sum(result.prompt_tokens for result in results),
                completion_tokens=0,
                cached_tokens=0,
            ),
        )
