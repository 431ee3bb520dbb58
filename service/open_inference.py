"""The Open Inference Protocol, version 2, over the engine's own calls.

Metadata and health are the protocol's (kserve/open-inference-protocol, `inference_rest.md`);
`generate` and `generate_stream` are its text generation API (`generate_rest.yaml`). Of tensors
(`/infer`) nothing is offered: these models take texts.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from service.answers import (
    check_choices,
    documented_events,
    engine_named,
    json_answer,
    problem_document,
    problems_as,
    served_engines,
    unless_gone,
)
from service.body import body_documentation, read_body
from service.bundle import EOS_ID, SPECIAL_TOKENS
from service.engine import Engine
from service.errors import InvalidRequest, ServiceError
from service.sampling import SamplingParams
from service.schemas import Answer, AnyEngine, Problem, StopList
from service.sse import ServerSentEvent, event_response
from service.tasks import ChoiceEnd, GenerateOptions, TokenEvent, best_choices
from service.translator import TranslatedToken, TranslateOptions, Translation, Translator

VERSION = "1"  # a bundle has no other, and so the paths have its number
DEFAULT_MAX_TOKENS = 20  # the protocol's

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])


class OpenInferenceError(Answer):
    """An error in the protocol's form."""

    error: str = Field(description="What was wrong and what is allowed.")


class ServerMetadata(Answer):
    """Answer of `/v2`."""

    name: str = Field(description="The server.")
    version: str = Field(description="Its version.")
    extensions: list[str] = Field(description="What it offers beyond metadata and health.")


class TensorMetadata(Answer):
    """An input or an output."""

    name: str = Field(description="Its name in requests and answers.")
    datatype: Literal["BYTES"] = Field(description="A text.")
    shape: list[int] = Field(description="One text.")


class ModelMetadata(Answer):
    """Answer of `/v2/models/{name}`."""

    name: str = Field(description="What requests call it.")
    versions: list[str] = Field(description="The one version.")
    platform: str = Field(description="What runs it.")
    inputs: list[TensorMetadata] = Field(description="What it takes.")
    outputs: list[TensorMetadata] = Field(description="What it gives.")


class LiveOut(Answer):
    """Answer of `/v2/health/live`."""

    live: bool = Field(description="Whether the process answers.")


class ReadyOut(Answer):
    """Answer of `/v2/health/ready` and of `/v2/models/{name}/ready`."""

    ready: bool = Field(description="Whether to send traffic.")


class GenerateParameters(BaseModel):
    """What a generation may be asked for; the last three are of encoder-decoders alone."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    temperature: float | None = Field(None, ge=0.0, le=1e9, description="0 takes the likeliest.")
    top_k: int | None = Field(None, ge=1, description="Keep so many of the likeliest.")
    top_p: float | None = Field(None, ge=0.0, le=1.0, description="Keep the smallest such set.")
    max_tokens: int | None = Field(
        None, ge=0, description=f"Most tokens; left out, {DEFAULT_MAX_TOKENS}, or the model's own."
    )
    best_of: int | None = Field(
        None, ge=1, description="Write so many, answer the one with the best mean logprob a token."
    )
    stop: StopList | None = Field(None, description="Texts that end the generation.")
    frequency_penalty: float | None = Field(
        None, ge=-100.0, le=100.0, description="What a token loses each time it has been written."
    )
    presence_penalty: float | None = Field(
        None, ge=-100.0, le=100.0, description="What a token loses once it has been written."
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="Same seed, same text.")
    details: bool | None = Field(None, description="Tell why it ended, and each token.")
    stream: bool | None = Field(None, description="Where it is given, what the path says.")
    beam_size: int | None = Field(None, ge=1, description="As in /translate.")
    length_penalty: float | None = Field(None, ge=0.0, le=10.0, description="As in /translate.")
    target_prefix: str | None = Field(None, description="As in /translate.")


class GenerateTextRequest(BaseModel):
    """A text to continue, or to translate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    text_input: str = Field(description="The text.")
    parameters: GenerateParameters = Field(GenerateParameters(), description="How.")


