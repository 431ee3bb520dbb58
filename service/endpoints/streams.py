"""Streamed bodies: lines or one text in, answers as lines out, in constant memory."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from fastapi import Request, Response
from pydantic import ValidationError

from service.endpoints.stream_wire import NDJSON, TEXT, StreamQuery
from service.endpoints.streamed_body import StreamedBody
from service.errors import ClientGone, InvalidRequest, UnsupportedMediaType
from service.http.body import field_errors
from service.http.heads import header
from service.http.live import LiveResponse
from service.observe.request_context import current_request

Query = TypeVar("Query", bound=StreamQuery)


def is_stream(request: Request) -> bool:
    """Whether the body is answered while it arrives."""
    return _media_type(request)[0] in {TEXT, NDJSON}


def is_json(request: Request) -> bool:
    """Whether the lines of a stream are JSON."""
    return _media_type(request)[0] == NDJSON


def refuse_query(request: Request) -> None:
    """Raise InvalidRequest where a JSON body comes with query parameters."""
    if request.scope["query_string"]:
        raise InvalidRequest(
            "query parameters are for streamed bodies; put the fields into the body"
        )


def stream_query(request: Request, schema: type[Query]) -> Query:
    """The query parameters of a stream. Raises InvalidRequest and UnsupportedMediaType."""
    if _media_type(request)[1] not in {"", "utf-8", "utf8"}:
        raise UnsupportedMediaType("the text must be in UTF-8")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) != len(set(names)):
        raise InvalidRequest("each query parameter may be given once")
    try:
        return schema.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise field_errors(schema, error) from error


async def answered(
    request: Request, answers: Callable[[StreamedBody], AsyncGenerator[bytes, None]]
) -> Response:
    """The answer to a stream, whose lines `answers` makes from the body."""
    expect_stream = request.scope.get("unroll.expect_stream")
    if expect_stream is not None:
        expect_stream()
    body = StreamedBody(request)
    # Receive before the answer begins: the client may wait for "100 Continue" to send the body.
    await asyncio.sleep(0)
    return _AnsweredLines(request, answers(body), body)


def _media_type(request: Request) -> tuple[str, str]:
    media_type, *parameters = header(request.scope, b"content-type").lower().split(";")
    charset = ""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            charset = value.strip().strip('"')
    return media_type.strip(), charset


class _AnsweredLines(LiveResponse):
    """Answers as lines, each sent as soon as it is known."""

    def __init__(
        self, request: Request, answers: AsyncGenerator[bytes, None], body: StreamedBody
    ) -> None:
        super().__init__(request, NDJSON)
        # An abandoned body is not read to its end.
        self.headers["Connection"] = "close"
        self._answers = answers
        self._body = body

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The answered lines."""
        try:
            async for answer in self._answers:
                yield answer
        except ClientGone:
            current_request().outcome = ClientGone.type

    async def close(self) -> None:
        """Stop the work, and stop receiving the body."""
        await self._answers.aclose()
        await self._body.close()
