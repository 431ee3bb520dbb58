"""The page with models that adapt, mixtures and n-grams, against an application of fakes."""

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from service.app import create_app
from service.bundle.language_model import Adapt
from service.settings import Settings
from service.tasks.language_model import LanguageModelEngine
from tests.bundles import ALPHABET, in_memory, plain_files
from tests.end_to_end.server import free_port
from tests.fakes import FakeSession
from tests.page.chromium import Browser, Page
from tests.page.test_page import READY, score, show, status, unfold

VOCAB_SIZE = 4 + len(ALPHABET)
TEXT = "the rabbit said to the rabbit, what a rabbit"
LSTM = {
    "cell": "lstm", "num_layers": 1, "hidden_size": 336, "embedding_dim": 32,
    "parameters": 523_110,
}  # fmt: skip
GRAMS = {
    "cell": "ngram", "num_layers": None, "hidden_size": None, "embedding_dim": None,
    "parameters": 117_297, "order": 6,
}  # fmt: skip
PARTS = [
    {"name": "lstm", "model": LSTM, "weight": 0.7, "temperature": 0.95},
    {"name": "6-gram", "model": GRAMS, "weight": 0.3, "temperature": None},
]
ADAPT = {
    "states": [{"name": "learned", "dtype": "float32", "shape": [VOCAB_SIZE]}],
    "rank": 64, "rate": 0.015, "decay": 0.0,
    "weights": [0.8, 0.2], "temperatures": [0.9, None], "exponent": 1.02,
}  # fmt: skip


def measurement(name: str, kind: str, bits: float) -> dict[str, Any]:
    figures = {"loss": bits * math.log(2), "bits_per_char": bits, "perplexity": 2**bits}
    return {"name": name, "kind": kind, **figures}


def metrics(*measurements: dict[str, Any], **changes: Any) -> dict[str, Any]:
    held_out = {"split": "test", "chars": 7000, "tokens": 7001}
    floor = measurement("unigram", "baseline", 4.5)
    return {**held_out, "measurements": [*measurements, floor], **changes}


MIXED: dict[str, Any] = {
    "model": LSTM,
    "parts": PARTS,
    "exponent": 1.07,
    "fit": {"split": "valid", "chars": 7424},
    "metrics": metrics(
        measurement("fp32", "model", 1.9158),
        measurement("fp32", "adapting", 1.8811),
        measurement("lstm", "part", 1.9934),
        measurement("6-gram", "part", 2.1127),
        expected_bits_per_char=1.9112,
    ),
}
# Of 1,000 held-out texts, 970 are certain to be less surprising than any other, and 30 more.
STANDINGS = {
    "least_chars": len(TEXT),
    "most_chars": 99,
    "texts": 1000,
    "ranks": [1, 970, 971, 1000],
    "bits_per_char": [0.0, 0.0, 100.0, 100.0],
    "bits_per_char_with_eos": [0.0, 100.0, 100.0, 100.0],
}
MODELS: dict[str, dict[str, Any]] = {
    "grams": {
        "model": GRAMS,
        "metrics": metrics(measurement("fp32", "model", 2.1127)),
        "percentiles": {"split": "test", "texts": "documents", "lengths": [STANDINGS]},
    },
    "mixed": MIXED,
    # As in a bundle that was written before there were parts.
    "old": {"model": LSTM, "metrics": metrics(measurement("fp32", "model", 2.0))},
}