class TokenOut(Answer):
    """A generated token."""

    id: int = Field(description="Its id.")
    text: str = Field(description="Its printed form.")
    logprob: float = Field(description="Natural log of its probability.")
    special: bool = Field(description="Whether it stands for no text.")


class DetailsOut(Answer):
    """With `details`."""

    finish_reason: Literal["length", "eos_token", "stop_sequence"] = Field(
        description="Why it ended; a translation that went round in a cycle was cut: `length`."
    )
    logprobs: list[TokenOut] = Field(description="Every token.")


class GenerateTextResponse(Answer):
    """Answer of `generate`."""

    text_output: str = Field(description="The text.")
    model_name: str = Field(description="The model that answered.")
    model_version: str = Field(description="Its version.")
    details: DetailsOut | None = Field(description="Where they were asked for.")


class GenerateStreamResponse(Answer):
    """An event of `generate_stream`."""

    text_output: str = Field(description="What the text goes on with.")
    model_name: str = Field(description="The model that answers.")
    model_version: str = Field(description="Its version.")
    done: bool = Field(description="Whether this is the last one; it has no text.")
    details: DetailsOut | None = Field(description="In the last one, where they were asked for.")


def open_inference_error(problem: Problem) -> OpenInferenceError:
    """A problem in the protocol's form."""
    pointer = problem.errors[0].pointer if problem.errors else ""
    if pointer and not pointer.startswith(("/text_input", "/parameters")):
        pointer = _POINTERS.get(pointer, f"/parameters{pointer}")
    where = f" ({pointer})" if pointer else ""
    return OpenInferenceError(error=f"{problem.detail}{where}")


# Of what the engines call otherwise.
_POINTERS = {
    "/prompt": "/text_input",
    "/source": "/text_input",
    "/logprobs": "/parameters/max_tokens",
}
_ERRORS = problems_as(open_inference_error)
_STREAM_ANSWERS = _ERRORS | documented_events((GenerateStreamResponse, OpenInferenceError))
Name = Annotated[str, Path(description="Name of a served model.")]


@router.get("")
async def server(request: Request) -> ServerMetadata:
    """The server."""
    return ServerMetadata(
        name="unroll", version=request.app.version, extensions=["generate", "generate_stream"]
    )


@router.get("/health/live")
async def live() -> LiveOut:
    """Whether the process answers."""
    return LiveOut(live=True)


@router.get("/health/ready", responses={503: {"model": ReadyOut}})
async def ready(request: Request, response: Response) -> ReadyOut:
    """Whether every model is ready."""
    state = request.app.state
    engines = served_engines(request)
    alive = bool(engines) and all(engine.alive for engine in engines)
    return _ready(response, alive and not state.lifecycle.reasons)


@router.get("/models/{name}/ready", responses={503: {"model": ReadyOut}, 404: _ERRORS[404]})
@router.get(
    "/models/{name}/versions/1/ready",
    responses={503: {"model": ReadyOut}, 404: _ERRORS[404]},
)
async def model_ready(name: Name, request: Request, response: Response) -> ReadyOut:
    """Whether one model is ready."""
    return _ready(response, engine_named(request, name).alive)


@router.get("/models/{name}", responses={404: _ERRORS[404]})
@router.get("/models/{name}/versions/1", responses={404: _ERRORS[404]})
async def model(name: Name, request: Request) -> ModelMetadata:
    """One model."""
    engine = engine_named(request, name)

    def text(of: str) -> TensorMetadata:
        return TensorMetadata(name=of, datatype="BYTES", shape=[1])

    return ModelMetadata(
        name=engine.manifest.name,
        versions=[VERSION],
        platform="onnxruntime_onnx",
        inputs=[text("text_input")],
        outputs=[text("text_output")],
    )


_BODY = body_documentation(GenerateTextRequest)


