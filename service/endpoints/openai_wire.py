"""The answers of OpenAI's /v1/completions and /v1/models. Names and shapes are theirs."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.http.wire import Answer
from service.tasks.engine import Generates
from service.tasks.scored_tokens import ScoredToken


class LogprobsOut(Answer):
    """Four arrays of equal length, an entry a token."""

    tokens: list[str] = Field(description="Printed tokens; eos prints as U+E002.")
    token_logprobs: list[float | None] = Field(
        description="Natural logs of their probabilities; null for a bos that the ids began with."
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The likeliest tokens there, and the one that stands there."
    )
    text_offset: list[int] = Field(
        description="Where each begins in the prompt and its completion, whether or not the prompt "
        "is echoed; what has no text stands where it would be."
    )


class CompletionChoice(Answer):
    """One completion."""

    text: str = Field(description="The text.")
    index: int = Field(description="Its place: prompt by prompt, `n` each.")
    logprobs: LogprobsOut | None = Field(description="Where they were asked for.")
    finish_reason: Literal["stop", "length"] | None = Field(
        description="`stop`: end of text or a stop string. `length`: max_tokens."
    )


class PromptTokensDetails(Answer):
    """What the prompts' characters were."""

    unknown_tokens: int = Field(
        description="Characters that the model does not know; /generate says where. An extension."
    )


class CompletionUsage(Answer):
    """What the request cost."""

    prompt_tokens: int = Field(description="Characters of the prompts.")
    completion_tokens: int = Field(description="Tokens generated, eos counted.")
    total_tokens: int = Field(description="Both.")
    prompt_tokens_details: PromptTokensDetails = Field(description="Of the prompts.")


class Completion(Answer):
    """Answer of `/v1/completions`, and with `stream` each of its chunks."""

    id: str = Field(description="Of this answer.")
    object: Literal["text_completion"] = Field(description="What it is.")
    created: int = Field(description="When, in seconds since 1970.")
    model: str = Field(description="The model that answered.")
    system_fingerprint: str = Field(
        description="Of the weights and the arithmetic: with the same one, a seed gives the same."
    )
    choices: list[CompletionChoice] = Field(description="The completions.")
    usage: CompletionUsage | None = Field(
        description="Of a stream: in its last chunk, where it was asked for."
    )


class ModelOut(Answer):
    """A served language model."""

    id: str = Field(description="What requests call it.")
    object: Literal["model"] = Field(description="What it is.")
    created: int = Field(description="When it was exported, in seconds since 1970.")
    owned_by: Literal["unroll"] = Field(description="Who serves it.")

    @classmethod
    def of(cls, engine: Generates) -> "ModelOut":
        """From an engine."""
        created = int(datetime.fromisoformat(engine.manifest.created).timestamp())
        return cls(id=engine.manifest.name, object="model", created=created, owned_by="unroll")


class ModelsOut(Answer):
    """Answer of `/v1/models`."""

    object: Literal["list"] = Field(description="What it is.")
    data: list[ModelOut] = Field(description="Every served language model, by name.")


class OpenAIError(Answer):
    """An error in OpenAI's form."""

    message: str = Field(description="What was wrong and what is allowed.")
    type: str = Field(description="Stable name of the kind of error.")
    param: str | None = Field(description="The field, where it was one.")
    code: str | None = Field(description="The same as `type`, where their clients look for it.")


class OpenAIErrorAnswer(Answer):
    """The body of an error under /v1."""

    error: OpenAIError = Field(description="The error.")


def logprobs_of(
    tokens: Sequence[ScoredToken], offsets: Sequence[int], *, after_bos: str | None = None
) -> LogprobsOut:
    """The four arrays; `after_bos` is the printed bos where the prompt's ids began with it."""
    lead = [] if after_bos is None else [after_bos]
    none: list[Any] = [None] * len(lead)
    return LogprobsOut.model_construct(
        tokens=lead + [token.token for token in tokens],
        token_logprobs=none + [token.logprob for token in tokens],
        top_logprobs=none + [_top(token) for token in tokens],
        text_offset=[0] * len(lead) + list(offsets),
    )


def _top(token: ScoredToken) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    return {x.token: x.logprob for x in token.top} | {token.token: token.logprob}


def fingerprint(engine: Generates) -> str:
    """A name for the weights of a model and its arithmetic."""
    graphs = [graph for graph in engine.manifest.graphs if graph.precision == engine.precision]
    return f"{engine.precision}-{graphs[0].sha256[:12]}"
