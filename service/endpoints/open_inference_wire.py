"""The Open Inference Protocol's requests and answers. Field names and shapes are theirs.

Parameters are accepted under `parameters`, as in the protocol, and at the top level, as in Triton's
backends. Unknown ones are ignored unless they would change the text (`foreign_fields`).
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.errors import InvalidRequest
from service.http.foreign_fields import refuse_foreign
from service.http.wire import (
    UNKNOWN,
    UNKNOWN_CHARS,
    Answer,
    LengthPenalty,
    Penalty,
    Problem,
    TextList,
)

DEFAULT_MAX_TOKENS = 20  # the protocol's


class OpenInferenceError(Answer):
    """An error in the protocol's form."""

    error: str = Field(description="What was wrong and what is allowed.")


class ServerMetadata(Answer):
    """Answer of `/v2`."""

    name: str = Field(description="The server.")
    version: str = Field(description="Its version.")
    extensions: list[str] = Field(description="Extensions beyond metadata and health.")


class TensorMetadata(Answer):
    """An input or an output."""

    name: str = Field(description="Its name in requests and answers.")
    datatype: Literal["BYTES"] = Field(description="A text.")
    shape: list[int] = Field(description="One text.")


class ModelMetadata(Answer):
    """Answer of `/v2/models/{name}`."""

    name: str = Field(description="Its name in requests.")
    versions: list[str] = Field(description="The only version.")
    platform: str = Field(description="The runtime.")
    inputs: list[TensorMetadata] = Field(description="Its inputs.")
    outputs: list[TensorMetadata] = Field(description="Its outputs.")


class LiveOut(Answer):
    """Answer of `/v2/health/live`."""

    live: bool = Field(description="Whether the process answers.")


class ReadyOut(Answer):
    """Answer of `/v2/health/ready` and of `/v2/models/{name}/ready`."""

    ready: bool = Field(description="Whether to send traffic.")


class GenerateParameters(BaseModel):
    """Parameters of a generation; `beam_size` and those after it are for encoder-decoders only."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0.0, le=1e9, description="0 takes the likeliest.")
    top_k: int | None = Field(
        None, ge=-1, description="Keep this many of the likeliest tokens; -1 and 0 keep all."
    )
    top_p: float | None = Field(None, ge=0.0, le=1.0, description="As in /generate.")
    max_tokens: int | None = Field(
        None, ge=0, description=f"Most tokens. Default: {DEFAULT_MAX_TOKENS}, or the model's limit."
    )
    best_of: int | None = Field(
        None,
        ge=1,
        description="Write this many; answer the one with the best mean logprob per token.",
    )
    stop: str | TextList | None = Field(
        None, description="Texts that end the generation; empty ones are ignored."
    )
    stop_words: str | TextList | None = Field(
        None, description="Another name of `stop`, which is TensorRT-LLM's."
    )
    frequency_penalty: Penalty | None = Field(
        None, description="Subtracted from a token's logit each time it has been written."
    )
    presence_penalty: Penalty | None = Field(
        None, description="Subtracted from a token's logit once it has been written."
    )
    ignore_eos: bool | None = Field(
        None, description="End the text only at `max_tokens` or `stop`."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="Same seed, same text.")
    random_seed: int | None = Field(
        None, ge=0, lt=2**63, description="Another name of `seed`, which is TensorRT-LLM's."
    )
    details: bool | None = Field(None, description="Return why the text ended, and each token.")
    adapt: bool | None = Field(None, description="As in /generate; an extension.")
    stream: bool | None = Field(None, description="Ignored: the path decides.")
    beam_size: int | None = Field(None, ge=1, description="As in /translate.")
    beam_width: int | None = Field(
        None, ge=1, description="Another name of `beam_size`, which is TensorRT-LLM's."
    )
    length_penalty: LengthPenalty | None = Field(None, description="As in /translate.")
    target_prefix: str | None = Field(None, description="As in /translate.")


class GenerateTextRequest(GenerateParameters):
    """A text to continue or translate; parameters at the top level or under `parameters`."""

    text_input: str = Field(description="The text.")
    parameters: GenerateParameters | None = Field(None, description="How.")

    def merged(self) -> GenerateParameters:
        """The parameters of both places, under one name each. Raises InvalidRequest."""
        inside = self.parameters or GenerateParameters()
        refuse_foreign(self.model_extra or {}, type(self).model_fields)
        refuse_foreign(inside.model_extra or {}, type(inside).model_fields)
        given: dict[str, Any] = {}
        for name in GenerateParameters.model_fields:
            known = _OTHER_NAMES.get(name, name)
            for value in (getattr(self, name), getattr(inside, name)):
                if value is None or (name == "beam_width" and value == 1):
                    continue
                read = _listed(value) if known == "stop" else value
                if given.setdefault(known, read) != read:
                    raise InvalidRequest.of_option(known, "given twice with different values")
        return GenerateParameters(**given)


def _listed(texts: str | list[str]) -> list[str]:
    """The texts as a list, without the empty ones that TensorRT-LLM's clients send for none."""
    return [text for text in ([texts] if isinstance(texts, str) else texts) if text]


_OTHER_NAMES = {"stop_words": "stop", "random_seed": "seed", "beam_width": "beam_size"}


class TokenOut(Answer):
    """A generated token."""

    id: int = Field(description="Its id.")
    text: str = Field(description="Its printed form.")
    logprob: float = Field(description="Natural log of its probability.")
    special: bool = Field(description="Whether it is a special token without text.")


class DetailsOut(Answer):
    """With `details`."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"] = Field(
        description="Why it ended. `length` includes a translation cut because it repeated itself."
    )
    logprobs: list[TokenOut] = Field(description="Every token.")
    unknown: list[int] = Field(description=UNKNOWN)
    unknown_chars: int = Field(description=UNKNOWN_CHARS)


class GenerateTextResponse(Answer):
    """Answer of `generate`."""

    text_output: str = Field(description="The text.")
    model_name: str = Field(description="The model that answered.")
    model_version: str = Field(description="Its version.")
    details: DetailsOut | None = Field(description="If requested.")


class GenerateStreamResponse(Answer):
    """An event of `generate_stream`."""

    text_output: str = Field(description="The next part of the text.")
    model_name: str = Field(description="The model that answers.")
    model_version: str = Field(description="Its version.")
    done: bool = Field(description="Whether this is the last event, which has no text.")
    details: DetailsOut | None = Field(description="In the last event, if requested.")


def open_inference_error(problem: Problem) -> OpenInferenceError:
    """A problem in the protocol's form: each mistake once, with the name of its field."""
    if not problem.errors:
        return OpenInferenceError(error=problem.detail)
    told = []
    for mistake in problem.errors[:3]:
        name = mistake.pointer.removeprefix("/parameters").removeprefix("/")
        told.append(f"{mistake.detail} ({name})" if name else mistake.detail)
    return OpenInferenceError(error="; ".join(told))


# The fields for the engines' options that have other names here.
FIELD_OF_OPTION = {
    "prompt": "text_input",
    "source": "text_input",
    "logprobs": "max_tokens",
    "n": "best_of",
}