@router.post(
    "/models/{name}/generate",
    response_model=GenerateTextResponse,
    responses=_ERRORS,
    openapi_extra=_BODY,
)
@router.post(
    "/models/{name}/versions/1/generate",
    response_model=GenerateTextResponse,
    responses=_ERRORS,
    openapi_extra=_BODY,
)
async def generate(name: Name, request: Request) -> Response:
    """Continue a text with a language model, translate it with an encoder-decoder."""
    engine = engine_named(request, name)
    body = await _read(request, streams=False)
    answer = await unless_gone(request, _generated(request, engine, body))
    return await json_answer(len(answer.text_output), lambda: answer)


@router.post(
    "/models/{name}/generate_stream",
    response_class=Response,
    responses=_STREAM_ANSWERS,
    openapi_extra=_BODY,
)
@router.post(
    "/models/{name}/versions/1/generate_stream",
    response_class=Response,
    responses=_STREAM_ANSWERS,
    openapi_extra=_BODY,
)
async def generate_stream(name: Name, request: Request) -> Response:
    """The same as server-sent events, token by token."""
    engine = engine_named(request, name)
    body = await _read(request, streams=True)
    if body.parameters.best_of not in {None, 1}:
        raise InvalidRequest.at("/parameters/best_of", "not together with a stream")
    if isinstance(engine, Engine):
        events = _text_events(engine, body, _text_options(request, engine, body))
    else:
        events = _translation_events(engine, body, _translate_options(body))
    return await event_response(request, events, partial(_error_event, request))


async def _read(request: Request, *, streams: bool) -> GenerateTextRequest:
    # Triton's documentation asks with curl's own media type.
    media_types = ("application/json", "application/x-www-form-urlencoded")
    body = await read_body(request, GenerateTextRequest, media_types)
    if body.parameters.stream not in {None, streams}:
        other = "generate" if streams else "generate_stream"
        raise InvalidRequest.at("/parameters/stream", f"that is asked of {other}")
    return body


async def _generated(
    request: Request, engine: AnyEngine, body: GenerateTextRequest
) -> GenerateTextResponse:
    details: DetailsOut | None = None
    if isinstance(engine, Translator):
        options = _translate_options(body)
        prefix = body.parameters.target_prefix or ""
        (result,) = await engine.translate([body.text_input], [prefix], options)
        found = result.hypotheses[0]
        text = found.text
        if body.parameters.details:
            details = _translation_details(engine, found)
    else:
        (generated,) = await engine.generate(
            [body.text_input], _text_options(request, engine, body)
        )
        (choice,) = best_choices(generated.choices, 1)
        text = choice.text
        if body.parameters.details:
            told = [(x.token, x.logprob or 0.0) for x in choice.tokens or ()]
            details = _details(engine.tokens, choice.finish_reason, told)
    return GenerateTextResponse.model_construct(
        text_output=text,
        model_name=engine.manifest.name,
        model_version=VERSION,
        details=details,
    )


def _text_options(request: Request, engine: Engine, body: GenerateTextRequest) -> GenerateOptions:
    given = body.parameters
    for name in ("beam_size", "length_penalty", "target_prefix"):
        if getattr(given, name) is not None:
            raise InvalidRequest.at(f"/parameters/{name}", "a language model does not take it")
    stop = tuple(given.stop or ())
    n = given.best_of or 1
    check_choices(n, "/parameters/best_of", stop, request.app.state.settings)
    return GenerateOptions(
        max_tokens=min(DEFAULT_MAX_TOKENS, engine.max_tokens)
        if given.max_tokens is None
        else given.max_tokens,
        sampling=SamplingParams(
            temperature=1.0 if given.temperature is None else given.temperature,
            top_k=given.top_k,
            top_p=1.0 if given.top_p is None else given.top_p,
            frequency_penalty=given.frequency_penalty or 0.0,
            presence_penalty=given.presence_penalty or 0.0,
        ),
        seed=given.seed,
        stop=stop,
        n=n,
        # Which is best is told by the probabilities.
        logprobs=0 if given.details or n > 1 else None,
    )