def engine(name: str) -> LanguageModelEngine:
    manifest, files = plain_files(name, ALPHABET, **MODELS[name])
    adapting = None
    if name == "mixed":
        manifest = manifest.model_copy(update={"adapt": Adapt.model_validate(ADAPT)})
        adapting = FakeSession(VOCAB_SIZE, adapts=True)
    return LanguageModelEngine(
        in_memory(manifest, files),
        FakeSession(VOCAB_SIZE),
        Settings(),
        precision="fp32",
        adapting=adapting,
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An application of them in this process."""
    app = create_app(Settings(), [engine(name) for name in MODELS])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    tab = Page(browser)
    tab.look()
    tab.open(f"{url}/#score/mixed", READY)
    status(tab, "score", "Scored")  # the example that it begins with
    unfold(tab)
    yield tab
    assert tab.complaints() == []
    tab.close()


def hidden(page: Page, name: str) -> bool:
    found: bool = page.evaluate(f"document.getElementById('score-{name}-field').hidden")
    return found


def bits(url: str, *, adapt: bool) -> float:
    body = {"model": "mixed", "text": TEXT, "adapt": adapt}
    found: float = httpx.post(f"{url}/score", json=body).json()["results"][0]["bits"]
    return found


def charts(page: Page) -> list[str]:
    """What screen readers are told of each chart."""
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('#score-results .chart svg')]"
        ".map((x) => x.getAttribute('aria-label'))"
    )
    return found


def test_a_text_is_scored_with_and_without_adapting(page: Page, url: str) -> None:
    page.click("#score-adapt")
    assert hidden(page, "compare")
    told = score(page, TEXT)
    plain, adapting = bits(url, adapt=False), bits(url, adapt=True)
    assert f"As trained {plain:.1f} bits over {len(TEXT)} characters" in told
    assert f"Adapting {adapting:.1f} bits over {len(TEXT)} characters" in told
    results = page.text("#score-results")
    verb = "costs" if plain < adapting else "saves"
    assert f"Adapting {verb} {abs(plain - adapting):.1f} bits of {plain:.1f} bits." in results
    assert page.evaluate("document.querySelectorAll('#score-results .charmap').length") == 2
    page.wait("document.querySelectorAll('#score-results .chart svg').length === 2")
    gains, curve = charts(page)
    gain = f"{plain - adapting:+.1f}".replace("-", "\N{MINUS SIGN}")
    assert gains.startswith("Bits saved by adapting: ")
    assert gains.endswith(f"{gain} up to its end")
    assert curve.startswith("Surprisal by position; As trained ")
    # Both curves follow the cursor of either text.
    page.hover("#score-results .two > div:nth-child(2) .ch")
    page.wait("document.querySelectorAll('#score-results .cursor:not(.off)').length === 2")


def test_the_switch_is_for_models_that_adapt_and_works_by_keyboard(page: Page) -> None:
    assert ("checkbox", "Adapt to the text") in page.accessible()
    page.evaluate("document.getElementById('score-adapt').focus()")
    page.press(" ")
    assert hidden(page, "compare")
    for name in ("grams", "old"):
        page.select("#score-model", name)
        assert hidden(page, "adapt")
        assert not hidden(page, "compare")
        assert "As trained" not in score(page, TEXT)
        page.wait("document.querySelectorAll('#score-results .chart svg').length === 1")
    page.select("#score-model", "mixed")
    assert not hidden(page, "adapt")
    assert "As trained" in score(page, TEXT)
    page.click("#score-adapt")
    assert "As trained" not in score(page, TEXT)


def test_a_text_stands_beside_the_whole_the_parts_and_the_floors(page: Page) -> None:
    score(page, TEXT)
    bars = [line.split("\t")[0] for line in page.text(".bars").splitlines()]
    assert {
        "This text",
        "mixed (fp32), held out",
        "mixed (fp32) adapting, held out",
        "lstm alone (part)",
        "6-gram alone (part)",
        "unigram",
    } <= set(bars)


def test_a_text_stands_among_held_out_texts_of_its_length(page: Page) -> None:
    page.select("#score-model", "grams")
    score(page, TEXT)
    assert page.text("#score-results .standing") == (
        "More surprising than 97 % of 1,000 held-out texts of this length "
        "(95 % interval: 95.7 % to 97.9 %)."
    )
    for text, context in (("too short", ""), (TEXT, "after this")):
        page.fill("#score-context", context)
        score(page, text)
        assert page.evaluate("document.querySelector('#score-results .standing')") is None


def test_the_models_show_what_they_are_made_of(page: Page) -> None:
    show(page, "models")
    page.wait("document.querySelectorAll('#models-results tbody tr').length === 3")
    rows = page.text("#models-results").splitlines()
    (grams,) = (row for row in rows if row.startswith("grams\t"))
    assert "\t6-gram language model, fp32\t117,297 n-grams\t" in grams
    (mixed,) = (row for row in rows if row.startswith("mixed\t"))
    assert "\tLSTM + 6-gram language model, fp32, can adapt\t" in mixed
    assert "\t523,110 + 117,297 n-grams\t" in mixed
    assert "\tBits/char 1.9158 (fp32), adapting 1.8811\t" in mixed
    (old,) = (row for row in rows if row.startswith("old\t"))
    assert "\tLSTM language model, fp32\t523,110\t" in old


def test_the_details_show_parts_rates_and_calibration(page: Page) -> None:
    show(page, "models")
    page.click("#models-results tbody tr:nth-child(2) button")
    detail = page.text("#model-detail")
    for words in (
        "64 directions of the hidden outputs, rate 0.015, decay 0",
        "valid: 7,424 characters",
        "expects 1.9112 bits/char, needs 1.9158 (fp32)",
        "Parts whose probabilities are averaged, then raised to the power 1.07",
        "embedding dim 32, parameters 523,110\t0.700\t0.950\t0.800\t0.900",
        "6-gram\tcell ngram, parameters 117,297, order 6\t0.300\t\N{EN DASH}\t0.200\t",
        "fp32, adapting\t",
        "lstm (part)\t",
        "unigram (baseline)\t",
    ):
        assert words in detail
    page.click("#models-results tbody tr:nth-child(1) button")
    detail = page.text("#model-detail")
    assert "cell ngram, parameters 117,297, order 6" in detail
    assert "null" not in detail
    assert "Parts whose" not in detail


@pytest.mark.parametrize("tab", ["score", "models"])
def test_it_fits_a_narrow_window(page: Page, tab: str) -> None:
    page.look(width=360, height=740)
    if tab == "score":
        page.click("#score-adapt")
        score(page, TEXT * 3)
    else:
        show(page, tab)
        page.click("#models-results tbody tr:nth-child(2) button")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
