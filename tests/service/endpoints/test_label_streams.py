"""`/classify` and `/tag` of streamed bodies: the answers of the JSON requests, in any pieces."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import AppClient

TEXT, NDJSON = {"content-type": "text/plain"}, {"content-type": "application/x-ndjson"}
PATHS = {
    "/classify": ("tiny-forward", ("labels", "unknown", "unknown_chars"), {"steps": "true"}),
    "/tag": (
        "tiny-chain",
        ("text", "logprob", "tags", "unknown", "unknown_chars"),
        {"n": "2", "places": "true"},
    ),
}
MORE = {"/classify": ("steps",), "/tag": ("alternatives", "places")}


def streamed(
    client: AppClient, path: str, content: list[bytes] | bytes, headers: Any, **query: Any
) -> list[Any]:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in [content] if isinstance(content, bytes) else content:
            yield piece
            await asyncio.sleep(0)

    def post(http: httpx.AsyncClient) -> Any:
        return http.post(path, params=query, headers=headers, content=pieces())

    answer = client.run(post)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


lines = st.text(st.sampled_from("abcde ß\u2603"), max_size=30)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=6, deadline=None)
@given(
    texts=st.lists(lines, max_size=9),
    size=st.integers(1, 60),
    asked=st.tuples(st.sampled_from(["unk", "skip"]), st.booleans()),
)
def test_every_line_is_answered_as_the_json_request(
    labelers: AppClient, path: str, texts: list[str], size: int, asked: tuple[str, bool]
) -> None:
    model, names, extra = PATHS[path]
    unknown, more = asked
    names += MORE[path] if more else ()
    query = {"model": model, "unknown": unknown, **(extra if more else {})}
    body = {x: json.loads(y) if x in extra else y for x, y in query.items()}
    wanted = [
        {name: labelers.ask(path, text=text, **body)["results"][0][name] for name in names}
        for text in texts
    ]
    data = "".join(text + "\n" for text in texts).encode()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    found = streamed(labelers, path, parts, TEXT, **query)
    assert found == [{"line": i, **x} for i, x in enumerate(wanted, 1)]
    as_json = b"".join(json.dumps({"text": x, "id": x}).encode() + b"\n\n" for x in texts)
    again = streamed(labelers, path, as_json, NDJSON, **query)
    assert again == [
        {"line": 2 * i + 1, "id": text, **x}
        for i, (text, x) in enumerate(zip(texts, wanted, strict=True))
    ]


@settings(max_examples=12, deadline=None)
@given(
    text=st.text(st.sampled_from("abcde \n\r\u2603\u0301"), max_size=200),
    size=st.integers(1, 90),
    every=st.integers(1, 120),
    unknown=st.sampled_from(["unk", "skip"]),
)
def test_the_answers_about_a_stream_are_those_about_its_text_so_far(
    labelers: AppClient, text: str, size: int, every: int, unknown: str
) -> None:
    data = text.encode()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    query = {"model": "tiny-forward", "mode": "total", "every": every, "unknown": unknown}
    *running, last = streamed(labelers, "/classify", parts, TEXT, **query)
    body = {"model": "tiny-forward", "unknown": unknown}
    (whole,) = labelers.ask("/classify", text=text, **body)["results"]
    assert last["done"]
    assert last["labels"] == whole["labels"]
    assert last["unknown_chars"] == whole["unknown_chars"]
    assert [x["chars"] for x in running] == [every * (i + 1) for i in range(len(running))]
    assert not any(x["done"] for x in running)
    assert streamed(labelers, "/classify", data, TEXT, **query) == [*running, last]


def test_a_running_answer_is_the_step_of_that_character(labelers: AppClient) -> None:
    text = "abc de cab bad " * 20
    asked = {"model": "tiny-forward", "text": text, "steps": True}
    (whole,) = labelers.ask("/classify", **asked)["results"]
    query = {"model": "tiny-forward", "mode": "total", "every": 7, "top": 1}
    for found in streamed(labelers, "/classify", text.encode(), TEXT, **query):
        step = whole["steps"][found["chars"] - 1]
        assert found["labels"] == [{x: step[x] for x in ("label", "probability", "logprob")}]


@pytest.mark.parametrize("path", PATHS)
def test_a_bad_line_is_told_and_the_stream_goes_on(labelers: AppClient, path: str) -> None:
    model, *_ = PATHS[path]
    data = b'{"text": "a"}\nnot json\n{"text": 1, "id": 7}\n{"source": ""}\n\n{"text": "b"}\n'
    found = streamed(labelers, path, data, NDJSON, model=model)
    assert [x["line"] for x in found] == [1, 2, 3, 4, 6]
    assert [x.get("error", {}).get("status") for x in found] == [None, 400, 422, 422, None]
    data = b"a\n\xff\xfe\n" + "\u2603".encode() + b"\nc"
    found = streamed(labelers, path, data, TEXT, model=model, unknown="error")
    assert ["error" in x for x in found] == [False, True, True, False]
    assert "vocabulary" in found[2]["error"]["detail"]


def test_what_ends_a_total_is_its_last_line(labelers: AppClient) -> None:
    query = {"model": "tiny-forward", "mode": "total"}
    (last,) = streamed(labelers, "/classify", b"ab \xff", TEXT, **query)
    assert "not UTF-8" in last["error"]["detail"]
    data = "ab \u2603 ".encode()
    found = streamed(labelers, "/classify", data, TEXT, unknown="error", **query)
    assert "vocabulary" in found[-1]["error"]["detail"]


@pytest.mark.parametrize(
    ("path", "query", "headers", "refusal"),
    [
        ("/classify", {"model": "nothing"}, TEXT, (404, "no such model")),
        ("/classify", {"model": "tiny-text", "steps": "1"}, TEXT, (422, "read forward")),
        ("/classify", {"model": "tiny-text", "mode": "total"}, TEXT, (422, "reads forward")),
        ("/classify", {"model": "tiny-forward", "mode": "total"}, NDJSON, (422, "text/plain")),
        (
            "/classify",
            {"model": "tiny-forward", "mode": "total", "steps": "1"},
            TEXT,
            (422, "mode lines"),
        ),
        ("/classify", {"model": "tiny-forward", "state": "A"}, TEXT, (422, "unknown field")),
        ("/classify", {"model": "tiny-bio"}, TEXT, (422, "/tag")),
        ("/tag", {"model": "tiny-bio", "n": "17"}, TEXT, (422, "at most 16")),
        ("/tag", {"model": "tiny-bio", "top": "2"}, NDJSON, (422, "needs places")),
        ("/tag", {"model": "tiny-text"}, TEXT, (422, "/classify")),
        ("/score", {"model": "tiny-text"}, TEXT, (422, "/score with `label`")),
        ("/tag", {"model": "tiny-bio"}, TEXT | {"content-encoding": "gzip"}, (415, "Encoding")),
        ("/tag", {"model": "tiny-bio"}, {"content-type": "text/plain; charset=x"}, (415, "UTF-8")),
    ],
)
def test_what_cannot_be_is_refused_before_the_answer(
    labelers: AppClient, path: str, query: Any, headers: Any, refusal: tuple[int, str]
) -> None:
    status, words = refusal
    answer = labelers.post(path, params=query, headers=headers, content=b"a\n")
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
