"""The wire of a streamed `/classify`: its query parameters, and its answers."""

from typing import Any, Literal

from pydantic import Field

from service.endpoints.classify_wire import (
    MIN_PROBABILITY,
    STEPS,
    TOP,
    LabelOut,
    LabelStepOut,
)
from service.endpoints.stream_wire import AnsweredLine, StreamQuery
from service.http.wire import UNKNOWN, UNKNOWN_CHARS, Answer, unknown_fields
from service.tasks.label_values import Classified, ClassifyOptions, LabelProbability


class ClassifyStreamQuery(StreamQuery):
    """The query parameters of a streamed `/classify`."""

    mode: Literal["lines", "total"] = Field(
        "lines",
        description="Every line is a text, or the whole stream is one (only for `text/plain`, and "
        "models that read forward, character by character).",
    )
    top: int | None = Field(None, ge=1, description=TOP)
    min_probability: float = Field(0.0, ge=0.0, le=1.0, description=MIN_PROBABILITY)
    unknown: Literal["unk", "error", "skip"] = Field("unk", description="As in the JSON request.")
    steps: bool = Field(False, description=f"Mode `lines`. {STEPS}")
    every: int = Field(
        65_536, ge=1, description="Mode `total`: characters from one answer to the next."
    )

    def options(self) -> ClassifyOptions:
        """The engine's options."""
        return ClassifyOptions(
            top=self.top,
            min_probability=self.min_probability,
            unknown=self.unknown,
            steps=self.steps,
        )


class StreamedLabels(AnsweredLine):
    """The answer to a line."""

    labels: list[LabelOut] = Field(description="As in the JSON answer.")
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)
    steps: list[LabelStepOut] | None = Field(
        None, description="As in the JSON answer; absent if not requested."
    )


class StreamedLabelsSoFar(Answer):
    """Mode `total`: the labels of the text read so far."""

    done: bool = Field(description="Whether this is the whole text.")
    chars: int = Field(description="Characters read so far.")
    labels: list[LabelOut] = Field(description="The labels, likeliest first.")
    unknown_chars: int = Field(description="How many characters were outside the vocabulary.")


def labels_told(labels: list[LabelProbability]) -> list[dict[str, Any]]:
    """Labels in a line of an answer."""
    return [{"label": x.label, "probability": x.probability, "logprob": x.logprob} for x in labels]


def classified_told(result: Classified) -> dict[str, Any]:
    """The fields of the answer to a line."""
    told = {"labels": labels_told([*result.labels]), **unknown_fields(result.unknown)}
    if result.steps is not None:
        told["steps"] = [LabelStepOut.taken_from(step).model_dump() for step in result.steps]
    return told
