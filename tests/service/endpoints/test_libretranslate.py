"""`/libretranslate`: their interface. Their own client is in tests/clients."""

import asyncio
import json
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.http.api_keys import new_key
from service.http.gateway import KEY_IN_BODY
from service.settings import Settings
from tests.bundles import tiny_encoder_decoder_files, tiny_files
from tests.fakes import AppClient

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_encoder_decoder_files(name="small"))
    write_bundle(folder, *tiny_encoder_decoder_files(name="large", encoder_hidden_size=9))
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


def test_a_model_of_several_languages_is_chosen_and_none_is_said_to_be_detected(
    tmp_path: Path,
) -> None:
    manifest, files = tiny_encoder_decoder_files(name="dates")
    source = manifest.source.model_copy(update={"lang": "en, de"})
    write_bundle(tmp_path, manifest.model_copy(update={"source": source}), files)
    with AppClient(create_app(Settings(models_dir=tmp_path))) as client:
        found = translate(client, source="auto")
        assert set(found) == {"translatedText"}
        assert found == translate(client, source="de-AT") == translate(client, source="EN_us")
        answer = client.post("/libretranslate/detect", json={"q": "a"})
        assert answer.status_code == 400
        assert "de, en" in answer.json()["error"]
        answer = client.post(
            "/libretranslate/translate", json={"q": "a", "source": "x-en", "target": "target"}
        )
        assert answer.status_code == 400


# --- longer texts and HTML ------------------------------------------------------------------------


def test_lines_are_translated_one_by_one_and_all_between_them_stays(client: AppClient) -> None:
    lines = ["a cat", "tea", "a hat"]
    one, two, three = (x[0] for x in native(client, "large", lines))
    for text, wanted in {
        "a cat\ntea": f"{one}\n{two}",
        "  a cat \r\n\r\n\ttea\n": f"  {one} \r\n\r\n\t{two}\n",
        "a cat\rtea\n\n\na hat": f"{one}\r{two}\n\n\n{three}",
        "": "",
        " \n\t": " \n\t",
    }.items():
        assert translate(client, q=text)["translatedText"] == wanted
    listed = translate(client, q=["tea\na cat", "", "a hat"], alternatives=1)
    assert listed["translatedText"] == [f"{two}\n{one}", "", three]
    second = [x[1] for x in native(client, "large", lines, num_hypotheses=2)]
    assert listed["alternatives"] == [[f"{second[1]}\n{second[0]}"], [""], [second[2]]]


def test_a_line_that_is_too_long_is_cut_at_sentences_and_then_at_blanks(client: AppClient) -> None:
    """The model takes sixty characters."""
    sentences = ["the cat sat on the mat.", "tea was at three!", "a hatter came, and saw a rabbit."]
    told = [x[0] for x in native(client, "large", sentences)]
    found = translate(client, q="  ".join(sentences))["translatedText"]
    assert found == "  ".join(told)
    words = " ".join(["rabbit"] * 20)
    first, second, third = words[:55], words[56:111], words[112:]
    told = [x[0] for x in native(client, "large", [first, second, third])]
    assert translate(client, q=words)["translatedText"] == " ".join(told)


def test_mastodon_is_answered(client: AppClient) -> None:
    """What it sends, and what it reads of the answer."""
    texts = [
        '<p>a cat<br />tea &amp; a hat</p><p><span class="h-card" translate="no">@a cat</span></p>',
        "a hat",
    ]
    body = {"q": texts, "source": "auto", "target": "target", "format": "html", "api_key": None}
    answer = client.post("/libretranslate/translate", json=body).json()
    cat, tea, hat = (x[0] for x in native(client, "large", ["a cat", "tea & a hat", "a hat"]))
    cat, tea, hat = (escape(text, quote=False) for text in (cat, tea, hat))
    mention = '<span class="h-card" translate="no">@a cat</span>'
    assert answer["translatedText"] == [f"<p>{cat}<br />{tea}</p><p>{mention}</p>", hat]
    assert [x["language"] for x in answer["detectedLanguage"]] == ["source", "source"]
    (language,) = client.get("/libretranslate/languages").json()
    assert language["targets"] == ["target"]


# --- forms and keys -------------------------------------------------------------------------------


def multipart(**fields: str) -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--x-y\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    body = "".join([*parts, "--x-y--\r\n"]).encode()
    return body, {"content-type": "multipart/form-data; boundary=x-y"}


def test_a_multipart_form_says_the_same(client: AppClient) -> None:
    content, headers = multipart(
        q="a cat\r\ntea", source="source", target="target", alternatives="1", made_up="s"
    )
    answer = client.post("/libretranslate/translate", content=content, headers=headers)
    assert answer.json() == translate(client, q="a cat\r\ntea", alternatives=1)


@pytest.mark.parametrize("q", ['["a cat", "tea"]', '["a cat"]'])
def test_a_forms_text_may_be_a_list_in_json(client: AppClient, q: str) -> None:
    content, headers = multipart(q=q, source="source", target="target")
    answer = client.post("/libretranslate/translate", content=content, headers=headers)
    assert answer.json() == translate(client, q=json.loads(q))


