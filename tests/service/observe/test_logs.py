"""Lines of the log, for people and for machines."""

import json
import logging
from collections.abc import Iterator
from select import PIPE_BUF

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observe import request_context
from service.observe.logs import _pieces, log_to_stderr
from service.observe.request_context import RequestContext, enter_request
from service.settings import Settings


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    # Not a new one: its time would run for every test that follows.
    request_context._CURRENT.set(None)


def test_a_line_of_json_tells_the_request_and_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_to_stderr(Settings(log_format="json"))
    enter_request(RequestContext(request_id="mine", trace_id="7" * 32, span_id="8" * 16))
    logging.getLogger("a.b").warning("so it\nis %d", 3, extra={"seconds": 0.5})
    logging.getLogger("a.b").debug("not told")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told.pop("time")
    assert told == {
        "level": "WARNING", "logger": "a.b", "message": "so it\nis 3", "seconds": 0.5,
        "request_id": "mine", "trace_id": "7" * 32, "span_id": "8" * 16,
    }  # fmt: skip


def test_a_line_of_no_request_has_no_empty_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(Settings(log_format="json"))
    logging.getLogger("a").error("broke")
    told = json.loads(capsys.readouterr().err)
    assert set(told) == {"time", "level", "logger", "message"}


def test_a_traceback_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(Settings(log_format="json"))
    try:
        raise RuntimeError("inside")
    except RuntimeError:
        logging.getLogger("a").exception("broke")
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: inside" in json.loads(line)["exc_info"]


def test_a_line_for_people_ends_with_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(Settings())
    enter_request(RequestContext(request_id="mine"))
    logging.getLogger("a.b").info("it is so")
    assert capsys.readouterr().err.endswith("INFO a.b: it is so [mine]\n")


@given(st.lists(st.text(max_size=40).map(lambda x: (100 * x)[:1500].replace("\n", ""))))
def test_lines_are_written_whole_beside_other_processes(lines: list[str]) -> None:
    pieces = list(_pieces(lines))
    assert "".join(pieces) == "".join(line + "\n" for line in lines)
    for piece in pieces:
        assert piece.endswith("\n")
        size = len(piece.encode(errors="backslashreplace"))
        assert size <= PIPE_BUF or piece.count("\n") == 1
