"""`POST /classify`: the labels of texts."""

from fastapi import APIRouter, Request, Response

from service.endpoints.classify_wire import ClassifyRequest, ClassifyResponse
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS
from service.http.wire import listed
from service.tasks.engine import CLASSIFY

router = APIRouter()


@router.post(
    "/classify",
    response_model=ClassifyResponse,
    responses=PROBLEMS,
    openapi_extra=body_documentation(ClassifyRequest),
    tags=["models"],
)
async def classify(request: Request) -> Response:
    """The labels of a text, or of every text of a list, likeliest first."""
    body = await read_body(request, ClassifyRequest)
    engine = engine_with(request, body.model, CLASSIFY)
    texts, options = listed(body.text), body.options()
    results = await unless_gone(request, engine.classify(texts, options))
    size = sum(8 * (len(x.labels) + len(x.steps or ())) + len(x.state or "") for x in results)
    return await json_answer(size, lambda: ClassifyResponse.of(engine, results))
