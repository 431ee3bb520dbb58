"""Log lines: for people, or JSON, an object a line. Both tell which request they are of."""

import logging
from typing import ClassVar

from pythonjsonlogger.json import JsonFormatter

from service.observe.request_context import current_request
from service.settings import Settings


class _OfRequest(logging.Filter):
    """Adds to a record the request in whose answering it was made."""

    def filter(self, record: logging.LogRecord) -> bool:
        request = current_request()
        record.request_id = request.request_id
        record.trace_id = request.trace_id
        record.span_id = request.span_id
        return True


class _Lines(logging.Formatter):
    """The request's id at the end, where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        request_id = getattr(record, "request_id", "")
        return f"{line} [{request_id}]" if request_id else line


class _Json(JsonFormatter):
    """Without what a line has none of."""

    _ALWAYS: ClassVar = ("message", "levelname", "name")

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        """What stands in the line."""
        return {key: value for key, value in log_data.items() if key in self._ALWAYS or value != ""}


def log_to_stderr(settings: Settings) -> None:
    """Send every logger's lines to standard error."""
    handler = logging.StreamHandler()
    handler.addFilter(_OfRequest())
    if settings.log_format == "json":
        fields = ["levelname", "name", "message", "request_id", "trace_id", "span_id"]
        renamed = {"levelname": "level", "name": "logger"}
        handler.setFormatter(_Json(fields, rename_fields=renamed, timestamp="time"))
    else:
        handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
