"""`/score` of a streamed body: lines or one text in, answers as lines out, in constant memory."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import Message, Receive

from service.endpoints.line_reader import Line, LineSplitter, TextSplitter
from service.errors import (
    ClientGone,
    DeadlineExceeded,
    InvalidRequest,
    ModelFailure,
    QueueFull,
    ServiceError,
    TooManyConnections,
    UnsupportedMediaType,
)
from service.http.answers import engine_able, problem_document
from service.http.body import field_errors, inlined_schema
from service.http.json_values import holds_more_values
from service.http.live import LiveResponse
from service.http.turns import Turns
from service.http.wire import Answer, Problem, ScoreFigures, ScoreRequest, ScoreResult
from service.observe.request_context import current_request
from service.settings import Settings
from service.tasks.carried_score import CarriedScore
from service.tasks.engine import SCORE, SCORE_IN_PARTS, Scores, ScoresInParts
from service.tasks.values import Scored, ScoreOptions, Unknown

# Of a line: its object has four fields, which hold no lists. More would be dear to refuse.
_MOST_VALUES = 64
TEXT, NDJSON = "text/plain", "application/x-ndjson"
# A full queue is waited for: a stream is in no hurry.
_RETRY_S = 0.05
# Lines that are scored together at most: what is done for all of them at once holds up others.
_BATCH_LINES = 128
# Lines that are split in one turn, and lines that are read or answered in one.
_TURN_LINES = 512
_TURN_ANSWERS = 32

Result = TypeVar("Result")


class StreamQuery(BaseModel):
    """The query parameters of a streamed `/score`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="Name of a served model.")
    mode: Literal["lines", "total"] = Field(
        "lines", description="Every line is a text, or the whole stream is one (`text/plain`)."
    )
    bos: bool = Field(True, description="As in the JSON request.")
    eos: bool | None = Field(None, description="As in the JSON request.")
    unknown: Literal["unk", "error", "skip"] = Field("unk", description="As in the JSON request.")
    every: int = Field(
        65_536, ge=1, description="Mode `total`: characters from one running total to the next."
    )


class StreamedText(BaseModel):
    """A line of an NDJSON body."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text: str = Field(description="The text.")
    context: str = Field("", description="Read before it and not counted.")
    source: str | None = Field(None, description="Encoder-decoders: what it is a translation of.")
    id: Annotated[str, Field(max_length=256)] | int | None = Field(
        None, description="Given back with the answer."
    )


class StreamedScore(ScoreFigures):
    """The answer to a line."""

    line: int = Field(description="Its number, from 1 on.")
    id: str | int | None = Field(None, description="What the line gave; left out where it did not.")
    unknown: list[int] = Field(description="As in the JSON answer.")
    unknown_chars: int = Field(description="As in the JSON answer.")


class StreamedError(Answer):
    """What is told of a line in place of a score, or last of a stream that broke."""

    line: int | None = Field(
        None, description="Its number; left out where the whole stream is meant."
    )
    id: str | int | None = Field(None, description="What the line gave; left out where it did not.")
    error: Problem = Field(description="As it is told elsewhere.")


class StreamedTotal(ScoreFigures):
    """Mode `total`: of the text as far as it was read."""

    done: bool = Field(description="Whether this is the whole text.")
    unknown_chars: int = Field(description="How many characters were outside the vocabulary.")


# Of one line, as OpenAPI 3.2 has it (`itemSchema`).
ANSWERED_LINES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            NDJSON: {
                "itemSchema": {
                    "anyOf": [
                        inlined_schema(each)
                        for each in (StreamedScore, StreamedError, StreamedTotal)
                    ]
                }
            }
        }
    }
}


def stream_documentation(operation: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI entry of `/score`, with the bodies that are streams."""
    operation["requestBody"]["content"] |= {
        TEXT: {"schema": {"type": "string"}, "example": "the white rabbit\nthe whjte rabbit\n"},
        NDJSON: {
            "schema": {"type": "string", "description": "Lines of JSON."},
            "itemSchema": inlined_schema(StreamedText),
            "example": '{"text": "the white rabbit", "id": 1}\n',
        },
    }
    properties = StreamQuery.model_json_schema()["properties"]
    operation["parameters"] = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description") + " For streamed bodies.",
            "schema": schema,
        }
        for name, schema in properties.items()
    ]
    return operation


