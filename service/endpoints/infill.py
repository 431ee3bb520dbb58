"""`POST /infill`: fill the blanks of texts."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from service.endpoints.infill_wire import InfillRequest, InfillResponse
from service.endpoints.llama_infill import llama_infill
from service.endpoints.llama_infill_wire import (
    LLAMA_NAMES,
    LlamaInfillAnswer,
    LlamaInfillRequest,
    LlamaPiece,
)
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_either
from service.http.option_names import named_by
from service.http.problems import PROBLEMS
from service.http.sse import documented_events
from service.http.wire import Problem
from service.tasks.engine import DECIDE, INFILL, PROPOSE, Engine, Infills, Proposes
from service.tasks.infill_values import Blanks, Infilled, InfillOptions

router = APIRouter()


@router.post(
    "/infill",
    response_model=InfillResponse | LlamaInfillAnswer,
    responses=PROBLEMS | documented_events((LlamaPiece, LlamaInfillAnswer, Problem)),
    openapi_extra=body_documentation(InfillRequest, LlamaInfillRequest),
    tags=["models"],
)
async def infill(request: Request) -> Response:
    """Fill the blank between a prefix and a suffix, or the blanks of a text.

    A body with `input_prefix`, `input_suffix` or `input_extra` is a request of llama.cpp's clients,
    and is answered as its server does.
    """
    body = await read_either(request, InfillRequest, LlamaInfillRequest, LLAMA_NAMES)
    if isinstance(body, LlamaInfillRequest):
        return await llama_infill(request, body)
    texts, options = body.blanks(), body.options()
    engine: Engine
    decider: Infills | None = None
    if body.rescore is None:
        filler = await engine_with(request, body.model, INFILL)
        engine, work = filler, filler.infill(texts, options)
    else:
        proposer = await engine_with(request, body.model, PROPOSE)
        engine = proposer
        with named_by({"model": "rescore"}):
            decider = await engine_with(request, body.rescore, DECIDE)
        work = _decided(proposer, decider, texts, options)
    with named_by(body.fields):
        results = await unless_gone(request, work)
    size = sum(len(text) for result in results for fill in result.fills for text in fill.texts)
    return await json_answer(size, lambda: InfillResponse.of(engine, results, decider))


async def _decided(
    proposer: Proposes, decider: Infills, texts: Sequence[Blanks], options: InfillOptions
) -> list[Infilled]:
    """What one model proposes, ranked by another."""
    proposals = await proposer.propose(texts, options)
    return await decider.infill(texts, options, proposals=proposals)
