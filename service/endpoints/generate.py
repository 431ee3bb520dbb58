"""`POST /generate`: continue texts."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from fastapi import APIRouter, Request, Response

from service.endpoints.generate_wire import (
    GenerateDone,
    GenerateRequest,
    GenerateResponse,
    StreamedToken,
)
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS, error_event
from service.http.sse import ServerSentEvent, documented_events, event_response
from service.http.wire import Problem, listed
from service.tasks.engine import GENERATE, Generates
from service.tasks.values import ChoiceEnd, GenerateOptions, TokenEvent

router = APIRouter()


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
    engine = await engine_with(request, body.model, GENERATE)
    prompts = listed(body.prompt)
    options = body.options()
    if body.stream:
        events = _events(engine, prompts, options)
        return await event_response(request, events, partial(error_event, request))
    results = await unless_gone(request, engine.generate(prompts, options))
    choices = [choice for result in results for choice in result.choices]
    size = sum(len(choice.text) for choice in choices) * (1 + (body.logprobs or 0))
    size += sum(len(choice.state or "") for choice in choices)
    return await json_answer(size, lambda: GenerateResponse.of(engine, options, results))


async def _events(
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
                done = GenerateDone.of(engine, options, ends, event)
                yield ServerSentEvent(done.model_dump_json(), "done")
