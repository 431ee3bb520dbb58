"""`POST /infill` under llama.cpp's names, for editors that speak its protocol."""

from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import Request, Response

from service.endpoints.llama_infill_wire import (
    FIELD_OF_OPTION,
    LlamaInfillAnswer,
    LlamaInfillRequest,
    LlamaPiece,
)
from service.endpoints.openai_suffix import filler
from service.http.answers import json_answer, unless_gone
from service.http.option_names import named_by
from service.http.problems import error_event
from service.http.sse import ServerSentEvent, event_response
from service.tasks.engine import Infills
from service.tasks.insertions import InsertOptions, inserted


async def llama_infill(request: Request, body: LlamaInfillRequest) -> Response:
    """The text of the blank, as llama.cpp answers.

    No fill is known before all have been compared, so a stream sends it in one event.
    """
    engine = await filler(request, body.model)
    options = body.options()
    work = partial(_answer, request, engine, body, options)
    with named_by(FIELD_OF_OPTION):
        if body.stream:
            return await event_response(request, _events(work), partial(error_event, request))
        answer = await unless_gone(request, work())
    return await json_answer(len(answer.content), lambda: answer)


async def _answer(
    request: Request, engine: Infills, body: LlamaInfillRequest, options: InsertOptions
) -> LlamaInfillAnswer:
    name = engine.manifest.name
    if options.max_tokens == 0:
        return LlamaInfillAnswer.empty(name)
    (found,) = await inserted(engine, [body.blanks()], options, request.app.state.settings)
    return LlamaInfillAnswer.of(name, found)


async def _events(
    work: Callable[[], Coroutine[Any, Any, LlamaInfillAnswer]],
) -> AsyncGenerator[ServerSentEvent, None]:
    answer = await work()
    piece = LlamaPiece(content=answer.content, tokens=[], stop=False)
    yield ServerSentEvent(piece.model_dump_json())
    end = answer.model_copy(update={"content": ""})
    yield ServerSentEvent(end.model_dump_json())
