"""`/score` of a streamed body: lines or one text in, answers as lines out, in constant memory."""

import asyncio
from collections.abc import AsyncGenerator

from fastapi import Request, Response
from pydantic import ValidationError

from service.endpoints.score_lines import LineScoring
from service.endpoints.score_stream_wire import NDJSON, TEXT, StreamQuery
from service.endpoints.score_total import running_totals
from service.endpoints.streamed_body import StreamedBody
from service.errors import ClientGone, InvalidRequest, UnsupportedMediaType
from service.http.answers import engine_with
from service.http.body import field_errors
from service.http.live import LiveResponse
from service.observe.request_context import current_request
from service.tasks.engine import SCORE, SCORE_IN_PARTS, Scores
from service.tasks.guessing import check_guesses
from service.tasks.text_scoring import check_percentile
from service.tasks.values import ScoreOptions


def is_stream(request: Request) -> bool:
    """Whether the body is scored while it arrives."""
    return _media_type(request)[0] in {TEXT, NDJSON}


async def score_stream(request: Request) -> Response:
    """Score the body as it arrives. Raises the errors that are known before the answer begins."""
    media_type, charset = _media_type(request)
    if charset not in {"", "utf-8", "utf8"}:
        raise UnsupportedMediaType("the text must be in UTF-8")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")
    query = _query(request)
    engine = engine_with(request, query.model, SCORE)
    in_parts = SCORE_IN_PARTS.of(engine) if query.mode == "total" else None
    lacks_sources = engine.needs_sources and media_type == TEXT
    if lacks_sources or (query.mode == "total" and in_parts is None):
        raise InvalidRequest.of_option(
            "model", f"an encoder-decoder scores pairs: lines of {NDJSON}"
        )
    if query.adapt and not engine.adapts:
        # Not once for each line.
        raise InvalidRequest.of_option("adapt", "this model cannot adapt; /models lists which can")
    if query.mode == "total" and (query.units is not None or query.guesses):
        option = "units" if query.units is not None else "guesses"
        raise InvalidRequest.of_option(
            option, "only with mode lines: mode total scores no text by itself"
        )
    _check_options(query, engine)
    if query.mode == "total" and media_type != TEXT:
        raise InvalidRequest.of_option("mode", f"mode total needs {TEXT}")
    expect_stream = request.scope.get("unroll.expect_stream")
    if expect_stream is not None:
        expect_stream()
    body = StreamedBody(request)
    # Receive before the answer begins: the client may wait for "100 Continue" to send the body.
    await asyncio.sleep(0)
    if in_parts is not None:
        answers = running_totals(request, in_parts, query, body)
    else:
        scoring = LineScoring(request, engine, query, body, is_json=media_type == NDJSON)
        answers = scoring.answers()
    return _AnsweredLines(request, answers, body)


def _check_options(query: StreamQuery, engine: Scores) -> None:
    """Raise InvalidRequest once for what no line could be answered with."""
    options = ScoreOptions(
        bos=query.bos,
        eos=query.eos,
        unknown=query.unknown,
        adapt=query.adapt,
        guesses=query.guesses,
    )
    check_guesses(engine.guess_curve, options, contexts=None)
    if not query.percentile:
        return
    if query.mode == "total":
        raise InvalidRequest.of_option("percentile", "only with mode lines: it is for whole texts")
    check_percentile(options, has_percentiles=engine.has_percentiles, has_contexts=False)


def _media_type(request: Request) -> tuple[str, str]:
    media_type, *parameters = request.headers.get("content-type", "").lower().split(";")
    charset = ""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            charset = value.strip().strip('"')
    return media_type.strip(), charset


def _query(request: Request) -> StreamQuery:
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) != len(set(names)):
        raise InvalidRequest("each query parameter may be given once")
    try:
        return StreamQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise field_errors(StreamQuery, error) from error


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