def _translate_options(body: GenerateTextRequest) -> TranslateOptions:
    given = body.parameters
    for name in ("stop", "frequency_penalty", "presence_penalty", "best_of"):
        if getattr(given, name) is not None:
            raise InvalidRequest.at(f"/parameters/{name}", "an encoder-decoder does not take it")
    if given.max_tokens == 0:
        raise InvalidRequest.at("/parameters/max_tokens", "a translation has 1 token at least")
    samples = bool(given.temperature)
    beams_or_samples = ("beam_size",) if samples else ("top_k", "top_p", "seed")
    for name in beams_or_samples:
        if getattr(given, name) is not None:
            when = "temperature 0" if samples else "a temperature above 0"
            raise InvalidRequest.at(f"/parameters/{name}", f"only with {when}")
    return TranslateOptions(
        beam_size=given.beam_size,
        length_penalty=1.0 if given.length_penalty is None else given.length_penalty,
        max_tokens=given.max_tokens,
        sampling=SamplingParams(
            temperature=given.temperature or 0.0,
            top_k=given.top_k,
            top_p=1.0 if given.top_p is None else given.top_p,
        )
        if samples
        else None,
        seed=given.seed,
        tokens=bool(given.details),
    )


async def _text_events(
    engine: Engine, body: GenerateTextRequest, options: GenerateOptions
) -> AsyncGenerator[ServerSentEvent, None]:
    told: list[tuple[str, float]] = []
    details: DetailsOut | None = None
    async with aclosing(engine.stream([body.text_input], options)) as events:
        async for event in events:
            if isinstance(event, TokenEvent) and event.token is not None:
                told.append((event.token.token, event.token.logprob or 0.0))
                yield _event(engine, event.text)
            elif isinstance(event, ChoiceEnd) and body.parameters.details:
                details = _details(engine.tokens, event.finish_reason, told)
    yield _event(engine, "", done=True, details=details)


async def _translation_events(
    engine: Translator, body: GenerateTextRequest, options: TranslateOptions
) -> AsyncGenerator[ServerSentEvent, None]:
    details: DetailsOut | None = None
    prefix = body.parameters.target_prefix or ""
    async with aclosing(engine.stream([body.text_input], [prefix], options)) as events:
        async for event in events:
            if isinstance(event, TranslatedToken):
                yield _event(engine, event.text)
            elif body.parameters.details:
                details = _translation_details(engine, event[0].hypotheses[0])
    yield _event(engine, "", done=True, details=details)


def _event(
    engine: AnyEngine, text: str, *, done: bool = False, details: DetailsOut | None = None
) -> ServerSentEvent:
    event = GenerateStreamResponse.model_construct(
        text_output=text,
        model_name=engine.manifest.name,
        model_version=VERSION,
        done=done,
        details=details,
    )
    return ServerSentEvent(event.model_dump_json())


def _error_event(request: Request, error: ServiceError) -> ServerSentEvent:
    told = open_inference_error(problem_document(request, error))
    return ServerSentEvent(told.model_dump_json())


def _translation_details(engine: Translator, found: Translation) -> DetailsOut:
    told = [(x.token, x.logprob) for x in found.tokens or ()]
    return _details(engine.side("target").tokens, found.finish_reason, told)


def _details(
    names: Sequence[str],
    finish_reason: Literal["stop", "length", "repetition"],
    told: Sequence[tuple[str, float]],
) -> DetailsOut:
    """Why a text ended, and its printed tokens with their log-probabilities, of a vocabulary."""
    id_of_name = {name: i for i, name in enumerate(names)}
    tokens = [
        TokenOut.model_construct(
            id=id_of_name[name],
            text=name,
            logprob=logprob,
            special=id_of_name[name] < len(SPECIAL_TOKENS),
        )
        for name, logprob in told
    ]
    reason: Literal["length", "eos_token", "stop_sequence"] = "length"
    if finish_reason == "stop":
        reason = "eos_token" if tokens and tokens[-1].id == EOS_ID else "stop_sequence"
    return DetailsOut.model_construct(finish_reason=reason, logprobs=tokens)


def _ready(response: Response, is_ready: bool) -> ReadyOut:
    if not is_ready:
        response.status_code = 503
    return ReadyOut(ready=is_ready)
