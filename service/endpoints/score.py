"""`POST /score`: the probability of texts."""

from fastapi import APIRouter, Request, Response

from service.endpoints.score_stream import score_stream
from service.endpoints.score_stream_wire import (
    ScoreStreamQuery,
    StreamedScore,
    StreamedText,
    StreamedTotal,
)
from service.endpoints.score_wire import ScoreRequest, ScoreResponse
from service.endpoints.stream_wire import answered_lines, stream_documentation
from service.endpoints.streams import is_stream, refuse_query
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS
from service.http.wire import listed
from service.tasks.engine import SCORE, SCORE_LABELS, Engine

router = APIRouter()


@router.post(
    "/score",
    response_model=ScoreResponse,
    responses=PROBLEMS | answered_lines(StreamedScore, StreamedTotal),
    openapi_extra=stream_documentation(
        body_documentation(ScoreRequest),
        ScoreStreamQuery,
        StreamedText,
        "the white rabbit\nthe whjte rabbit\n",
    ),
    tags=["models"],
)
async def score(request: Request) -> Response:
    """The probability of a text, or of every text of a list; given its source, where it has one.

    With `label`, it is the probability of a classifier's label, given the text.

    A body of `text/plain` or `application/x-ndjson` is a stream: every line is a text, and is
    answered with a line as soon as it has come; the fields of the JSON request are query parameters
    then. With `mode=total` the whole stream is one text, and the answer a running total.
    """
    if is_stream(request):
        return await score_stream(request)
    body = await read_body(request, ScoreRequest)
    refuse_query(request)
    texts, options = listed(body.text), body.options()
    labels = body.labels(len(texts))
    engine: Engine
    if labels is not None:
        of_labels = await engine_with(request, body.model, SCORE_LABELS)
        engine, work = of_labels, of_labels.score_labels(texts, labels, options)
    else:
        of_texts = await engine_with(request, body.model, SCORE)
        contexts, sources = body.contexts(len(texts)), body.sources(len(texts))
        work = of_texts.score(texts, options, contexts=contexts, sources=sources)
        engine = of_texts
    results = await unless_gone(request, work)
    detail_top = options.detail_top
    size = 0 if detail_top is None else sum(map(len, texts)) * (1 + detail_top)
    size += sum(len(result.state or "") for result in results)
    return await json_answer(size, lambda: ScoreResponse.of(engine, options, results))
