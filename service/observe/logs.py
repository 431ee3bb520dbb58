"""Log lines as text or as JSON (one object a line), each with the id of its request."""

import logging
from typing import ClassVar

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


def log_to_stderr(settings: Settings) -> None:
    """Send the lines of every logger to standard error."""
    handler = logging.StreamHandler()
    handler.addFilter(_OfRequest())
    if settings.log_format == "json":
        fields = ["levelname", "name", "message", "request_id", "trace_id", "span_id"]
        renamed = {"levelname": "level", "name": "logger"}
        handler.setFormatter(_Json(fields, rename_fields=renamed, timestamp="time"))
    else:
        handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
