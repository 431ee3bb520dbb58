"""The native endpoints: schema in, engine call, schema out."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from service.endpoints.score_stream import (
    ANSWERED_LINES,
    is_stream,
    score_stream,
    stream_documentation,
)
from service.endpoints.translate_wire import (
    EncoderDecoderDetail,
    StreamedTranslationToken,
    TranslateRequest,
    TranslateResponse,
)
from service.errors import InvalidRequest
from service.http.answers import (
    PROBLEMS,
    documented_events,
    engine_able,
    engine_named,
    error_event,
    json_answer,
    served_engines,
    unless_gone,
)
from service.http.body import body_documentation, read_body
from service.http.sse import ServerSentEvent, event_response
from service.http.wire import (
    GenerateDone,
    GenerateRequest,
    GenerateResponse,
    ModelDetail,
    ModelList,
    ModelSummary,
    Problem,
    ScoreRequest,
    ScoreResponse,
    StreamedToken,
    listed,
)
from service.tasks.engine import GENERATE, SCORE, TRANSLATE, Engine, Generates, Translates
from service.tasks.translations import ALIGNMENT_SIZE, TranslatedToken, TranslateOptions
from service.tasks.values import ChoiceEnd, GenerateOptions, TokenEvent

router = APIRouter()

# What `/models/{name}` shows of a model of each kind.
_DETAILS: Mapping[str, Callable[[Any, Engine], ModelDetail | EncoderDecoderDetail]] = {
    "language_model": ModelDetail.of_manifest,
    "encoder_decoder": EncoderDecoderDetail.of_manifest,
}


@router.post(
    "/generate",
    response_model=GenerateResponse,
    responses=PROBLEMS | documented_events(token=StreamedToken, done=GenerateDone, error=Problem),
    openapi_extra=body_documentation(GenerateRequest),
    tags=["models"],
)
async def generate(request: Request) -> Response:
    """Continue a prompt, or every prompt of a list."""
    body = await read_body(request, GenerateRequest)
    engine = engine_able(
        request, body.model, GENERATE, "an encoder-decoder answers /translate and /score"
    )
    prompts = listed(body.prompt)
    options = body.options()
    if body.stream:
        events = _generate_events(engine, prompts, options)
        return await event_response(request, events, partial(error_event, request))
    results = await unless_gone(request, engine.generate(prompts, options))
    choices = [choice for result in results for choice in result.choices]
    size = sum(len(choice.text) for choice in choices) * (1 + (body.logprobs or 0))
    size += sum(len(choice.state or "") for choice in choices)
    return await json_answer(size, lambda: GenerateResponse.of(engine, results))


async def _generate_events(
    engine: Generates, prompts: list[str], options: GenerateOptions
) -> AsyncGenerator[ServerSentEvent, None]:
    ends: list[ChoiceEnd] = []
    async with aclosing(engine.stream(prompts, options)) as events:
        async for event in events:
            if isinstance(event, TokenEvent):
                yield ServerSentEvent(StreamedToken.of(event).model_dump_json(), "token")
            elif isinstance(event, ChoiceEnd):
                ends.append(event)
            else:
                done = GenerateDone.of(engine, ends, event)
                yield ServerSentEvent(done.model_dump_json(), "done")


@router.post(
    "/translate",
    response_model=TranslateResponse,
    responses=PROBLEMS
    | documented_events(token=StreamedTranslationToken, done=TranslateResponse, error=Problem),
    openapi_extra=body_documentation(TranslateRequest),
    tags=["models"],
)
async def translate(request: Request) -> Response:
    """Translate a source, or every source of a list."""
    body = await read_body(request, TranslateRequest)
    engine = engine_able(
        request, body.model, TRANSLATE, "a language model translates nothing; see /models"
    )
    sources = listed(body.source)
    prefixes = body.prefixes(len(sources))
    if body.stream:
        events = _translate_events(engine, sources, prefixes, body.options())
        return await event_response(request, events, partial(error_event, request))
    results = await unless_gone(request, engine.translate(sources, prefixes, body.options()))
    size = sum(len(x.text) for result in results for x in result.hypotheses)
    size *= ALIGNMENT_SIZE if body.return_alignments else 1
    return await json_answer(size, lambda: TranslateResponse.of(engine, results))


async def _translate_events(
    engine: Translates, sources: list[str], prefixes: list[str], options: TranslateOptions
) -> AsyncGenerator[ServerSentEvent, None]:
    async with aclosing(engine.stream(sources, prefixes, options)) as events:
        async for event in events:
            if isinstance(event, TranslatedToken):
                data = StreamedTranslationToken.of(event).model_dump_json()
                yield ServerSentEvent(data, "token")
            else:
                done = TranslateResponse.of(engine, event)
                yield ServerSentEvent(done.model_dump_json(), "done")


@router.post(
    "/score",
    response_model=ScoreResponse,
    responses=PROBLEMS | ANSWERED_LINES,
    openapi_extra=stream_documentation(body_documentation(ScoreRequest)),
    tags=["models"],
)
async def score(request: Request) -> Response:
    """The probability of a text, or of every text of a list; given its source, where it has one.

    A body of `text/plain` or `application/x-ndjson` is a stream: every line is a text, and is
    answered with a line as soon as it has come; the fields of the JSON request are query parameters
    then. With `mode=total` the whole stream is one text, and the answer a running total.
    """
    if is_stream(request):
        return await score_stream(request)
    body = await read_body(request, ScoreRequest)
    if request.query_params:
        raise InvalidRequest("query parameters are of streamed bodies; name the fields in the body")
    engine = engine_able(request, body.model, SCORE, "this model scores nothing; see /models")
    texts = listed(body.text)
    contexts, sources = body.contexts(len(texts)), body.sources(len(texts))
    work = engine.score(texts, body.options(), contexts=contexts, sources=sources)
    results = await unless_gone(request, work)
    size = sum(map(len, texts)) * (1 + body.top_logprobs) if body.tokens else 0
    size += sum(len(result.state or "") for result in results)
    return await json_answer(size, lambda: ScoreResponse.of(engine, results))


@router.get("/models", tags=["models"])
async def models(request: Request) -> ModelList:
    """Every served model."""
    return ModelList(models=[ModelSummary.of(engine) for engine in served_engines(request)])


@router.get("/models/{name}", responses={404: PROBLEMS[404]}, tags=["models"])
async def model(name: str, request: Request) -> ModelDetail | EncoderDecoderDetail:
    """One model: what it is, what it was trained on and what it is worth."""
    engine = engine_named(request, name)
    return _DETAILS[engine.manifest.task](engine.manifest, engine)
