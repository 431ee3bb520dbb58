"""`/libretranslate`: their interface. Their own client is in tests/clients."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.bundle import write_bundle
from service.settings import Settings
from tests.bundles import tiny_files, tiny_pair_files
from tests.fakes import AppClient

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_pair_files(name="small"))
    write_bundle(folder, *tiny_pair_files(name="large", encoder_hidden_size=9))
    with AppClient(create_app(Settings(models_dir=folder, max_n=4))) as running:
        yield running


def translate(client: AppClient, **body: Any) -> Any:
    body = {"q": "a cat", "source": "source", "target": "target", **body}
    answer = client.post("/libretranslate/translate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def native(client: AppClient, model: str, source: Any, **options: Any) -> Any:
    results = client.ask("/translate", model=model, source=source, **options)["results"]
    return [[x["text"] for x in result["hypotheses"]] for result in results]


def test_languages_are_those_of_the_models(client: AppClient) -> None:
    assert client.get("/libretranslate/languages").json() == [
        {"code": "source", "name": "source", "targets": ["target"]}
    ]


def test_a_text_and_a_list_are_translated_by_the_larger_model(client: AppClient) -> None:
    assert translate(client) == {"translatedText": native(client, "large", "a cat")[0][0]}
    listed = translate(client, q=["a cat", "tea"], alternatives=2)
    found = native(client, "large", ["a cat", "tea"], num_hypotheses=3)
    assert listed["translatedText"] == [x[0] for x in found]
    assert listed["alternatives"] == [x[1:] for x in found]
    small = translate(client, model="small", alternatives=1)
    assert [small["translatedText"], *small["alternatives"]] == native(
        client, "small", "a cat", num_hypotheses=2
    )[0]


def test_the_source_may_be_left_to_the_server(client: AppClient) -> None:
    found = translate(client, source="auto")
    assert found["detectedLanguage"] == {"language": "source", "confidence": 100}


def test_a_form_says_the_same(client: AppClient) -> None:
    plain = translate(client, alternatives=1)
    form = "q=a+cat&source=SOURCE&target=Target&alternatives=1&format=text&api_key="
    answer = client.post("/libretranslate/translate", content=form, headers=FORM)
    assert answer.json() == plain
    listed = client.post(
        "/libretranslate/translate", content="q=a&q=b&source=source&target=target", headers=FORM
    )
    assert len(listed.json()["translatedText"]) == 2


@pytest.mark.parametrize("letter", ["a", "%61" * 4])  # the longer one is read in a thread
def test_a_form_may_have_as_many_texts_as_a_list(client: AppClient, letter: str) -> None:
    form = f"q={letter}&" * 1024 + "source=source&target=target"
    for content, status in ((form, 200), (f"q=a&{form}", 400), (f"{'q=a&' * 99}{form}", 400)):
        answer = client.post("/libretranslate/translate", content=content, headers=FORM)
        assert answer.status_code == status, answer.text
        assert "at most" in answer.json().get("error", "at most")


def test_a_large_form_does_not_hold_up_others(client: AppClient) -> None:
    texts = "q=" + "%C3%A9" * 1_000_000 + "&source=source&target=target"

    async def ask(http: httpx.AsyncClient) -> float:
        asking = asyncio.create_task(
            http.post("/libretranslate/translate", content=texts, headers=FORM)
        )
        longest_s = 0.0
        while not asking.done():
            start = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - start)
        assert "too many tokens" in asking.result().json()["error"]
        return longest_s

    assert client.run(ask) < 1.0


@pytest.mark.parametrize(
    ("status", "words", "body"),
    [
        (
            400,
            "no model is served for these languages; there are source to target",
            {"target": "x"},
        ),
        (400, "no such model", {"model": "tiny-lstm"}),
        (400, "'text'", {"format": "html"}),
        (400, "at most 3 are allowed", {"alternatives": 4}),
        (400, "there is no such field", {"made_up": 1}),
        (400, "at least one text", {"q": []}),
        (400, "too many tokens in a source; at most 60 are allowed (/q)", {"q": ["a", "a" * 61]}),
    ],
)
def test_mistakes_are_told_in_their_form(
    client: AppClient, status: int, words: str, body: dict[str, Any]
) -> None:
    whole = {"q": "a", "source": "source", "target": "target", **body}
    answer = client.post("/libretranslate/translate", json=whole)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    "form",
    [b"", b"q", b"q=a&source=b", b"q=%ff&source=source&target=target", b"\xff=a",
     b"q=a&source=source&source=source&target=target", b"q=a&alternatives=x", b"a=b" * 99],
)  # fmt: skip
def test_forms_that_are_none_are_refused(client: AppClient, form: bytes) -> None:
    answer = client.post("/libretranslate/translate", content=form, headers=FORM)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
