"""The wire of `/classify` with a JSON body."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from service.http.wire import (
    UNKNOWN,
    UNKNOWN_CHARS,
    Answer,
    RequestBody,
    Texts,
    Usage,
    unknown_fields,
)
from service.tasks.engine import Engine
from service.tasks.label_values import Classified, ClassifyOptions

TOP = "The most labels to return for each text, likeliest first. By default, all."
MIN_PROBABILITY = "Labels less likely than this are left out, so that a text may have none."
STEPS = (
    "Also return the likeliest label after each character, or token; only for models that read "
    "forward (`direction`)."
)
POLICY = (
    "Characters outside the vocabulary: read them as the unknown token, refuse the text, or leave "
    "them out."
)
PROBABILITY = "How likely it is, from 0 to 1."
LOGPROB = "Natural log of the probability."


class ClassifyRequest(RequestBody):
    """The labels of one text or of a list of texts."""

    text: Texts = Field(description="A text or a list of texts; it may be empty.")
    top: int | None = Field(None, ge=1, description=TOP)
    min_probability: float = Field(0.0, ge=0.0, le=1.0, description=MIN_PROBABILITY)
    unknown: Literal["unk", "error", "skip"] = Field("unk", description=POLICY)
    steps: bool = Field(False, description=STEPS)
    state: str | None = Field(
        None,
        description="Only for models that read forward, character by character: a state from an "
        "earlier answer of this model. Every text continues from there.",
    )
    return_state: bool = Field(
        False,
        description="For the same models: also return the state after each text, to continue from.",
    )

    def options(self) -> ClassifyOptions:
        """The engine's options."""
        return ClassifyOptions(
            top=self.top,
            min_probability=self.min_probability,
            unknown=self.unknown,
            steps=self.steps,
            state=self.state,
            return_state=self.return_state,
        )


class LabelOut(Answer):
    """A label and how likely it is."""

    label: str = Field(description="The label.")
    probability: float = Field(description=PROBABILITY)
    logprob: float = Field(description=LOGPROB)


class LabelStepOut(Answer):
    """The likeliest label once some characters have been read."""

    chars: int = Field(description="Characters of the normalized text that have been read.")
    label: str = Field(description="The likeliest label of what has been read.")
    probability: float = Field(description=PROBABILITY)
    logprob: float = Field(description=LOGPROB)


class ClassifyResult(Answer):
    """The labels of one text."""

    labels: list[LabelOut] = Field(
        description="Likeliest first. Their probabilities sum to 1, unless a text may have several "
        "labels: each then has a probability of its own."
    )
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)
    steps: list[LabelStepOut] | None = Field(
        description="If requested: the likeliest label after each character, or token, in order."
    )
    state: str | None = Field(description="If requested: the state after the text.")

    @classmethod
    def of(cls, result: Classified) -> "ClassifyResult":
        """From the engine's result."""
        steps = result.steps
        return cls.taken_from(
            result,
            labels=[LabelOut.taken_from(label) for label in result.labels],
            steps=None if steps is None else [LabelStepOut.taken_from(step) for step in steps],
            **unknown_fields(result.unknown),
        )


class ClassifyResponse(Answer):
    """Answer of `/classify`."""

    model: str = Field(description="The model that answered.")
    precision: str = Field(description="Its arithmetic.")
    results: list[ClassifyResult] = Field(description="One for each text, in order.")
    usage: Usage = Field(description="Counts over the whole request.")

    @classmethod
    def of(cls, engine: Engine, results: Sequence[Classified]) -> "ClassifyResponse":
        """From the engine's results."""
        return cls.model_construct(
            model=engine.manifest.name,
            precision=engine.precision,
            results=[ClassifyResult.of(result) for result in results],
            usage=Usage(
                prompt_tokens=sum(result.prompt_tokens for result in results),
                completion_tokens=0,
                cached_tokens=0,
            ),
        )
