"""The answers of OpenAI's /v1/completions and /v1/models. Names and shapes are theirs."""

import time
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.http.wire import Answer
from service.tasks.cards import Card
from service.tasks.engine import Engine
from service.tasks.scored_tokens import ScoredToken


class LogprobsOut(Answer):
    """Four arrays of equal length, with an entry for each token."""

    tokens: list[str] = Field(description="Printed tokens; eos prints as U+E002.")
    token_logprobs: list[float | None] = Field(
        description="Natural logs of their probabilities; null for a bos at the start of the ids."
    )
    top_logprobs: list[dict[str, float] | None] = Field(
        description="The likeliest tokens at each position, and the actual one."
    )
    text_offset: list[int] = Field(
        description="Where each begins in the prompt and its completion, even if the prompt is not "
        "echoed. A token without text has the offset of the text after it."
    )


class CompletionChoice(Answer):
    """One completion."""

    text: str = Field(description="The text.")
    index: int = Field(description="Its index: prompt by prompt, `n` each.")
    logprobs: LogprobsOut | None = Field(description="If requested.")
    finish_reason: Literal["stop", "length"] | None = Field(
        description="`stop`: end of text, a stop string, or the suffix comes. `length`: max_tokens."
    )


class PromptTokensDetails(Answer):
    """Details of the prompts' characters."""

    unknown_tokens: int = Field(
        description="Characters outside the vocabulary; /generate says where. An extension."
    )


class CompletionUsage(Answer):
    """What the request cost."""

    prompt_tokens: int = Field(description="Characters of the prompts.")
    completion_tokens: int = Field(description="Tokens generated, eos counted.")
    total_tokens: int = Field(description="Both.")
    prompt_tokens_details: PromptTokensDetails = Field(description="Details of the prompts.")


class Completion(Answer):
    """Answer of `/v1/completions`, and with `stream` each of its chunks."""

    id: str = Field(description="Id of this answer.")
    object: Literal["text_completion"] = Field(description="The kind of object.")
    created: int = Field(description="When, in seconds since 1970.")
    model: str = Field(description="The model that answered.")
    system_fingerprint: str = Field(
        description="Identifies weights and precision, and how the model adapts if asked to: while "
        "it stays the same, a seed gives the same text."
    )
    choices: list[CompletionChoice] = Field(description="The completions.")
    usage: CompletionUsage | None = Field(
        description="In a stream: in the last chunk, if requested."
    )


class ModelOut(Answer):
    """A served language model."""

    id: str = Field(description="Its name in requests.")
    object: Literal["model"] = Field(description="The kind of object.")
    created: int = Field(description="When it was exported, in seconds since 1970.")
    owned_by: Literal["unroll"] = Field(description="Who serves it.")

    @classmethod
    def of(cls, card: Card) -> "ModelOut":
        """From its card."""
        created = int(datetime.fromisoformat(card.created).timestamp())
        return cls(id=card.name, object="model", created=created, owned_by="unroll")


class ModelsOut(Answer):
    """Answer of `/v1/models`."""

    object: Literal["list"] = Field(description="The kind of object.")
    data: list[ModelOut] = Field(description="Every served language model, by name.")


class OpenAIError(Answer):
    """An error in OpenAI's form."""

    message: str = Field(description="What was wrong and what is allowed.")
    type: str = Field(description="Stable name of the kind of error.")
    param: str | None = Field(description="The field that is wrong, if it is one.")
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


def fingerprint(engine: Engine, *, adapt: bool) -> str:
    """A name for the weights of a model and its arithmetic, and for how it adapts if it does."""
    used: set[tuple[str, str]] = {
        (engine.precision, role) for role in ("sequence", "encoder", "decoder")
    }
    if adapt:
        used.add(("fp32", "adapt"))  # whatever the precision of the others
    sums = [x.sha256[:12] for x in engine.manifest.graphs if (x.precision, x.role) in used]
    return "-".join([engine.precision, *sums])


class Envelope:
    """What surrounds the choices of an answer; all chunks of a stream share it."""

    def __init__(self, engine: Engine, *, adapt: bool = False) -> None:
        self._model = engine.manifest.name
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._fingerprint = fingerprint(engine, adapt=adapt)

    def chunk(
        self, choices: list[CompletionChoice], usage: CompletionUsage | None = None
    ) -> Completion:
        """A part of the answer, or all of it."""
        return Completion.model_construct(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )


def usage_of(prompt_tokens: int, completion_tokens: int, unknown: int) -> CompletionUsage:
    """The usage of a whole request."""
    return CompletionUsage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(unknown_tokens=unknown),
    )
