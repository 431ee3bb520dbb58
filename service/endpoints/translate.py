"""`POST /translate`: targets of sources."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request, Response

from service.endpoints.translate_wire import (
    StreamedTranslationToken,
    TranslateRequest,
    TranslateResponse,
)
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS, error_event
from service.http.sse import ServerSentEvent, documented_events, event_response
from service.http.wire import Problem, listed
from service.tasks.engine import TRANSLATE, Translates
from service.tasks.translations import ALIGNMENT_SIZE, TranslatedToken, TranslateOptions

router = APIRouter()


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
    engine = await engine_with(request, body.model, TRANSLATE)
    sources = listed(body.source)
    prefixes = body.prefixes(len(sources))
    if body.stream:
        events = _events(engine, sources, prefixes, body.options())
        return await event_response(request, events, partial(error_event, request))
    results = await unless_gone(request, engine.translate(sources, prefixes, body.options()))
    size = sum(len(x.text) for result in results for x in result.hypotheses)
    size *= ALIGNMENT_SIZE if body.return_alignments else 1
    return await json_answer(size, lambda: TranslateResponse.of(engine, results))


async def _events(
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
