"""`/tag` of a streamed body: lines of texts."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial

from fastapi import Request, Response

from service.endpoints.answered_lines import AnsweredLines, LineTask
from service.endpoints.stream_wire import StreamedLine
from service.endpoints.streamed_body import StreamedBody
from service.endpoints.streams import answered, is_json, stream_query
from service.endpoints.tag_stream_wire import TagStreamQuery, tagged_told
from service.http.answers import engine_with
from service.tasks.engine import TAG
from service.tasks.label_values import Tagged


async def tag_stream(request: Request) -> Response:
    """Tag the lines as they arrive. Raises the errors that are known before the answer begins."""
    query = stream_query(request, TagStreamQuery)
    engine = await engine_with(request, query.model, TAG)
    options = query.options()
    engine.check_tag(options)

    async def results(lines: Sequence[StreamedLine]) -> list[Tagged]:
        return await engine.tag([line.text for line in lines], options)

    def answers(body: StreamedBody) -> AsyncGenerator[bytes, None]:
        task = LineTask(StreamedLine, results, partial(tagged_told, options=options))
        return AnsweredLines(request, body, task, is_json(request)).answers()

    return await answered(request, answers)
