"""Log lines as text or as JSON (one object a line), each with the id of its request."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from pydantic_core import to_json
from pythonjsonlogger.json import JsonFormatter

from service.observe.request_context import current_request
from service.settings import Settings


class _OfRequest(logging.Filter):
    """Adds the ids of the current request to a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        request = current_request()
        record.request_id = request.request_id
        record.trace_id = request.trace_id
        record.span_id = request.span_id
        return True


class _Lines(logging.Formatter):
    """Text lines, with the request id at the end if there is one."""

    _second = -1
    _shown = ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 (logging's name)
        """The local time; its digits up to the second are made once a second."""
        second = int(record.created)
        if second != self._second:
            self._shown = time.strftime(datefmt or self.default_time_format, time.localtime(second))
            self._second = second
        return f"{self._shown},{int(record.msecs):03d}"

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        request_id = getattr(record, "request_id", "")
        return f"{line} [{request_id}]" if request_id else line


class _Json(JsonFormatter):
    """JSON lines without empty fields."""

    _ALWAYS: ClassVar = ("message", "levelname", "name")

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        """The fields of the line."""
        return {key: value for key, value in log_data.items() if key in self._ALWAYS or value != ""}


def _serialized(fields: dict[str, object], **_: object) -> str:
    # A third of the time of the library's own encoder, which is written in Python.
    return to_json(fields, fallback=str).decode()


class _ByRound(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes the lines of one round of the event loop together, at its end.

    Each write gives up Python's lock, and a busy engine's thread takes its time to give it back.
    Warnings and lines from elsewhere are written at once, after those that wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, now or at the end of the round."""
        try:
            self._waiting.append(self.format(record))
            loop = None if record.levelno >= logging.WARNING else _running_loop()
            if loop is None:
                self.flush()
            elif len(self._waiting) == 1:
                loop.call_soon(self.flush)
        except Exception:  # noqa: BLE001 (as logging's own handlers do)
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits."""
        self.acquire()
        try:
            lines, self._waiting = self._waiting, []
            for piece in _pieces(lines):
                self.stream.write(piece)
                super().flush()
        finally:
            self.release()


# What a pipe takes whole from one of several processes (Linux's PIPE_BUF, pipe(7)).
_WHOLE_BYTES = 4096


def _pieces(lines: Sequence[str]) -> Iterator[str]:
    """Lines together, in pieces that stay whole beside those of other processes."""
    piece, size = "", 0
    for line in lines:
        more = len(line.encode(errors="backslashreplace")) + 1
        if piece and size + more > _WHOLE_BYTES:
            yield piece
            piece, size = "", 0
        piece += line + "\n"
        size += more
    if piece:
        yield piece


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def log_to_stderr(settings: Settings) -> None:
    """Send the lines of every logger to standard error."""
    # What no line shows costs as much as the rest of a record (Python's logging HOWTO).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]
    logging._srcfile = None  # noqa: SLF001 (the HOWTO names it)
    handler = _ByRound()
    handler.addFilter(_OfRequest())
    if settings.log_format == "json":
        fields = ["levelname", "name", "message", "request_id", "trace_id", "span_id"]
        renamed = {"levelname": "level", "name": "logger"}
        handler.setFormatter(
            _Json(fields, rename_fields=renamed, timestamp="time", json_serializer=_serialized)
        )
    else:
        handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
