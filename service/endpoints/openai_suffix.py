"""`suffix` of OpenAI's /v1/completions: texts between a prompt and what follows it."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from fastapi import Request, Response

from service.endpoints.openai_errors import END_OF_STREAM, openai_error_event
from service.endpoints.openai_request import CompletionRequest
from service.endpoints.openai_wire import CompletionChoice, CompletionUsage, Envelope, usage_of
from service.http.answers import engine_with, json_answer, registry_of, unless_gone
from service.http.option_names import named_by
from service.http.sse import ServerSentEvent, event_response
from service.tasks.engine import DECIDE, INFILL, Infills
from service.tasks.insertions import Inserted, inserted

_FIELD_OF_OPTION = {"prefix": "prompt"}


async def filler(request: Request, name: str | None) -> Infills:
    """The engine of a model that fills blanks; without a name, of the only language model.

    Where no language model is served, it may be the only model that fills blanks. Raises
    ModelNotFound and InvalidRequest.
    """
    ability = DECIDE if name is None and registry_of(request).cards_with(DECIDE) else INFILL
    return await engine_with(request, name, ability)


async def insert(request: Request, body: CompletionRequest) -> Response:
    """The answer to a request with a suffix.

    No fill is known before all have been compared, so a stream sends each in one event.
    """
    engine = await filler(request, body.model)
    envelope = Envelope(engine)
    texts, options = body.insertion()
    work = partial(inserted, engine, texts, options, request.app.state.settings)
    with named_by(_FIELD_OF_OPTION):
        if body.stream:
            events = _events(work, envelope, options.n, wants_usage=body.wants_usage)
            return await event_response(request, events, partial(openai_error_event, request))
        results = await unless_gone(request, work())
    choices = _choices(results, options.n)
    size = sum(len(choice.text) for choice in choices)
    return await json_answer(size, lambda: envelope.chunk(choices, _usage(results)))


async def _events(
    work: Callable[[], Coroutine[Any, Any, list[Inserted]]],
    envelope: Envelope,
    count: int,
    *,
    wants_usage: bool,
) -> AsyncGenerator[ServerSentEvent, None]:
    results = await work()
    for choice in _choices(results, count):
        text = choice.model_copy(update={"finish_reason": None})
        for part in (text, choice.model_copy(update={"text": ""})):
            yield ServerSentEvent(envelope.chunk([part]).model_dump_json())
    if wants_usage:
        yield ServerSentEvent(envelope.chunk([], _usage(results)).model_dump_json())
    yield ServerSentEvent(END_OF_STREAM)


def _choices(results: Sequence[Inserted], count: int) -> list[CompletionChoice]:
    return [
        CompletionChoice.model_construct(
            text=choice.text, index=i * count + k, logprobs=None, finish_reason="stop"
        )
        for i, result in enumerate(results)
        for k, choice in enumerate(result.choices)
    ]


def _usage(results: Sequence[Inserted]) -> CompletionUsage:
    found = [result.infilled for result in results]
    return usage_of(
        sum(each.prompt_tokens for each in found),
        sum(each.completion_tokens for each in found),
        sum(each.unknown.count for each in found),
    )
