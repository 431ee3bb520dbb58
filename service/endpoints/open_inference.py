"""The Open Inference Protocol, version 2, over the engine's own calls.

Metadata and health are the protocol's (kserve/open-inference-protocol, `inference_rest.md`);
`generate` and `generate_stream` are its text generation API (`generate_rest.yaml`). There
is no tensor inference (`/infer`): these models take texts.
"""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response

from service.bundle.text import EOS_ID, SPECIAL_TOKENS
from service.decoding.sampling import SamplingParams
from service.endpoints.open_inference_wire import (
    DEFAULT_MAX_TOKENS,
    FIELD_OF_OPTION,
    DetailsOut,
    GenerateParameters,
    GenerateStreamResponse,
    GenerateTextRequest,
    GenerateTextResponse,
    LiveOut,
    ModelMetadata,
    OpenInferenceError,
    ReadyOut,
    ServerMetadata,
    TensorMetadata,
    TokenOut,
    open_inference_error,
)
from service.errors import InvalidRequest, NotOffered, ServiceError
from service.http.answers import engine_named, json_answer, registry_of, unless_gone
from service.http.body import body_documentation, read_body
from service.http.option_names import named_by
from service.http.problems import problem_document, problems_as
from service.http.sse import ServerSentEvent, documented_events, event_response
from service.tasks.engine import GENERATE, TRANSLATE, Engine, Generates, Translates
from service.tasks.translations import Translated, TranslatedToken, TranslateOptions
from service.tasks.unknown import Unknown
from service.tasks.values import ChoiceEnd, GenerateOptions, StreamUsage, TokenEvent, best_choices

VERSION = "1"  # the only one

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

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
    registry = registry_of(request)
    alive = bool(registry.cards) and registry.is_alive
    return _ready(response, alive and not state.lifecycle.reasons)


@router.get("/models/{name}/ready", responses={503: {"model": ReadyOut}, 404: _ERRORS[404]})
@router.get(
    "/models/{name}/versions/1/ready",
    responses={503: {"model": ReadyOut}, 404: _ERRORS[404]},
)
async def model_ready(name: Name, request: Request, response: Response) -> ReadyOut:
    """Whether one model is ready."""
    registry = registry_of(request)
    return _ready(response, registry.is_ready(registry.card(name).name))


