"""`percentile` at every edge: where a text stands, null where unknown, or refused."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.settings import Settings
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.fakes import AppClient

NAMES = ("percentile", "percentile_low", "percentile_high", "percentile_texts")
ABLE, UNABLE, PAIRS = "tiny-lstm", "tiny-gru", "tiny-pairs"
TEXT = "the white rabbit"
# Nobody is as calm as the first, or as surprised as the last of these.
VALUES = [0.0, 100.0]
TABLE = {
    "split": "test",
    "texts": "documents",
    "lengths": [
        {
            "least_chars": least,
            "most_chars": most,
            "texts": 2,
            "ranks": [1, 2],
            "bits_per_char": VALUES,
            "bits_per_char_with_eos": VALUES,
        }
        for least, most in ((3, 15), (16, 40))
    ],
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm", percentiles=TABLE))
    write_bundle(folder, *tiny_files("gru"))
    write_bundle(folder, *tiny_encoder_decoder_files(name=PAIRS))
    with AppClient(create_app(Settings(models_dir=folder))) as running:
        yield running


def stream(client: AppClient, content: str, media_type: str = "text/plain", **query: Any) -> Any:
    return client.post(
        "/score", params=query, headers={"content-type": media_type}, content=content.encode()
    )


def test_each_text_stands_among_the_held_out_texts_of_its_length(client: AppClient) -> None:
    texts = [TEXT, "rabbit", "hi", "", 3 * TEXT]
    answer = client.ask("/score", model=ABLE, text=texts, percentile=True)
    found = [tuple(result[name] for name in NAMES) for result in answer["results"]]
    for percentile, low, high, count in found[:2]:
        assert (percentile, count) == (50.0, 2)
        assert low < 10.0
        assert high > 90.0
    assert found[2:] == [(None,) * 4] * 3


def test_nothing_else_changes(client: AppClient) -> None:
    for eos in (False, True):
        with_it, without = (
            client.ask("/score", model=ABLE, text=TEXT, eos=eos, percentile=x)["results"][0]
            for x in (True, False)
        )
        assert [without[name] for name in NAMES] == [None] * 4
        assert {**with_it, **dict.fromkeys(NAMES)} == without


def test_lines_of_a_stream_have_it_where_it_is_asked_for(client: AppClient) -> None:
    lines = f"{TEXT}\nhi\n"
    asked = [json.loads(x) for x in stream(client, lines, model=ABLE, percentile=True).iter_lines()]
    answer = client.ask("/score", model=ABLE, text=[TEXT, "hi"], percentile=True)
    for line, result in zip(asked, answer["results"], strict=True):
        assert {name: line[name] for name in NAMES} == {name: result[name] for name in NAMES}
    (first, _) = stream(client, lines, model=ABLE).iter_lines()
    assert not set(NAMES) & set(json.loads(first))
    line = json.dumps({"text": TEXT, "context": "after "})
    told = stream(client, line, "application/x-ndjson", model=ABLE, percentile=True)
    assert "percentile" in json.loads(told.text)["error"]["errors"][0]["detail"]


def test_the_models_say_which_lengths_they_know(client: AppClient) -> None:
    assert client.get(f"/models/{UNABLE}").json()["percentiles"] is None
    assert client.get(f"/models/{ABLE}").json()["percentiles"] == [
        {"least_chars": 3, "most_chars": 15, "texts": 2},
        {"least_chars": 16, "most_chars": 40, "texts": 2},
    ]


@pytest.mark.parametrize(
    ("model", "options", "where"),
    [
        (UNABLE, {}, "/percentile"),
        (PAIRS, {"source": "alice"}, "/percentile"),
        (ABLE, {"context": "after "}, "/context"),
        (ABLE, {"bos": False}, "/bos"),
        (ABLE, {"unknown": "skip"}, "/unknown"),
        (ABLE, {"state": "x"}, "/state"),
        (ABLE, {"adapt": True}, "/adapt"),
        (ABLE, {"source": "alice"}, "/source"),
    ],
)
def test_a_text_that_was_read_otherwise_is_refused(
    client: AppClient, model: str, options: dict[str, Any], where: str
) -> None:
    body = {"model": model, "text": "alice", "percentile": True, **options}
    answer = client.post("/score", json=body)
    assert answer.status_code == 422, answer.text
    (mistake,) = answer.json()["errors"]
    assert mistake["pointer"] == where
    assert "percentile" in mistake["detail"] or where in {"/percentile", "/source"}


@pytest.mark.parametrize(
    ("model", "query", "where"),
    [
        (UNABLE, {}, "/percentile"),
        (ABLE, {"mode": "total"}, "/percentile"),
        (ABLE, {"bos": False}, "/bos"),
        (ABLE, {"unknown": "skip"}, "/unknown"),
    ],
)
def test_a_stream_is_refused_before_its_answer(
    client: AppClient, model: str, query: dict[str, Any], where: str
) -> None:
    answer = stream(client, TEXT, model=model, percentile=True, **query)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == where
