"""`POST /score`: the probability of texts."""

from fastapi import APIRouter, Request, Response

from service.endpoints.score_stream import is_stream, score_stream
from service.endpoints.score_stream_wire import ANSWERED_LINES, stream_documentation
from service.endpoints.score_wire import ScoreRequest, ScoreResponse
from service.errors import InvalidRequest
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS
from service.http.wire import listed
from service.tasks.engine import SCORE

router = APIRouter()


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
    engine = engine_with(request, body.model, SCORE)
    texts = listed(body.text)
    contexts, sources = body.contexts(len(texts)), body.sources(len(texts))
    options = body.options()
    work = engine.score(texts, options, contexts=contexts, sources=sources)
    results = await unless_gone(request, work)
    detail_top = options.detail_top
    size = 0 if detail_top is None else sum(map(len, texts)) * (1 + detail_top)
    size += sum(len(result.state or "") for result in results)
    return await json_answer(size, lambda: ScoreResponse.of(engine, options, results))
