"""A streamed body of lines: every line is a text and gets one line as its answer."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from service.endpoints.line_reader import Line, LineSplitter
from service.endpoints.score_stream_wire import (
    StreamedText,
    StreamQuery,
    figures_of,
    json_line,
    parts_of,
)
from service.endpoints.score_wire import ScoreRequest, standing_fields
from service.endpoints.streamed_body import StreamedBody
from service.errors import ClientGone, InvalidRequest, ModelFailure, ServiceError
from service.http.body import field_errors
from service.http.json_values import holds_more_values
from service.http.problems import problem_document
from service.http.wire import unknown_fields
from service.settings import Settings
from service.tasks.engine import Scores
from service.tasks.values import Scored

# Most JSON values in a line: an object of four fields, no lists. Parsing more costs too much.
_MOST_VALUES = 64
# Most lines that are scored together: work on all of them at once holds up other requests.
_BATCH_LINES = 128
# Lines that are split in one turn, and lines that are parsed or answered in one turn.
_TURN_LINES = 512
_TURN_ANSWERS = 32


@dataclass(frozen=True, slots=True)
class LineScoring:
    """The lines of one request on their way through a model."""

    request: Request
    engine: Scores
    query: StreamQuery
    body: StreamedBody
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
        """Lines to score together: all that have arrived, within bounds.

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
        texts: dict[int, StreamedText] = {}
        for i, line in enumerate(batch):
            if i % _TURN_ANSWERS == 0:
                await self.body.turn()
            try:
                texts[line.number] = self._read(line)
            except ServiceError as error:
                told[line.number] = self._error(line.number, None, error)
        if texts:
            told |= await self._scored(texts)
        return b"".join(told[number] for number in sorted(told))

    def _read(self, line: Line) -> StreamedText:
        """A line's text. Raises InvalidRequest and BadRequest."""
        if line.content is None:
            limit = self._settings.max_line_bytes
            raise InvalidRequest(f"a line may have {limit} bytes at most")
        if self.is_json:
            return _object(line.content)
        try:
            return StreamedText(text=line.content.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the line is not UTF-8 from byte {error.start} on") from error

    async def _scored(self, texts: dict[int, StreamedText]) -> dict[int, bytes]:
        """The answers of the lines. If one is rejected, each is scored by itself."""
        try:
            results = await self._asked(list(texts.values()))
        except (InvalidRequest, ModelFailure) as error:
            if len(texts) == 1:
                ((number, text),) = texts.items()
                return {number: self._error(number, text, error)}
            told: dict[int, bytes] = {}
            for number, text in texts.items():
                told |= await self._scored({number: text})
            return told
        answers: dict[int, bytes] = {}
        for i, ((number, text), result) in enumerate(zip(texts.items(), results, strict=True)):
            if i % _TURN_ANSWERS == 0:
                await self.body.turn()
            figures = figures_of(result) | unknown_fields(result.unknown) | parts_of(result)
            if self.query.percentile:
                figures |= standing_fields(result.standing)
            answers[number] = json_line({"line": number} | _id_of(text) | figures)
        return answers

    async def _asked(self, texts: Sequence[StreamedText]) -> list[Scored]:
        strings = [text.text for text in texts]
        sources = [text.source for text in texts if text.source is not None]
        if sources and len(sources) < len(texts):
            raise InvalidRequest("some lines have a source and some have none")
        contexts = [text.context for text in texts]
        asked = ScoreRequest(
            text=strings,
            source=sources or None,
            context=contexts if any(contexts) else "",
            bos=self.query.bos,
            eos=self.query.eos,
            unknown=self.query.unknown,
            guesses=self.query.guesses,
            units=self.query.units,
            adapt=self.query.adapt,
            percentile=self.query.percentile,
        )
        given = {"contexts": asked.contexts(len(strings)), "sources": asked.sources(len(strings))}
        options = asked.options()
        return await self.body.result_of(lambda: self.engine.score(strings, options, **given))

    def _error(self, number: int, text: StreamedText | None, error: ServiceError) -> bytes:
        problem = problem_document(self.request, error).model_dump()
        return json_line({"line": number, "error": problem} | _id_of(text))


def _parts(piece: bytes) -> list[bytes]:
    """A piece in parts of few lines; most pieces are one part."""
    if piece.count(b"\n") <= _TURN_LINES:
        return [piece]
    return [piece[i : i + _TURN_LINES] for i in range(0, len(piece), _TURN_LINES)]


def _object(content: bytes) -> StreamedText:
    """A line of JSON. Raises InvalidRequest and BadRequest."""
    if holds_more_values(content, _MOST_VALUES):
        raise InvalidRequest("a line is one object, with the fields text, context, source, id")
    try:
        return StreamedText.model_validate_json(content)
    except ValidationError as error:
        raise field_errors(StreamedText, error) from error


def _id_of(text: StreamedText | None) -> dict[str, Any]:
    """The id of the line, if it has one."""
    return {} if text is None or text.id is None else {"id": text.id}