def is_stream(request: Request) -> bool:
    """Whether the body is one that is scored while it comes."""
    return _media_type(request)[0] in {TEXT, NDJSON}


async def score_stream(request: Request) -> Response:
    """Score the body as it comes. Raises the errors that come before it."""
    media_type, charset = _media_type(request)
    if charset not in {"", "utf-8", "utf8"}:
        raise UnsupportedMediaType("a text is in UTF-8")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")
    query = _query(request)
    engine = engine_able(request, query.model, SCORE, "this model scores nothing; see /models")
    in_parts = SCORE_IN_PARTS.of(engine) if query.mode == "total" else None
    lacks_sources = engine.needs_sources and media_type == TEXT
    if lacks_sources or (query.mode == "total" and in_parts is None):
        raise InvalidRequest.of_option(
            "model", f"an encoder-decoder scores pairs: lines of {NDJSON}"
        )
    if query.mode == "total" and media_type != TEXT:
        raise InvalidRequest.of_option("mode", f"a total is of {TEXT}")
    expect_stream = request.scope.get("unroll.expect_stream")
    if expect_stream is not None:
        expect_stream()
    body = _Body(request)
    # Asked for before the answer begins: a client may wait for "100 Continue" to send it.
    await asyncio.sleep(0)
    if in_parts is not None:
        answers = _total(request, in_parts, query, body)
    else:
        answers = _lines(request, engine, query, body, is_json=media_type == NDJSON)
    return _Lines(request, answers, body)


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
        raise InvalidRequest("a query parameter stands once")
    try:
        return StreamQuery.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise field_errors(StreamQuery, error) from error


class _Body:
    """The body's pieces, one of them received ahead, so that a client that goes is noticed."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        # Of the connection, where there is one: hears whether the stream waits for its client.
        self._stand_still: Callable[[asyncio.Future[None] | None], None] = request.scope.get(
            "unroll.stand_still", lambda _: None
        )
        # The next piece hides that nobody is there to read what becomes of it.
        self._has_gone: Callable[[], bool] = request.scope.get("unroll.is_gone", lambda: False)
        self._turns: Turns = request.app.state.turns
        self._idle_s = request.app.state.settings.stream_idle_s
        self._ended = False
        self._ahead = asyncio.create_task(_message(self._receive))

    async def piece(self) -> bytes | None:
        """The next piece, and None after the last. Raises ClientGone and DeadlineExceeded."""
        if self._ended:
            return None
        if not self._ahead.done():
            await self._arrival()
        message = self._ahead.result()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client closed the connection")
        self._ended = not message.get("more_body", False)
        self._ahead = asyncio.create_task(_message(self._receive))
        data: bytes = message.get("body", b"")
        return data

    async def _arrival(self) -> None:
        """Wait for the next piece. Raises DeadlineExceeded and TooManyConnections."""
        give_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stand_still(give_way)
        try:
            waiting = (self._ahead, give_way)
            await asyncio.wait(waiting, timeout=self._idle_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stand_still(None)
        if self._ahead.done():
            return
        if give_way.done():
            raise TooManyConnections("this stream stood still, and others need its place")
        raise DeadlineExceeded(f"a stream may stand still for {self._idle_s:g} s")

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed the connection."""
        if self._has_gone():
            return True
        return self._ahead.done() and self._ahead.result()["type"] == "http.disconnect"

    async def turn(self) -> None:
        """Wait for a turn to do a little. Raises ClientGone."""
        await self._turns.take()
        if self.is_gone:
            raise ClientGone("the client closed the connection")

    async def while_there(self, work: "asyncio.Task[Any]") -> None:
        """Wait for the work; it is cancelled when the client goes. Raises ClientGone."""
        try:
            while not work.done():
                waiting = {work} if self._ahead.done() else {work, self._ahead}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if self.is_gone and not work.done():
                    raise ClientGone("the client closed the connection")
        finally:
            work.cancel()

    async def close(self) -> None:
        """End what is received ahead."""
        self._ahead.cancel()
        await asyncio.wait((self._ahead,))


async def _message(receive: Receive) -> Message:
    return await receive()


