"""`/score` of streamed bodies: the numbers of the JSON request, however the bytes come."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.bundle.store import write_bundle
from service.settings import Settings
from tests.bundles import ALPHABET, tiny_encoder_decoder_files, tiny_files
from tests.fakes import AppClient

TEXT, NDJSON = {"content-type": "text/plain"}, {"content-type": "application/x-ndjson"}
FIGURES = ("logprob", "bits", "bits_per_char", "perplexity_per_char", "chars", "bos", "eos")
MODEL = "tiny-lstm"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files(name="tiny-pairs"))
    options = Settings(models_dir=folder, max_line_bytes=2000, stream_batch_bytes=300, max_inputs=5)
    with AppClient(create_app(options)) as running:
        yield running


def streamed(
    client: AppClient, content: list[bytes] | bytes, headers: dict[str, str], **query: Any
) -> list[Any]:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in [content] if isinstance(content, bytes) else content:
            yield piece
            await asyncio.sleep(0)

    def post(http: httpx.AsyncClient) -> Any:
        return http.post(
            "/score", params={"model": MODEL, **query}, headers=headers, content=pieces()
        )

    answer = client.run(post)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def figures(told: Any) -> dict[str, Any]:
    return {name: told[name] for name in FIGURES}


def plain(client: AppClient, texts: list[str], **options: Any) -> list[Any]:
    results = []
    for text in texts:
        results += client.ask("/score", model=MODEL, text=text, **options)["results"]
    return results


TEXTS = st.text(st.sampled_from(ALPHABET.replace("\n", "") + "\u2603e\u0301"), max_size=30)


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(TEXTS.filter(lambda x: "\r" not in x), max_size=12),
    size=st.integers(1, 200),
    options=st.fixed_dictionaries(
        {"eos": st.booleans(), "bos": st.booleans(), "unknown": st.sampled_from(["unk", "skip"])}
    ),
)
def test_every_line_has_the_numbers_of_the_json_request(
    client: AppClient, texts: list[str], size: int, options: dict[str, Any]
) -> None:
    data = "".join(text + "\n" for text in texts).encode()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    found = streamed(client, parts, TEXT, **options)
    wanted = plain(client, texts, **options)
    assert [x["line"] for x in found] == list(range(1, len(texts) + 1))
    assert [figures(x) for x in found] == [figures(x) for x in wanted]
    assert [x["unknown"] for x in found] == [x["unknown"] for x in wanted]
    as_json = b"".join(
        json.dumps({"text": text, "id": i}).encode() + b"\n\n" for i, text in enumerate(texts)
    )
    again = streamed(client, as_json, NDJSON, **options)
    assert [x["id"] for x in again] == list(range(len(texts)))
    assert [figures(x) for x in again] == [figures(x) for x in wanted]


@settings(max_examples=30, deadline=None)
@given(
    text=st.text(st.sampled_from(ALPHABET + "\r\u2603e\u0301"), max_size=200),
    size=st.integers(1, 90),
    every=st.integers(1, 120),
    options=st.fixed_dictionaries(
        {"eos": st.booleans(), "bos": st.booleans(), "unknown": st.sampled_from(["unk", "skip"])}
    ),
)
def test_the_total_of_a_stream_is_the_score_of_its_text(
    client: AppClient, text: str, size: int, every: int, options: dict[str, Any]
) -> None:
    data = text.encode()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    *running, last = streamed(client, parts, TEXT, mode="total", every=every, **options)
    (wanted,) = plain(client, [text], **options)
    assert last["done"]
    assert figures(last) == figures(wanted)
    assert last["unknown_chars"] == len(wanted["unknown"])
    whole = streamed(client, data, TEXT, mode="total", every=every, **options)
    assert whole == [*running, last]
    assert not any(x["done"] for x in running)


def test_pairs_are_scored_line_by_line(client: AppClient) -> None:
    rows = [{"text": "tac a", "source": "a cat"}, {"text": "", "source": "b"}, {"text": "a"}]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    first, second, third = streamed(client, data, NDJSON, model="tiny-pairs")
    wanted = client.ask("/score", model="tiny-pairs", text=["tac a", ""], source=["a cat", "b"])
    assert [figures(first), figures(second)] == [figures(x) for x in wanted["results"]]
    assert third["error"]["errors"][0]["pointer"] == "/source"


def test_a_bad_line_is_told_and_the_stream_goes_on(client: AppClient) -> None:
    data = b'{"text": "a"}\nnot json\n{"text": 1, "id": 7}\n{"made_up": 1}\n\n{"text": "b"}\n'
    found = streamed(client, data, NDJSON)
    assert [x["line"] for x in found] == [1, 2, 3, 4, 6]
    assert [x.get("error", {}).get("status") for x in found] == [None, 400, 422, 422, None]
    data = b"a\n\xff\xfe\n" + b"x" * 2001 + b"\nb\n" + "\u2603".encode() + b"\nc"
    found = streamed(client, data, TEXT, unknown="error")
    assert ["error" in x for x in found] == [False, True, True, False, True, False]
    assert "2000 bytes" in found[2]["error"]["detail"]
    assert "vocabulary" in found[4]["error"]["detail"]
    assert figures(found[5]) == figures(plain(client, ["c"])[0])


def test_what_ends_a_total_is_its_last_line(client: AppClient) -> None:
    for data, words in (
        (b"ab \xff", "not UTF-8"),
        ("\u0301".encode() * 5000, "too long to be cut"),
    ):
        assert words in streamed(client, data, TEXT, mode="total")[-1]["error"]["detail"]
    found = streamed(client, "ab \u2603 ".encode(), TEXT, mode="total", unknown="error")
    assert "vocabulary" in found[-1]["error"]["detail"]


@pytest.mark.parametrize(
    "parameters",
    ["", ";", "; charset=UTF-8", ';charset="utf-8"', "; format=flowed; Charset=utf-8", "; a=b"],
)
def test_other_parameters_of_a_media_type_mean_nothing(client: AppClient, parameters: str) -> None:
    for headers, content in ((TEXT, b"a"), (NDJSON, b'{"text": "a"}')):
        media_type = {"content-type": headers["content-type"] + parameters}
        assert streamed(client, content, media_type) == streamed(client, content, headers)


@pytest.mark.parametrize(
    ("status", "query", "headers"),
    [
        (404, {"model": "nothing"}, TEXT),
        (422, {"model": MODEL, "made_up": "1"}, TEXT),
        (422, {"model": MODEL, "mode": "words"}, TEXT),
        (422, {"model": MODEL, "mode": "total"}, NDJSON),
        (422, {"model": MODEL, "every": "0"}, TEXT),
        (422, {"model": "tiny-pairs"}, TEXT),
        (422, {}, TEXT),
        (415, {"model": MODEL}, {"content-type": "text/plain; charset=latin-1"}),
        (415, {"model": MODEL}, TEXT | {"content-encoding": "gzip"}),
        (415, {"model": MODEL}, {"content-type": "text/html"}),
    ],
)
def test_what_cannot_be_is_refused_before_the_answer(
    client: AppClient, status: int, query: dict[str, str], headers: dict[str, str]
) -> None:
    answer = client.post("/score", params=query, headers=headers, content=b"a\n")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    twice = client.post(f"/score?model={MODEL}&model={MODEL}", headers=TEXT, content=b"a")
    assert twice.status_code == 422


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    write_bundle(tmp_path, *tiny_files("lstm"))
    options = Settings(models_dir=tmp_path, max_queue_rows=1, max_rows=1, engine_threads=1)
    with AppClient(create_app(options)) as client:
        data = b"".join(b"abc abc abc\n" for _ in range(60))

        async def both(http: httpx.AsyncClient) -> Any:
            posts = [http.post("/score", headers=TEXT, content=data) for _ in range(3)]
            return await asyncio.gather(*posts)

        for answer in client.run(both):
            assert answer.text.count('"logprob"') == 60


def test_a_stream_may_have_more_details_in_all_than_requests_may_hold(tmp_path: Path) -> None:
    write_bundle(tmp_path, *tiny_files("lstm"))
    options = Settings(models_dir=tmp_path, max_details=100)
    with AppClient(create_app(options)) as client:
        data = b"abc abc abc\n" * 12
        query = {"model": MODEL, "units": "word"}
        answer = client.post("/score", params=query, headers=TEXT, content=data)
        assert answer.text.count('"words"') == 12
