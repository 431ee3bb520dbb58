"""A streamed body of lines: every line is a text and gets one line as its answer."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import ValidationError

from service.endpoints.line_reader import Line, LineSplitter
from service.endpoints.stream_wire import StreamedLine, json_line
from service.endpoints.streamed_body import StreamedBody
from service.errors import ClientGone, InvalidRequest, ModelFailure, ServiceError
from service.http.body import field_errors
from service.http.json_values import holds_more_values
from service.http.problems import problem_document
from service.settings import Settings

LineT = TypeVar("LineT", bound=StreamedLine)
ResultT = TypeVar("ResultT")

# Most JSON values in a line: an object of four fields, no lists. Parsing more costs too much.
_MOST_VALUES = 64
# Most lines that are answered together: work on all of them at once holds up other requests.
_BATCH_LINES = 128
# Lines that are split in one turn, and lines that are parsed or answered in one turn.
_TURN_LINES = 512
_TURN_ANSWERS = 32


@dataclass(frozen=True, slots=True)
class LineTask(Generic[LineT, ResultT]):
    """What is done with the lines of a stream."""

    line: type[LineT]  # of an NDJSON body; a line of text has no other field
    results: Callable[[Sequence[LineT]], Coroutine[Any, Any, Sequence[ResultT]]]
    told: Callable[[ResultT], dict[str, Any]]  # the fields of the answer to a line


@dataclass(frozen=True, slots=True)
class AnsweredLines(Generic[LineT, ResultT]):
    """The lines of one request on their way through a model."""

    request: Request
    body: StreamedBody
    task: LineTask[LineT, ResultT]
    is_json: bool

    async def answers(self) -> AsyncGenerator[bytes, None]:
        """The answered lines in order. An error of the whole stream is last and has no number."""
        splitter = LineSplitter(self._settings.max_line_bytes)
        try:
            while True:
                piece = await self.body.piece()
                async for batch in self._batches(splitter, piece):
                    yield await self._answered(batch)
                if piece is None:
                    return
        except ClientGone:
            raise
        except ServiceError as error:
            yield json_line({"error": problem_document(self.request, error).model_dump()})

    @property
    def _settings(self) -> Settings:
        settings: Settings = self.request.app.state.settings
        return settings

    async def _batches(
        self, splitter: LineSplitter, piece: bytes | None
    ) -> AsyncGenerator[list[Line], None]:
        """Lines to answer together: all that have arrived, within bounds.

        Empty ones of NDJSON are left out.
        """
        batch: list[Line] = []
        size = 0
        most = min(self._settings.max_inputs, _BATCH_LINES)
        for part in [None] if piece is None else _parts(piece):
            await self.body.turn()
            for line in splitter.end() if part is None else splitter.feed(part):
                if self.is_json and line.content is not None and not line.content.strip():
                    continue
                length = len(line.content or b"")
                is_full = len(batch) >= most or size + length > self._settings.stream_batch_bytes
                if batch and is_full:
                    yield batch
                    batch, size = [], 0
                batch.append(line)
                size += length
        if batch:
            yield batch

    async def _answered(self, batch: Sequence[Line]) -> bytes:
        """The answers to some lines, in order."""
        told: dict[int, bytes] = {}
        read: dict[int, LineT] = {}
        for i, line in enumerate(batch):
            if i % _TURN_ANSWERS == 0:
                await self.body.turn()
            try:
                read[line.number] = self._read(line)
            except ServiceError as error:
                told[line.number] = self._error(line.number, None, error)
        if read:
            told |= await self._told(read)
        return b"".join(told[number] for number in sorted(told))

    def _read(self, line: Line) -> LineT:
        """A line's text. Raises InvalidRequest and BadRequest."""
        if line.content is None:
            limit = self._settings.max_line_bytes
            raise InvalidRequest(f"a line may have {limit} bytes at most")
        if self.is_json:
            return self._object(line.content)
        try:
            return self.task.line(text=line.content.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the line is not UTF-8 from byte {error.start} on") from error

    async def _told(self, lines: dict[int, LineT]) -> dict[int, bytes]:
        """The answers to the lines. If one is rejected, each is answered by itself."""
        try:
            results = await self.body.result_of(partial(self.task.results, [*lines.values()]))
        except (InvalidRequest, ModelFailure) as error:
            if len(lines) == 1:
                ((number, line),) = lines.items()
                return {number: self._error(number, line, error)}
            told: dict[int, bytes] = {}
            for number, line in lines.items():
                told |= await self._told({number: line})
            return told
        answers: dict[int, bytes] = {}
        for i, ((number, line), result) in enumerate(zip(lines.items(), results, strict=True)):
            if i % _TURN_ANSWERS == 0:
                await self.body.turn()
            fields = {"line": number} | _id_of(line) | self.task.told(result)
            answers[number] = json_line(fields)
        return answers

    def _object(self, content: bytes) -> LineT:
        """A line of JSON. Raises InvalidRequest and BadRequest."""
        schema = self.task.line
        if holds_more_values(content, _MOST_VALUES):
            names = ", ".join(schema.model_fields)
            raise InvalidRequest(f"a line is one object, with the fields {names}")
        try:
            return schema.model_validate_json(content)
        except ValidationError as error:
            raise field_errors(schema, error) from error

    def _error(self, number: int, line: LineT | None, error: ServiceError) -> bytes:
        problem = problem_document(self.request, error).model_dump()
        return json_line({"line": number, "error": problem} | _id_of(line))


def _parts(piece: bytes) -> list[bytes]:
    """A piece in parts of few lines; most pieces are one part."""
    if piece.count(b"\n") <= _TURN_LINES:
        return [piece]
    return [piece[i : i + _TURN_LINES] for i in range(0, len(piece), _TURN_LINES)]


def _id_of(line: StreamedLine | None) -> dict[str, Any]:
    """The id of the line, if it has one."""
    return {} if line is None or line.id is None else {"id": line.id}