class _Lines(LiveResponse):
    """Answers as lines, each written as soon as it is there."""

    def __init__(self, request: Request, answers: AsyncGenerator[bytes, None], body: _Body) -> None:
        super().__init__(request, NDJSON)
        # So that what still comes of a body that was given up is not read.
        self.headers["Connection"] = "close"
        self._answers = answers
        self._body = body

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """The answers."""
        try:
            async for answer in self._answers:
                yield answer
        except ClientGone:
            current_request().outcome = ClientGone.type

    async def close(self) -> None:
        """End the work and the body."""
        await self._answers.aclose()
        await self._body.close()


# --- a text a line --------------------------------------------------------------------------------


async def _lines(
    request: Request, engine: Scores, query: StreamQuery, body: _Body, *, is_json: bool
) -> AsyncGenerator[bytes, None]:
    settings: Settings = request.app.state.settings
    splitter = LineSplitter(settings.max_line_bytes)
    try:
        while True:
            piece = await body.piece()
            async for batch in _batches(splitter, piece, body, request, is_json=is_json):
                yield await _answered(request, engine, query, body, batch, is_json=is_json)
            if piece is None:
                return
    except ClientGone:
        raise
    except ServiceError as error:
        # Of the whole stream: the line says so by having no number.
        yield _json({"error": problem_document(request, error).model_dump()})


async def _batches(
    splitter: LineSplitter, piece: bytes | None, body: _Body, request: Request, *, is_json: bool
) -> AsyncGenerator[list[Line], None]:
    """Lines that are scored together: as many as came, within bounds. Empty ones of NDJSON go."""
    batch: list[Line] = []
    size = 0
    settings: Settings = request.app.state.settings
    most = min(settings.max_inputs, _BATCH_LINES)
    for part in [None] if piece is None else _parts(piece):
        await body.turn()
        for line in splitter.end() if part is None else splitter.feed(part):
            if is_json and line.content is not None and not line.content.strip():
                continue
            length = len(line.content or b"")
            is_full = len(batch) >= most or size + length > settings.stream_batch_bytes
            if batch and is_full:
                yield batch
                batch, size = [], 0
            batch.append(line)
            size += length
    if batch:
        yield batch


def _parts(piece: bytes) -> list[bytes]:
    """A piece in parts that hold few lines: as a whole, mostly."""
    if piece.count(b"\n") <= _TURN_LINES:
        return [piece]
    return [piece[i : i + _TURN_LINES] for i in range(0, len(piece), _TURN_LINES)]


async def _answered(
    request: Request,
    engine: Scores,
    query: StreamQuery,
    body: _Body,
    batch: Sequence[Line],
    *,
    is_json: bool,
) -> bytes:
    """The answers to some lines, in order."""
    limit = request.app.state.settings.max_line_bytes
    told: dict[int, bytes] = {}
    texts: dict[int, StreamedText] = {}
    for i, line in enumerate(batch):
        if i % _TURN_ANSWERS == 0:
            await body.turn()
        try:
            texts[line.number] = _read(line, limit, is_json=is_json)
        except ServiceError as error:
            told[line.number] = _error(request, line.number, None, error)
    if texts:
        told |= await _scored(request, engine, query, body, texts)
    return b"".join(told[number] for number in sorted(told))


