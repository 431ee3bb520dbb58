"""Requests that a shell takes as they are, and durations."""

import json
import shlex
import subprocess

import pytest

from training.learn import words


@pytest.mark.parametrize("text", ["plain", "it's", 'a "b" \\ $HOME `x` !', "new\nline ünï \u2028"])
def test_a_curl_line_reaches_a_shell_as_it_was_meant(text: str) -> None:
    line = words.curl("/score", {"text": text})
    assert "\n" not in line
    script = f'curl() {{ for word in "$@"; do last=$word; done; printf %s "$last"; }}; {line}'
    out = subprocess.check_output(["sh", "-c", script], text=True)
    assert json.loads(out) == {"text": text}
    assert shlex.split(line)[0] == "curl"


@pytest.mark.parametrize(
    ("port", "url"),
    [
        ("8123", "http://127.0.0.1:8123/score"),
        ("tcp://10.0.0.1:8000", "http://127.0.0.1:8000/score"),
    ],
)
def test_a_curl_line_asks_where_the_server_listens(
    monkeypatch: pytest.MonkeyPatch, port: str, url: str
) -> None:
    monkeypatch.setenv("UNROLL_PORT", port)
    assert shlex.split(words.curl("/score", {}))[2] == url


def test_durations_are_for_people() -> None:
    assert [words.seconds(x) for x in (0.2, 40, 600)] == ["2 seconds", "40 seconds", "10 minutes"]
