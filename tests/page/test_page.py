"""The page in a real browser, against a real server with shipped bundles."""

import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from service.http.api_keys import new_key
from tests.end_to_end.server import ROOT, Server, serve
from tests.page.chromium import Browser, Page

BUNDLES = ("alice-lstm", "alice-rnn", "dates-iso", "g2p-en")
READY = "document.querySelector('#main[data-ready]') !== null"
# Pictures for the README are written here, where it is set: `make screenshots`.
SCREENSHOTS = os.environ.get("SCREENSHOTS_DIR")
MAX_SCREENSHOT_BYTES = 150_000
COLOURS = 128
BUSY = {
    "write": "Writing…",
    "score": "Scoring…",
    "fill": "Filling…",
    "label": "Labelling…",
    "translate": "Translating…",
}
AA_TEXT = 4.5
CONTROLS = {
    *("button", "checkbox", "combobox", "gridcell", "link", "radio", "slider", "spinbutton"),
    *("tab", "tabpanel", "textbox"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    for name in BUNDLES:
        shutil.copytree(ROOT / "models" / name, folder / name)
    with serve(folder) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page, opened; in the end nothing complained and no other origin was asked."""
    tab = Page(browser)
    tab.look()
    tab.open(server.url, READY)
    status(tab, "write", "Done")  # the example that it begins with
    unfold(tab)
    yield tab
    assert tab.complaints() == []
    assert origins(tab) == {urlsplit(server.url).netloc}
    tab.close()


def origins(page: Page) -> set[str]:
    """Who was asked for anything."""
    return {urlsplit(url).netloc for url in page.requested() if not url.startswith("data:")}


def show(page: Page, tab: str) -> None:
    page.click(f"#tab-{tab}")
    page.wait(f"!document.getElementById('{tab}').hidden")
    if tab == "models":
        page.wait("document.querySelector('#models-results table') !== null")
    else:
        busy = f"['', '{BUSY[tab]}']"
        page.wait(f"!{busy}.includes(document.getElementById('{tab}-status').innerText)")


def unfold(page: Page) -> None:
    page.evaluate("document.querySelectorAll('.options').forEach((x) => { x.open = true })")


def start(page: Page, form: str) -> None:
    """Submit a form; whatever its status says from now on is about this submission."""
    page.evaluate(f"document.getElementById('{form}-status').textContent = ''")
    page.click(f"#{form}-start")


def status(page: Page, form: str, words: str) -> str:
    """The status, once it begins so."""
    page.wait(f"document.getElementById('{form}-status').innerText.startsWith('{words}')")
    return page.text(f"#{form}-status")


def value(page: Page, selector: str, name: str) -> Any:
    return page.evaluate(f"document.querySelector('{selector}').getAttribute('{name}')")


def write(page: Page, **fields: str) -> str:
    """Write with these fields changed; the written text."""
    for name, text in fields.items():
        page.fill(f"#write-{name.replace('_', '-')}", text)
    start(page, "write")
    status(page, "write", "Done")
    written: str = page.evaluate(
        "[...document.querySelectorAll('#write-map .ch')].map((x) => x.innerText).join('')"
    )
    return written


def picture(page: Page, path: Path) -> None:
    """What the window shows, in so few colours as these pictures need."""
    with Image.open(io.BytesIO(page.screenshot())) as shown:
        shown.convert("RGB").quantize(COLOURS).save(path, optimize=True)


# --- write ---------------------------------------------------------------------------------------


def test_a_prompt_is_typed_and_goes_on_as_the_service_says(page: Page, server: Server) -> None:
    written = write(page, prompt="The Queen ", max_tokens="60", seed="7")
    body = {"model": "alice-lstm", "prompt": "The Queen ", "max_tokens": 60, "seed": 7}
    with server.client() as client:
        answer = client.post("/generate", json={**body, "temperature": 0.7}).json()
    wanted = answer["results"][0]["choices"][0]["text"]
    assert written.replace("⏎\n", "\n") == wanted
    assert page.text("#write-map").startswith("The Queen ")
    told = page.text("#write-status")
    assert "60 characters" in told
    assert "bits/char" in told
    assert "seed 7" in told
    # Each character has a level that it shows without colour, too.
    levels = page.evaluate(
        "new Set([...document.querySelectorAll('#write-map .ch')].map((x) => x.className)).size"
    )
    assert levels > 2
    assert page.text("#write .legend").startswith("a under 1 bit")


def test_it_streams_and_stops(page: Page) -> None:
    page.network(bytes_per_s=20_000)  # about 50 characters a second
    page.fill("#write-max-tokens", "4096")
    start(page, "write")
    page.wait("document.querySelectorAll('#write-map .ch').length > 20")
    assert page.text("#write-status") == "Writing…"
    page.click("#write-stop")
    told = status(page, "write", "Stopped")
    shown = page.evaluate("document.querySelectorAll('#write-map .ch').length")
    assert 20 < shown < 4096
    assert f"{shown:,} characters" in told
    assert page.evaluate("document.getElementById('write-stop').disabled")
    # And on again.
    page.network()
    assert len(write(page, max_tokens="10")) >= 10


def test_hovering_a_character_shows_what_else_could_have_stood_there(page: Page) -> None:
    write(page, max_tokens="40")
    page.hover("#write-map .ch:nth-of-type(9)")
    page.wait("!document.getElementById('inspector').hidden")
    card = page.text("#inspector")
    for word in ("Probability", "Surprisal", "bits", "Rank", "Entropy", "Likeliest here", "%"):
        assert word in card
    assert page.evaluate("document.querySelectorAll('#inspector tbody tr').length") == 5
    page.press("Escape")
    assert page.evaluate("document.getElementById('inspector').hidden")


def test_a_seed_is_kept_or_drawn(page: Page) -> None:
    first = write(page, max_tokens="30", seed="3")
    assert write(page) == first
    page.click("#write-lock")
    write(page)
    drawn = page.evaluate("document.getElementById('write-seed').value")
    page.click("#write-reroll")
    assert len({"3", drawn, page.evaluate("document.getElementById('write-seed').value")}) == 3


@pytest.mark.parametrize(
    ("field", "given", "label"),
    [("max-tokens", "100000", "Maximum length in characters"), ("seed", "-1", "Seed")],
)
def test_an_error_is_told_in_words_beside_its_field(
    page: Page, field: str, given: str, label: str
) -> None:
    page.fill(f"#write-{field}", given)
    start(page, "write")
    page.wait("!document.getElementById('write-problem').hidden")
    told = page.text("#write-problem")
    assert told.startswith("Invalid request")
    assert f"{label}:" in told
    assert "Request " in told
    assert given not in told
    assert "{" not in told
    assert value(page, f"#write-{field}", "aria-invalid") == "true"
    assert value(page, "#write-problem", "role") == "alert"
    page.fill(f"#write-{field}", "5")
    assert write(page)
    assert page.evaluate("document.getElementById('write-problem').hidden")
    assert value(page, f"#write-{field}", "aria-invalid") is None


def test_a_seed_that_the_page_cannot_hold_is_refused_and_none_is_drawn(page: Page) -> None:
    page.fill("#write-seed", str(2**53 + 1))
    start(page, "write")
    page.wait("!document.getElementById('write-problem').hidden")
    assert "Seed: on this page, a whole number up to 9007199254740991" in page.text(
        "#write-problem"
    )
    # The example asked, and nobody since.
    assert sum(url.endswith("/generate") for url in page.requested()) == 1
    page.fill("#write-seed", "")
    write(page, max_tokens="3")
    drawn = page.evaluate("document.getElementById('write-seed').value")
    assert drawn.isdigit()
    assert f"seed {drawn}." in page.text("#write-status")


def test_a_wrong_pattern_is_told_beside_its_field(page: Page, server: Server) -> None:
    with server.client() as client:
        schemas = client.get("/openapi.json").text
    if '"pattern":{' not in schemas:
        pytest.skip("this service does not constrain what it generates")
    page.fill("#write-pattern", "(")
    start(page, "write")
    page.wait("!document.getElementById('write-problem').hidden")
    assert "Pattern:" in page.text("#write-problem")


def test_a_service_without_language_models_says_so(browser: Browser, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models/dates-iso", tmp_path / "dates-iso")
    with serve(tmp_path) as running:
        tab = Page(browser)
        tab.open(running.url, READY)
        assert tab.text("#write-status") == "This service has no language model."
        assert tab.evaluate("document.getElementById('write-start').disabled")
        show(tab, "translate")
        tab.wait("document.getElementById('translate-source').value !== ''")
        tab.click("#translate-start")
        status(tab, "translate", "3 hypotheses")
        assert tab.complaints() == []
        tab.close()


def test_a_service_that_is_gone_is_told_in_words(page: Page) -> None:
    page.network(offline=True)
    start(page, "write")
    page.wait("!document.getElementById('write-problem').hidden")
    assert "cannot be reached" in page.text("#write-problem")


TOKEN = {
    "index": 0,
    "choice": 0,
    "text": "a",
    "offset": 0,
    "token": "a",
    "logprob": -1.0,
    "entropy_bits": 1.0,
    "rank": 1,
    "top": [],
}
PROBLEM = {"title": "Queue full", "status": 429, "detail": "come again", "errors": []}


def events(**named: object) -> str:
    """A stream of them."""
    return "".join(f"event: {x}\ndata: {json.dumps(y)}\n\n" for x, y in named.items())


@pytest.mark.parametrize(
    ("status_code", "headers", "body", "told"),
    [
        (
            200,
            {"Content-Type": "text/event-stream"},
            events(token=TOKEN, error=PROBLEM),
            "Queue full come again",
        ),
        (
            200,
            {"Content-Type": "text/event-stream"},
            events(token=TOKEN),
            "Incomplete answer The connection closed before the answer was complete. Try again.",
        ),
        (
            429,
            {"Content-Type": "application/problem+json", "Retry-After": "3"},
            json.dumps(PROBLEM),
            "Queue full come again Try again in 3 s.",
        ),
        (
            502,
            {"Content-Type": "text/html"},
            "<h1>Bad gateway</h1>",
            "Error The service answered with status 502.",
        ),
    ],
)
def test_what_goes_wrong_on_the_way_is_told_in_words(
    page: Page, status_code: int, headers: dict[str, str], body: str, told: str
) -> None:
    page.hold_back("*/generate")
    start(page, "write")
    page.answer(status_code, headers, body)
    page.wait("!document.getElementById('write-problem').hidden")
    assert " ".join(page.text("#write-problem").split()) == told
    # What had come by then stays.
    shown = page.evaluate("document.querySelectorAll('#write-map .ch').length")
    assert shown == (1 if "token" in body else 0)
    assert page.evaluate("document.getElementById('write-stop').disabled")


def measured(row: dict[str, Any], model: str) -> str:
    """What the page calls a measurement on held-out text."""
    name, kind = row["name"], row["kind"]
    if kind == "baseline":
        return str(name)
    if kind == "part":
        return f"{name} alone (part)"
    return f"{model} ({name}){' adapting' if kind == 'adapting' else ''}, held out"


# --- score ---------------------------------------------------------------------------------------


def score(page: Page, text: str) -> str:
    page.fill("#score-text", text)
    start(page, "score")
    return status(page, "score", "Scored")


def test_a_text_is_scored_as_the_service_scores_it(page: Page, server: Server) -> None:
    show(page, "score")
    text = "The cat zqx sat on the mat.\nAnd so on."
    told = score(page, text)
    with server.client() as client:
        answer = client.post("/score", json={"model": "alice-lstm", "text": text}).json()
    result = answer["results"][0]
    assert f"{result['bits']:.1f} bits over {len(text)} characters" in told
    assert f"{result['bits_per_char']:.3f} bits/char" in told
    shown = page.evaluate("document.querySelectorAll('#score-results .charmap .ch').length")
    assert shown == len(text)
    results = page.text("#score-results")
    for word in (
        "Curve of bits",
        "Most surprising spans",
        "Compared with the baselines",
        "This text",
    ):
        assert word in results
    assert "zqx" in page.text("#score-results button.span")
    with server.client() as client:
        metrics = client.get("/models/alice-lstm").json()["metrics"]["measurements"]
    bars = page.text(".bars").splitlines()
    for row in metrics:
        line = f"{measured(row, 'alice-lstm')}\t{row['bits_per_char']:.3f}\t"
        assert (line in bars) == (row["name"] != "fp32")


def test_a_surprising_span_leads_to_its_place(page: Page) -> None:
    show(page, "score")
    score(page, "The cat zqx sat on the mat.")
    page.click("#score-results button.span")
    now = int(value(page, "#score-results .charmap", "aria-valuenow"))
    assert now in range(7, 11)
    assert page.evaluate("document.activeElement.className") == "charmap"
    assert "Rank" in page.text("#inspector")


def test_the_curve_follows_the_pointer(page: Page) -> None:
    show(page, "score")
    score(page, "The cat zqx sat on the mat.")
    assert page.evaluate("document.querySelector('.chart .cursor').classList.contains('off')")
    page.hover("#score-results .chart")
    page.wait("!document.querySelector('.chart .cursor').classList.contains('off')")
    assert "Surprisal" in page.text("#inspector")


def test_two_texts_are_compared(page: Page) -> None:
    show(page, "score")
    page.select("#score-compare", "text")
    page.fill("#score-text-b", "the whjte rabbit")
    told = score(page, "the white rabbit")
    assert "Text A " in told
    assert "Text B " in told
    assert "Text A is likelier" in page.text("#score-results")
    assert page.evaluate("document.querySelectorAll('#score-results .charmap').length") == 2


def test_two_models_are_compared(page: Page) -> None:
    show(page, "score")
    page.select("#score-compare", "model")
    page.select("#score-model-b", "alice-rnn")
    told = score(page, "the white rabbit")
    assert "alice-lstm " in told
    assert "alice-rnn " in told
    assert page.evaluate("document.querySelectorAll('.bars').length") == 2


def test_a_translation_is_scored_given_its_source(page: Page) -> None:
    show(page, "score")
    page.select("#score-model", "g2p-en")
    assert page.evaluate("document.getElementById('score-eos').checked")
    page.fill("#score-source", "cat")
    score(page, "K AE T")
    cells = page.evaluate(
        "[...document.querySelectorAll('#score-results .charmap .ch')].map((x) => x.innerText)"
    )
    assert cells == ["K", "AE", "T", "∎"]
    page.select("#score-compare", "model")
    others = "[...document.querySelectorAll('#score-model-b option')].map((x) => x.value)"
    assert page.evaluate(others) == ["dates-iso", "g2p-en"]


def test_characters_that_the_model_does_not_know_and_the_empty_text(page: Page) -> None:
    show(page, "score")
    score(page, "a☃b")
    assert "1 character is outside the vocabulary, at 2." in page.text("#score-results")
    assert "0 characters" in score(page, "")


def test_what_is_typed_stays_text(page: Page) -> None:
    show(page, "score")
    score(page, "<img src=x onerror=alert(1)><script>alert(2)</script>")
    assert (
        page.evaluate("document.querySelectorAll('#score-results img, script:not([src])').length")
        == 0
    )


# --- translate -----------------------------------------------------------------------------------


def test_a_source_is_translated_and_aligned(page: Page, server: Server) -> None:
    show(page, "translate")
    # A held-out source of the model stands there to begin with.
    page.wait("document.getElementById('translate-source').value === 'dismore'")
    page.fill("#translate-source", "recurrent")
    start(page, "translate")
    told = status(page, "translate", "3 hypotheses")
    body = {"model": "g2p-en", "source": "recurrent", "beam_size": 5, "num_hypotheses": 3}
    with server.client() as client:
        wanted = client.post("/translate", json=body).json()["results"][0]["hypotheses"]
    assert wanted[0]["text"] in told
    shown = page.evaluate("[...document.querySelectorAll('.hypothesis')].map((x) => x.innerText)")
    for line, hypothesis in zip(shown, wanted, strict=True):
        assert hypothesis["text"] in line
        assert "% likely right, score" in line
        assert f"score {hypothesis['score']:.3f}".replace("-", "\N{MINUS SIGN}") in line
    rows, columns = page.evaluate(
        "[document.querySelectorAll('.matrix tbody tr').length,"
        " document.querySelectorAll('.matrix thead th').length]"
    )
    assert (rows, columns) == (len(wanted[0]["text"].split()) + 1, len("recurrent") + 1)


def test_the_matrix_follows_the_pointer_and_the_arrow_keys(page: Page) -> None:
    show(page, "translate")
    page.fill("#translate-source", "cat")
    start(page, "translate")
    status(page, "translate", "3 hypotheses")
    page.hover(".matrix tbody tr:nth-child(2) td:nth-child(3)")
    page.wait("document.querySelector('.readout').innerText.includes(' took ')")
    assert page.text("#inspector").startswith("“AE” took ")
    marked = page.evaluate(
        "[...document.querySelectorAll('.matrix th.on')].map((x) => x.innerText)"
    )
    assert marked == ["a", "AE"]
    page.click(".matrix tbody tr:nth-child(2) td:nth-child(3)")
    page.press("ArrowDown", "ArrowRight")
    assert page.text("#inspector").startswith("“T” took ")
    assert page.text("#inspector").endswith("from “t”")


def test_another_hypothesis_has_its_own_alignment(page: Page) -> None:
    show(page, "translate")
    page.fill("#translate-source", "read")
    start(page, "translate")
    status(page, "translate", "3 hypotheses")
    before = page.text("#translate-alignment")
    page.click(".hypothesis:nth-of-type(2) input")
    assert page.text("#translate-alignment") != before


def test_a_wrong_source_is_told_in_words(page: Page) -> None:
    show(page, "translate")
    page.fill("#translate-source", "a" * 500)
    start(page, "translate")
    page.wait("!document.getElementById('translate-problem').hidden")
    assert "Source:" in page.text("#translate-problem")
    assert "40" in page.text("#translate-problem")


# --- models --------------------------------------------------------------------------------------


def test_the_models_stand_beside_their_baselines(page: Page) -> None:
    show(page, "models")
    page.wait("document.querySelectorAll('#models-results tbody tr').length === 4")
    listed = page.text("#models-results")
    shipped = json.loads((ROOT / "models/alice-lstm/manifest.json").read_text("utf-8"))
    rows = shipped["metrics"]["measurements"]
    (bits,) = (x["bits_per_char"] for x in rows if (x["name"], x["kind"]) == ("int8", "model"))
    figures = (f"Bits/char {bits:.4f} (int8)", f"{shipped['model']['parameters']:,}")
    for word in (*BUNDLES, *figures, "kneser-ney 8-gram", "Apache-2.0"):
        assert word in listed
    page.click("#models-results tbody tr:nth-child(4) button")
    detail = page.text("#model-detail")
    for word in ("Word errors", "nearest source", "CMU Pronouncing Dictionary", "118,837 pairs"):
        assert word in detail
    page.wait("document.querySelectorAll('#model-detail circle').length === 27")
    assert page.evaluate("document.activeElement.tagName") == "ARTICLE"
    page.click("#models-results tbody tr:nth-child(1) button")
    page.wait("document.querySelectorAll('#model-detail circle').length > 5")
    assert "bits a character" in page.text("#model-detail")


# --- everyone ------------------------------------------------------------------------------------


def test_there_is_a_result_at_the_first_look(browser: Browser, server: Server) -> None:
    tab = Page(browser)
    tab.look(width=1280, height=800)
    tab.open(server.url, READY)
    status(tab, "write", "Done")
    with server.client() as client:
        (held_out,) = client.get("/models/alice-lstm").json()["examples"]
    prompt = tab.evaluate("document.getElementById('write-prompt').value")
    assert len(prompt) > 5
    assert prompt in held_out
    # All of it in the window, and what is rarely needed folded away.
    lowest = "Math.max(...[...document.querySelectorAll('#write > *')]"
    assert tab.evaluate(f"{lowest}.map((x) => x.getBoundingClientRect().bottom))") <= 800
    assert tab.evaluate("document.getElementById('write-temperature').checkVisibility()") is False
    for name in ("score", "translate"):
        tab.click(f"#tab-{name}")
        tab.wait(f"document.getElementById('{name}-results').childElementCount > 1")
    tab.look(width=360, height=740)
    tab.click("#tab-write")
    tab.evaluate("window.scrollTo(0, 0)")
    bottom = "document.getElementById('write-start').getBoundingClientRect().bottom"
    assert tab.evaluate(bottom) <= 740
    # A mistake in what is folded unfolds it.
    tab.evaluate("document.getElementById('write-seed').value = -1")
    tab.click("#write-start")
    tab.wait("!document.getElementById('write-problem').hidden")
    assert tab.evaluate("document.getElementById('write-seed').checkVisibility()")
    assert tab.complaints() == []
    tab.close()


def test_a_tab_and_its_model_have_an_address_and_back_works(
    browser: Browser, server: Server
) -> None:
    tab = Page(browser)
    tab.open(f"{server.url}/#score/alice-rnn", READY)
    assert tab.evaluate("document.getElementById('score-model').value") == "alice-rnn"
    status(tab, "score", "Scored")
    tab.click("#tab-translate")
    assert tab.evaluate("location.hash") == "#translate/g2p-en"
    tab.select("#translate-model", "dates-iso")
    assert tab.evaluate("location.hash") == "#translate/dates-iso"
    tab.evaluate("history.back()")
    tab.wait("!document.getElementById('score').hidden")
    assert tab.evaluate("location.hash") == "#score/alice-rnn"
    assert tab.complaints() == []
    tab.close()


def test_unknown_characters_of_a_prompt_are_told(page: Page) -> None:
    write(page, prompt="Zo\u00eb \u20ac", max_tokens="5")
    assert "3 characters of the prompt are unknown" in page.text("#write-status")


def test_the_keyboard_alone_is_enough(page: Page) -> None:
    page.evaluate("document.getElementById('tab-write').focus()")
    page.press("ArrowRight")
    assert value(page, "#tab-score", "aria-selected") == "true"
    assert page.evaluate("document.activeElement.id") == "tab-score"
    page.press("End")
    assert value(page, "#tab-models", "aria-selected") == "true"
    page.press("ArrowRight")  # round to the first
    assert value(page, "#tab-write", "aria-selected") == "true"
    assert page.evaluate("document.querySelectorAll('[role=tabpanel]:not([hidden])').length") == 1
    focused = "document.activeElement.id"
    seen = []
    for _ in range(11):
        page.press("Tab")
        seen.append(page.evaluate(focused))
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
    names = ["model", "prompt", "start", "temperature", "top-p", "max-tokens", "seed", "reroll"]
    seen.remove("")  # what folds the options
    assert seen == [f"write-{name}" for name in [*names, "lock", "pattern"]]
    page.press("Enter")
    status(page, "write", "Done")
    page.press("Tab")
    assert page.evaluate(focused) == "write-map"
    assert "Probability" in page.text("#inspector")
    first = value(page, "#write-map", "aria-valuetext")
    page.press("ArrowRight", "ArrowRight", "ArrowDown")
    assert int(value(page, "#write-map", "aria-valuenow")) > 20
    assert "bits, rank" in value(page, "#write-map", "aria-valuetext")
    assert value(page, "#write-map", "aria-valuetext") != first
    page.press("Home")
    assert value(page, "#write-map", "aria-valuenow") == "0"
    page.press("Escape")
    assert page.evaluate("document.getElementById('inspector').hidden")


def test_every_control_has_a_name(page: Page) -> None:
    write(page, max_tokens="20")
    for tab in ("write", "score", "translate", "models"):
        show(page, tab)
        if tab == "score":
            page.select("#score-compare", "text")
            score(page, "ab")
        if tab == "translate":
            page.fill("#translate-source", "cat")
            start(page, "translate")
            status(page, "translate", "3 hypotheses")
        if tab == "models":
            page.wait("document.querySelectorAll('#models-results tbody tr').length === 4")
        found = [(role, name) for role, name in page.accessible() if role in CONTROLS]
        assert len(found) > 8
        assert [role for role, name in found if not name.strip()] == []


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read_in_light_and_dark(page: Page, dark: bool) -> None:
    page.look(dark=dark)
    show(page, "score")
    score(page, "The cat zqx sat on the mat, QJX!")
    assert page.evaluate(CONTRASTS % AA_TEXT) == []
    show(page, "models")
    page.wait("document.querySelectorAll('#models-results tbody tr').length === 4")
    page.click("#models-results tbody tr:nth-child(4) button")
    assert page.evaluate(CONTRASTS % AA_TEXT) == []


# Text below the ratio of WCAG 2.2, 1.4.3, with the first background that is not transparent.
CONTRASTS = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map((x) => x / 255)
    .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4))
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const background = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((x) => x.nodeType === 3 && x.data.trim());
    if (!own || !node.checkVisibility()) continue;
    if (node.closest("svg, :disabled, .visually-hidden")) continue;
    const [a, b] = [channels(getComputedStyle(node).color), background(node)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < %s) found.push([node.tagName, node.className, node.innerText, ratio]);
  }
  return found;
})()"""


@pytest.mark.parametrize("tab", ["write", "score", "translate", "models"])
def test_it_fits_a_narrow_window(page: Page, tab: str) -> None:
    page.look(width=360, height=740)
    show(page, tab)
    if tab == "write":
        write(page, max_tokens="100")
        page.evaluate("document.getElementById('write-map').focus()")
    elif tab == "score":
        score(page, "Characters" * 30)
        page.hover("#score-results .ch")
    elif tab == "translate":
        page.fill("#translate-source", "internationalization")
        start(page, "translate")
        status(page, "translate", "3 hypotheses")
    else:
        page.wait("document.querySelectorAll('#models-results tbody tr').length === 4")
        page.click("#models-results tbody tr:nth-child(4) button")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    left, right = page.evaluate(
        "(({left, right}) => [left, right])"
        "(document.getElementById('inspector').getBoundingClientRect())"
    )
    assert left >= 0
    assert right <= 360


def test_a_long_text_is_drawn_whole(page: Page) -> None:
    show(page, "score")
    text = "Alice was beginning to get very tired of sitting by her sister. " * 150
    told = score(page, text)
    assert f"{len(text):,} characters" in told
    drawn = page.evaluate("document.querySelectorAll('#score-results .charmap .ch').length")
    assert drawn == len(text)


def test_a_text_over_the_limit_is_refused_with_the_limit(page: Page) -> None:
    show(page, "score")
    page.fill("#score-text", "a" * 60_000)
    start(page, "score")
    page.wait("!document.getElementById('score-problem').hidden")
    assert "480000" in page.text("#score-problem").replace(",", "")


def test_the_documentation_needs_nothing_from_elsewhere(browser: Browser, server: Server) -> None:
    tab = Page(browser)
    tab.look()
    tab.open(f"{server.url}/docs", "document.querySelectorAll('.opblock').length > 5")
    assert "/score" in tab.text("#docs")
    tab.click(".opblock-post .opblock-summary")
    tab.wait("document.querySelector('.opblock-section-request-body') !== null")
    assert tab.complaints() == []
    assert origins(tab) == {urlsplit(server.url).netloc}
    tab.close()


# --- its parts -----------------------------------------------------------------------------------


def segments(scores: list[float]) -> list[tuple[int, int]]:
    """All maximal scoring subsequences, from their definition."""
    places = itertools.combinations(range(len(scores) + 1), 2)
    best = max(places, key=lambda x: (sum(scores[x[0] : x[1]]), x[0] - x[1]), default=(0, 0))
    if sum(scores[best[0] : best[1]]) <= 0:
        return []
    after = [(a + best[1], b + best[1]) for a, b in segments(scores[best[1] :])]
    return [*segments(scores[: best[0]]), best, *after]


def test_the_surprising_spans_are_all_maximal_segments(page: Page) -> None:
    random = Random(5)
    lists = [[random.uniform(-3, 3) for _ in range(random.randrange(24))] for _ in range(60)]
    found = page.evaluate(
        "import('/page/spans.js').then(({ maximalSegments }) =>"
        f" {json.dumps(lists)}.map((x) => maximalSegments(x).map((y) => [y.start, y.end])))"
    )
    assert [[tuple(x) for x in places] for places in found] == [segments(x) for x in lists]


def test_events_are_read_whatever_pieces_they_come_in(page: Page) -> None:
    stream = (
        ': heartbeat\n\nevent: token\ndata: {"é": 1}\n\nevent: done\r\ndata: a\r\ndata: b\r\n\r\n'
    )
    for size in (1, 2, 3, 7, 1000):
        found = page.evaluate(
            f"""import('/page/sse.js').then(async ({{ events }}) => {{
              const bytes = new TextEncoder().encode({json.dumps(stream)});
              const body = new ReadableStream({{ start(c) {{
                for (let i = 0; i < bytes.length; i += {size})
                  c.enqueue(bytes.slice(i, i + {size}));
                c.close();
              }} }});
              const found = [];
              for await (const event of events(body)) found.push([event.event, event.data]);
              return found;
            }})"""
        )
        assert found == [["token", '{"é": 1}'], ["done", "a\nb"]]


# --- pictures ------------------------------------------------------------------------------------


def test_the_pictures_of_the_readme(page: Page, tmp_path: Path) -> None:
    folder = Path(SCREENSHOTS) if SCREENSHOTS else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    write(page, max_tokens="420", prompt="Alice was ")
    page.hover("#write-map .s4, #write-map .s5")
    picture(page, folder / "write.png")
    show(page, "score")
    score(page, "The Queen of Hearts, she made some tarts, and lost her pasword.")
    page.hover("#score-results .s5")
    picture(page, folder / "score.png")
    show(page, "fill")
    page.fill("#fill-text", "Alice was ___ tired of sitting by her sister")
    start(page, "fill")
    page.wait("document.getElementById('fill-status').innerText.includes(' fills compared; ')")
    page.evaluate("window.scrollTo(0, 0)")
    picture(page, folder / "infill.png")
    show(page, "translate")
    page.fill("#translate-source", "recurrent")
    start(page, "translate")
    status(page, "translate", "3 hypotheses")
    page.look(height=1000)
    page.hover(".matrix tbody tr:nth-child(4) td:nth-child(5)")
    picture(page, folder / "translate.png")
    page.look(height=1000, dark=True)
    show(page, "models")
    page.wait("document.querySelectorAll('#models-results tbody tr').length === 4")
    page.click("#models-results tbody tr:nth-child(4) button")
    page.wait("document.querySelectorAll('#model-detail circle').length === 27")
    page.evaluate("window.scrollTo(0, 0)")
    picture(page, folder / "models.png")
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < MAX_SCREENSHOT_BYTES


def test_a_service_with_keys_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    secret, key = new_key("reader", "use")
    keys = tmp_path / "keys"
    keys.write_text(key.line())
    folder = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "alice-rnn", folder / "alice-rnn")
    with serve(folder, api_keys_file=keys) as guarded:
        tab = Page(browser)
        tab.look()
        tab.open(guarded.url, "document.querySelector('#key-form:not([hidden])') !== null")
        assert "known key" in tab.text("#start-problem")
        tab.fill("#key", secret)
        tab.click("#key-form button")
        tab.wait(READY)
        assert tab.evaluate("document.querySelector('#key-form').hidden")
        tab.click("#write-start")
        tab.wait("document.querySelector('#write-map').textContent.length > 100")
        tab.close()
