"""`POST /classify`: the labels of texts."""

from fastapi import APIRouter, Request, Response

from service.endpoints.classify_stream import classify_stream
from service.endpoints.classify_stream_wire import (
    ClassifyStreamQuery,
    StreamedLabels,
    StreamedLabelsSoFar,
)
from service.endpoints.classify_wire import ClassifyRequest, ClassifyResponse
from service.endpoints.stream_wire import StreamedLine, answered_lines, stream_documentation
from service.endpoints.streams import is_stream, refuse_query
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS
from service.http.wire import listed
from service.tasks.engine import CLASSIFY

router = APIRouter()


@router.post(
    "/classify",
    response_model=ClassifyResponse,
    responses=PROBLEMS | answered_lines(StreamedLabels, StreamedLabelsSoFar),
    openapi_extra=stream_documentation(
        body_documentation(ClassifyRequest),
        ClassifyStreamQuery,
        StreamedLine,
        "the white rabbit\ndas weiße Kaninchen\n",
    ),
    tags=["models"],
)
async def classify(request: Request) -> Response:
    """The labels of a text, or of every text of a list, likeliest first.

    A body of `text/plain` or `application/x-ndjson` is a stream: every line is a text, and is
    answered with a line as soon as it arrives. The fields of the JSON request are then query
    parameters. With `mode=total`, the whole stream is one text, and each line of the answer has its
    labels so far.
    """
    if is_stream(request):
        return await classify_stream(request)
    body = await read_body(request, ClassifyRequest)
    refuse_query(request)
    engine = await engine_with(request, body.model, CLASSIFY)
    texts, options = listed(body.text), body.options()
    results = await unless_gone(request, engine.classify(texts, options))
    size = sum(8 * (len(x.labels) + len(x.steps or ())) + len(x.state or "") for x in results)
    return await json_answer(size, lambda: ClassifyResponse.of(engine, results))