@pytest.mark.parametrize("q", ["[a cat]", "[1]", "[", "[]", "[" * 30])
def test_what_is_no_list_of_texts_is_a_text(client: AppClient, q: str) -> None:
    content, headers = multipart(q=q, source="source", target="target")
    answer = client.post("/libretranslate/translate", content=content, headers=headers)
    assert answer.json() == translate(client, q=q)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AppClient, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("guarded")
    write_bundle(folder, *tiny_encoder_decoder_files(name="small"))
    made = {role: new_key(f"my-{role}", role) for role in ("use", "metrics")}
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("".join(key.line() + "\n" for _, key in made.values()))
    settings = Settings(models_dir=folder, api_keys_file=file)
    with AppClient(create_app(settings)) as running:
        yield running, {role: secret for role, (secret, _) in made.items()}


@pytest.mark.parametrize("path", sorted(KEY_IN_BODY))
@pytest.mark.parametrize("form", ["json", "multipart"])
def test_a_key_may_stand_in_the_body(
    guarded: tuple[AppClient, dict[str, str]], path: str, form: str
) -> None:
    client, keys = guarded

    def status(headers: dict[str, str] | None = None, **more: str) -> int:
        fields = {"q": "a cat", "source": "source", "target": "target", **more}
        if form == "json":
            answer = client.post(path, json=fields, headers=headers)
        else:
            content, media_type = multipart(**fields)
            answer = client.post(path, content=content, headers=(headers or {}) | media_type)
        assert answer.status_code == 200 or set(answer.json()) == {"error"}
        return answer.status_code

    assert status(api_key=keys["use"]) == 200
    assert status() == status(api_key="") == status(api_key="unroll-guess") == 401
    assert status(api_key=keys["metrics"]) == 403
    # Whoever has no key learns nothing of a mistake; a key in the headers is the one that counts.
    assert status(q="a" * 99_999, target="x", alternatives="x") == 401
    assert status({"X-API-Key": "unroll-guess"}, api_key=keys["use"]) == 401
    assert status(more="m" * 2**18, api_key=keys["use"]) == 413
    assert status({"X-API-Key": keys["use"]}, more="m" * 2**18) == 200
    assert status({"Authorization": f"Bearer {keys['use']}"}, api_key="unroll-guess") == 200


def test_only_there_and_what_their_clients_ask_first_needs_no_key(
    guarded: tuple[AppClient, dict[str, str]],
) -> None:
    client, keys = guarded
    body = {"source": "a cat", "api_key": keys["use"]}
    assert client.post("/translate", json=body).status_code == 401
    assert client.post("/libretranslate/suggest", json=body).status_code == 401
    assert client.get("/libretranslate/languages").status_code == 200
    assert client.get("/libretranslate/health").json() == {"status": "ok"}
    assert client.get("/libretranslate/frontend/settings").json()["keyRequired"] is True


def test_the_rest_of_their_interface_is_answered_in_its_form(client: AppClient) -> None:
    found = client.post("/libretranslate/detect", json={"q": "a cat"}).json()
    assert found == [{"language": "source", "confidence": 100}]
    for path in ("suggest", "translate_file", "made_up"):
        answer = client.post(f"/libretranslate/{path}", content=b"x", headers=FORM)
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}
    settings = client.get("/libretranslate/frontend/settings").json()
    assert settings["language"]["target"] == {"code": "target", "name": "target"}


def test_unknown_fields_are_passed_over(client: AppClient) -> None:
    assert translate(client, made_up=1, alternatives="0", format=None) == translate(client)


def test_a_form_says_the_same(client: AppClient) -> None:
    plain = translate(client, alternatives=1)
    form = "q=a+cat&source=SOURCE&target=Target&alternatives=1&format=text&api_key="
    answer = client.post("/libretranslate/translate", content=form, headers=FORM)
    assert answer.json() == plain
    plain = "q=caf\u00e9 100 %25&source=source&target=target"  # as `curl -d` sends it
    answer = client.post("/libretranslate/translate", content=plain.encode(), headers=FORM)
    assert answer.json() == translate(client, q="caf\u00e9 100 %")
    loose = "&q=a+cat&&source=source&target=target&\r\n"  # empty parts, and a line end
    answer = client.post("/libretranslate/translate", content=loose, headers=FORM)
    assert answer.json() == translate(client, q="a cat")
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
        assert "too many characters" in asking.result().json()["error"]
        return longest_s

    assert client.run(ask) < 1.0


@pytest.mark.parametrize(
    ("status", "words", "body"),
    [
        (
            400,
            "no model is served for these languages; the pairs are source to target",
            {"target": "x"},
        ),
        (400, "no such model", {"model": "tiny-lstm"}),
        (400, "'text' or 'html' (/format)", {"format": "pdf"}),
        (400, "at most 1024 are allowed (/q)", {"q": "a\n" * 1025}),
        (400, "at most 100000 are allowed (/q)", {"q": ["a", "a\n" * 50_001]}),
        (400, "at most 3 are allowed", {"alternatives": 4}),
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
