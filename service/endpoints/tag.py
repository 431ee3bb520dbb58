"""`POST /tag`: a label for each character of texts."""

from fastapi import APIRouter, Request, Response

from service.endpoints.stream_wire import StreamedLine, answered_lines, stream_documentation
from service.endpoints.streams import is_stream, refuse_query
from service.endpoints.tag_stream import tag_stream
from service.endpoints.tag_stream_wire import StreamedTags, TagStreamQuery
from service.endpoints.tag_wire import TagRequest, TagResponse
from service.http.answers import engine_with, json_answer, unless_gone
from service.http.body import body_documentation, read_body
from service.http.problems import PROBLEMS
from service.http.wire import listed
from service.tasks.engine import TAG

router = APIRouter()


@router.post(
    "/tag",
    response_model=TagResponse,
    responses=PROBLEMS | answered_lines(StreamedTags),
    openapi_extra=stream_documentation(
        body_documentation(TagRequest),
        TagStreamQuery,
        StreamedLine,
        "le lapin blanc\nou va l'ete\n",
    ),
    tags=["models"],
)
async def tag(request: Request) -> Response:
    """The tags of a text, or of every text of a list: runs of characters with the same label.

    If the labels of a model are characters, the answer is the restored text. A body of `text/plain`
    or `application/x-ndjson` is a stream: every line is a text, and is answered with a line as soon
    as it arrives. The fields of the JSON request are then query parameters.
    """
    if is_stream(request):
        return await tag_stream(request)
    body = await read_body(request, TagRequest)
    refuse_query(request)
    engine = await engine_with(request, body.model, TAG)
    texts, options = listed(body.text), body.options()
    results = await unless_gone(request, engine.tag(texts, options))
    size = sum(map(len, texts)) * (options.n + (4 * options.top if options.places else 0))
    return await json_answer(size, lambda: TagResponse.of(engine, results))