def _read(line: Line, limit: int, *, is_json: bool) -> StreamedText:
    """A line's text. Raises InvalidRequest and BadRequest."""
    if line.content is None:
        raise InvalidRequest(f"a line may have {limit} bytes at most")
    if is_json:
        if holds_more_values(line.content, _MOST_VALUES):
            raise InvalidRequest("a line is one object, with the fields text, context, source, id")
        try:
            return StreamedText.model_validate_json(line.content)
        except ValidationError as error:
            raise field_errors(StreamedText, error) from error
    try:
        return StreamedText(text=line.content.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the line is not UTF-8 from byte {error.start} on") from error


async def _scored(
    request: Request,
    engine: Scores,
    query: StreamQuery,
    body: _Body,
    texts: dict[int, StreamedText],
) -> dict[int, bytes]:
    """What the lines are worth; where one is refused, the others are asked for without it."""
    try:
        results = await _asked(engine, query, body, list(texts.values()))
    except (InvalidRequest, ModelFailure) as error:
        if len(texts) == 1:
            ((number, text),) = texts.items()
            return {number: _error(request, number, text, error)}
        told: dict[int, bytes] = {}
        for number, text in texts.items():
            told |= await _scored(request, engine, query, body, {number: text})
        return told
    answers: dict[int, bytes] = {}
    for i, ((number, text), result) in enumerate(zip(texts.items(), results, strict=True)):
        if i % _TURN_ANSWERS == 0:
            await body.turn()
        unknown = {"unknown": result.unknown.positions, "unknown_chars": result.unknown.count}
        figures = _figures(result) | unknown
        answers[number] = _json(_with_id({"line": number}, text) | figures)
    return answers


async def _asked(
    engine: Scores, query: StreamQuery, body: _Body, texts: Sequence[StreamedText]
) -> list[Scored]:
    strings = [text.text for text in texts]
    sources = [text.source for text in texts if text.source is not None]
    if sources and len(sources) < len(texts):
        raise InvalidRequest("some lines have a source and some have none")
    contexts = [text.context for text in texts]
    asked = ScoreRequest(
        text=strings,
        source=sources or None,
        context=contexts if any(contexts) else "",
        bos=query.bos,
        eos=query.eos,
        unknown=query.unknown,
    )
    given = {"contexts": asked.contexts(len(strings)), "sources": asked.sources(len(strings))}
    return await _in_time(body, lambda: engine.score(strings, asked.options(), **given))


async def _in_time(body: _Body, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """What the work gives, begun again as long as the queue is full. Raises ClientGone."""
    while True:
        # A stream may last; each of its parts has the time of a request.
        current_request().begin_again()
        work = asyncio.create_task(start())
        await body.while_there(work)
        try:
            return await work
        except QueueFull:
            await asyncio.sleep(_RETRY_S)


def _error(request: Request, number: int, text: StreamedText | None, error: ServiceError) -> bytes:
    told = {"line": number, "error": problem_document(request, error).model_dump()}
    return _json(told if text is None else _with_id(told, text))


def _with_id(told: dict[str, Any], text: StreamedText) -> dict[str, Any]:
    return told if text.id is None else told | {"id": text.id}


# --- one text -------------------------------------------------------------------------------------


async def _total(
    request: Request, engine: ScoresInParts, query: StreamQuery, body: _Body
) -> AsyncGenerator[bytes, None]:
    splitter = TextSplitter(request.app.state.settings.stream_batch_bytes, engine.normalization)
    carried = CarriedScore(bos=query.bos)
    options = ScoreOptions(bos=query.bos, eos=bool(query.eos), unknown=query.unknown)
    try:
        while True:
            piece = await body.piece()
            try:
                part = splitter.end() if piece is None else splitter.feed(piece)
            except UnicodeDecodeError as error:
                after = max(0, splitter.read_bytes - 3)
                raise InvalidRequest(f"the text is not UTF-8 after byte {after}") from error
            except ValueError as error:
                raise InvalidRequest("the text holds no place to cut it for very long") from error
            ids = engine.ids_of(part)
            while len(ids):
                # Totals stand at the same places however the bytes came.
                size = query.every - carried.read % query.every
                part_work = partial(engine.carry_on, carried, ids[:size], options)
                carried = await _in_time(body, part_work)
                ids = ids[size:]
                if carried.read % query.every == 0:
                    yield _json(_running(carried, is_done=False))
            if piece is None:
                if options.eos:
                    carried = await _in_time(body, partial(engine.carry_on, carried, None, options))
                yield _json(_running(carried, is_done=True))
                return
    except ClientGone:
        raise
    except ServiceError as error:
        yield _json({"error": problem_document(request, error).model_dump()})


def _running(carried: CarriedScore, *, is_done: bool) -> dict[str, Any]:
    scored = Scored(
        logprob=carried.logprob,
        chars=carried.chars,
        bos=carried.bos,
        eos=carried.eos,
        unknown=Unknown(),
        tokens=None,
        prompt_tokens=0,
        cached_tokens=0,
    )
    return {"done": is_done} | _figures(scored) | {"unknown_chars": carried.unknown}


def _figures(scored: Scored) -> dict[str, Any]:
    """What the JSON answer tells of a text, but for what is in a list."""
    return ScoreResult.of(scored).model_dump(
        exclude={"unknown", "unknown_chars", "tokens", "state"}
    )


def _json(told: dict[str, Any]) -> bytes:
    # In ASCII: some clients take U+2028 and its like for the end of a line.
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"