@router.get("/models/{name}", responses={404: _ERRORS[404]})
@router.get("/models/{name}/versions/1", responses={404: _ERRORS[404]})
async def model(name: Name, request: Request) -> ModelMetadata:
    """One model."""
    card = registry_of(request).card(name)

    def text(of: str) -> TensorMetadata:
        return TensorMetadata(name=of, datatype="BYTES", shape=[1])

    return ModelMetadata(
        name=card.name,
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
    """Continue a text with a language model, or translate it with an encoder-decoder."""
    engine = await engine_named(request, name)
    text, given = await _read(request)
    with named_by(FIELD_OF_OPTION):
        answer = await unless_gone(request, _generated(engine, text, given))
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
    engine = await engine_named(request, name)
    text, given = await _read(request)
    if given.best_of not in {None, 1}:
        raise InvalidRequest.of_option("best_of", "not together with a stream")
    with named_by(FIELD_OF_OPTION):
        events = _events(engine, text, given)
        return await event_response(request, events, partial(_error_event, request))


def _events(
    engine: Engine, asked: str, given: GenerateParameters
) -> AsyncGenerator[ServerSentEvent, None]:
    generates, translates = GENERATE.of(engine), TRANSLATE.of(engine)
    if generates is not None:
        return _text_events(generates, asked, given, _text_options(generates, given))
    if translates is not None:
        return _translation_events(translates, asked, given, _translate_options(given))
    raise _writes_nothing(engine)


@router.post("/models/{name}/infer", include_in_schema=False)
@router.post("/models/{name}/versions/1/infer", include_in_schema=False)
async def infer(name: Name, request: Request) -> None:
    """Always refused: tensors are not accepted."""
    registry_of(request).card(name)
    raise NotOffered("tensors are not accepted; send a text to generate or generate_stream")


async def _read(request: Request) -> tuple[str, GenerateParameters]:
    """The text, and the parameters of its continuation or translation."""
    # The examples in Triton's documentation send curl's default media type.
    media_types = ("application/json", "application/x-www-form-urlencoded")
    body = await read_body(request, GenerateTextRequest, media_types)
    return body.text_input, body.merged()


async def _generated(engine: Engine, asked: str, given: GenerateParameters) -> GenerateTextResponse:
    details: DetailsOut | None = None
    generates, translates = GENERATE.of(engine), TRANSLATE.of(engine)
    if generates is not None:
        options = _text_options(generates, given)
        (generated,) = await generates.generate([asked], options)
        (choice,) = best_choices(generated.choices, 1)
        text = choice.text
        if given.details:
            told = [(x.token, x.logprob or 0.0) for x in choice.tokens or ()]
            details = _details(generates.tokens, choice.finish_reason, told, generated.unknown)
    elif translates is not None:
        prefix = given.target_prefix or ""
        (result,) = await translates.translate([asked], [prefix], _translate_options(given))
        text = result.hypotheses[0].text
        if given.details:
            details = _translation_details(translates, result)
    else:
        raise _writes_nothing(engine)
    return GenerateTextResponse.model_construct(
        text_output=text,
        model_name=engine.manifest.name,
        model_version=VERSION,
        details=details,
    )


def _writes_nothing(engine: Engine) -> NotOffered:
    return NotOffered(GENERATE.lacking(engine.abilities))


def _text_options(engine: Generates, given: GenerateParameters) -> GenerateOptions:
    for name in ("beam_size", "target_prefix"):
        if getattr(given, name) is not None:
            raise InvalidRequest.of_option(name, "a language model does not support it")
    if given.length_penalty not in {None, 0.0, 1.0}:
        raise InvalidRequest.of_option("length_penalty", "a language model does not support it")
    stop = tuple(given.stop or ())
    n = given.best_of or 1
    return GenerateOptions(
        max_tokens=min(DEFAULT_MAX_TOKENS, engine.max_tokens)
        if given.max_tokens is None
        else given.max_tokens,
        sampling=SamplingParams(
            temperature=1.0 if given.temperature is None else given.temperature,
            top_k=given.top_k if given.top_k and given.top_k > 0 else None,
            top_p=1.0 if given.top_p is None else given.top_p,
            frequency_penalty=given.frequency_penalty or 0.0,
            presence_penalty=given.presence_penalty or 0.0,
        ),
        logit_bias={engine.tokens[EOS_ID]: -math.inf} if given.ignore_eos else {},
        seed=given.seed,
        stop=stop,
        n=n,
        # Log-probabilities decide which choice is best.
        logprobs=0 if given.details or n > 1 else None,
        adapt=bool(given.adapt),
    )


def _translate_options(given: GenerateParameters) -> TranslateOptions:
    asked = {
        "stop": given.stop,
        "frequency_penalty": given.frequency_penalty,
        "presence_penalty": given.presence_penalty,
        "best_of": given.best_of != 1 and given.best_of,
        "ignore_eos": given.ignore_eos,
        "adapt": given.adapt,
    }
    for name, value in asked.items():
        if value:
            raise InvalidRequest.of_option(name, "an encoder-decoder does not support it")
    if given.max_tokens == 0:
        raise InvalidRequest.of_option("max_tokens", "a translation has at least 1 token")
    samples = bool(given.temperature)
    filters = {"top_k": (given.top_k or 0) > 0, "top_p": given.top_p not in {None, 1.0}}
    refused = (
        {"beam_size": given.beam_size is not None}
        if samples
        else filters | {"seed": given.seed is not None}
    )
    for name, value in refused.items():
        if value:
            when = "temperature 0" if samples else "a temperature above 0"
            raise InvalidRequest.of_option(name, f"only with {when}")
    return TranslateOptions(
        beam_size=given.beam_size,
        length_penalty=1.0 if given.length_penalty is None else given.length_penalty,
        max_tokens=given.max_tokens,
        sampling=SamplingParams(
            temperature=given.temperature or 0.0,
            top_k=given.top_k if given.top_k and given.top_k > 0 else None,
            top_p=1.0 if given.top_p is None else given.top_p,
        )
        if samples
        else None,
        seed=given.seed,
        tokens=bool(given.details),
    )


async def _text_events(
    engine: Generates, asked: str, given: GenerateParameters, options: GenerateOptions
) -> AsyncGenerator[ServerSentEvent, None]:
    told: list[tuple[str, float]] = []
    reason: Literal["stop", "length"] = "length"
    details: DetailsOut | None = None
    async with aclosing(engine.stream([asked], options)) as events:
        async for event in events:
            if isinstance(event, TokenEvent) and event.token is not None:
                told.append((event.token.token, event.token.logprob or 0.0))
                yield _event(engine, event.text)
            elif isinstance(event, ChoiceEnd):
                reason = event.finish_reason
            elif isinstance(event, StreamUsage) and given.details:
                details = _details(engine.tokens, reason, told, event.unknown[0])
    yield _event(engine, "", done=True, details=details)


async def _translation_events(
    engine: Translates, asked: str, given: GenerateParameters, options: TranslateOptions
) -> AsyncGenerator[ServerSentEvent, None]:
    details: DetailsOut | None = None
    prefix = given.target_prefix or ""
    async with aclosing(engine.stream([asked], [prefix], options)) as events:
        async for event in events:
            if isinstance(event, TranslatedToken):
                yield _event(engine, event.text)
            elif given.details:
                details = _translation_details(engine, event[0])
    yield _event(engine, "", done=True, details=details)


def _event(
    engine: Engine, text: str, *, done: bool = False, details: DetailsOut | None = None
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


def _translation_details(engine: Translates, result: Translated) -> DetailsOut:
    found = result.hypotheses[0]
    told = [(x.token, x.logprob) for x in found.tokens or ()]
    names = engine.vocabularies["target"].tokens
    return _details(names, found.finish_reason, told, result.unknown)


def _details(
    names: Sequence[str],
    finish_reason: Literal["stop", "length", "repetition"],
    told: Sequence[tuple[str, float]],
    unknown: Unknown,
) -> DetailsOut:
    """The details: why the text ended, and each printed token with its log-probability."""
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
    return DetailsOut.model_construct(
        finish_reason=reason,
        logprobs=tokens,
        unknown=list(unknown.positions),
        unknown_chars=unknown.count,
    )


def _ready(response: Response, is_ready: bool) -> ReadyOut:
    if not is_ready:
        response.status_code = 503
    return ReadyOut(ready=is_ready)
