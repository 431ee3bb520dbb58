"""The wire that several endpoints share: parts of requests and of answers, and errors.

Every field is documented; unknown fields are rejected.
"""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.tasks.scored_tokens import ScoredToken
from service.tasks.unknown import MAX_POSITIONS, Unknown

MAX_ALTERNATIVES = 20
MAX_BIASES = 1024
# Largest change of a token's log-probability, in nats.
Penalty = Annotated[float, Field(ge=-100.0, le=100.0)]
Bias = Annotated[float, Field(ge=-1000.0, le=1000.0)]
LengthPenalty = Annotated[float, Field(ge=0.0, le=10.0)]


def _not_empty(value: str | list[str]) -> str | list[str]:
    if isinstance(value, list) and not value:
        raise ValueError("a list holds at least one text")
    return value


# Stops at the first mistake: finding every one in a list of a million numbers takes seconds.
TextList = Annotated[list[str], Field(fail_fast=True)]
Texts = Annotated[str | TextList, AfterValidator(_not_empty)]


def listed(texts: str | list[str]) -> list[str]:
    """One text or a list of texts, as a list."""
    return [texts] if isinstance(texts, str) else texts


UNKNOWN = (
    "Positions, in the normalized text, of characters outside the vocabulary: at most the first "
    f"{MAX_POSITIONS:,}."
)
ADAPT = "Whether the model learned from the text, as `adapt` asked."
UNKNOWN_CHARS = "How many characters are outside the vocabulary, listed or not."


class RequestBody(BaseModel):
    """What all requests share: strict types, no unknown fields, and a model."""

    # strict: true is not accepted as a number, nor "8" as 8.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(
        None,
        description="Name of a served model; optional if only one served model supports this "
        "request.",
    )


class Answer(BaseModel):
    """No unknown fields, no NaN or Infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def taken_from(cls, result: object, **others: Any) -> Self:
        """The answer for a result of a task: each field is the result's attribute of that name.

        `others` are fields that the result lacks or has in another shape. Nothing is
        validated, as with `model_construct`, which takes three times as long: a large answer
        has a hundred thousand of these.
        """
        fields = {
            name: others[name] if name in others else getattr(result, name)
            for name in cls.__pydantic_fields__
        }
        answer = cls.__new__(cls)
        for name, value in (
            ("__dict__", fields),
            ("__pydantic_fields_set__", set(fields)),
            ("__pydantic_extra__", None),
            ("__pydantic_private__", None),
        ):
            object.__setattr__(answer, name, value)  # frozen
        return answer


class Usage(Answer):
    """What the request cost, over all inputs."""

    prompt_tokens: int = Field(
        description="Characters read, contexts included; with sources, tokens of both sides."
    )
    completion_tokens: int = Field(description="Tokens generated, eos counted.")
    cached_tokens: int = Field(
        description="Part of `prompt_tokens`: cached, or read with another input, so not run again."
    )


class AlternativeOut(Answer):
    """A token that could have stood there."""

    token: str = Field(description="The character; eos and its like print as U+E000 to U+E003.")
    logprob: float = Field(description="Natural log of its probability.")


def alternatives(token: ScoredToken) -> list[AlternativeOut]:
    """The likeliest tokens at a token's position."""
    return [AlternativeOut.taken_from(x) for x in token.top]


def unknown_fields(unknown: Unknown) -> dict[str, Any]:
    """The fields `unknown` and `unknown_chars` of an answer."""
    return {"unknown": list(unknown.positions), "unknown_chars": unknown.count}


class FieldErrorOut(Answer):
    """One mistake in the body."""

    pointer: str = Field(description="Where: a JSON pointer (RFC 6901).")
    detail: str = Field(description="What is allowed there.")


class Problem(Answer):
    """An error, as RFC 9457 has it. It never holds what the client sent."""

    type: str = Field(description="Stable name of the kind of error.")
    title: str = Field(description="The same for people.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong and what is allowed.")
    request_id: str = Field(description="Also in the `X-Request-Id` header and in the log.")
    errors: list[FieldErrorOut] = Field(description="The mistakes in the body, if it was that.")
