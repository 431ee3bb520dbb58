"""The tab that fills blanks, with a language model and a model for blanks."""

import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from service.bundle.store import write_bundle
from tests.bundles import tiny_cloze_files
from tests.end_to_end.server import ROOT, Server, serve
from tests.page.chromium import Browser, Page
from tests.page.test_page import AA_TEXT, CONTRASTS, CONTROLS, READY, start, unfold, value

MODEL, CLOZE = "alice-lstm", "tiny-cloze"
TEXT = "Alice was ___ tired of sitting"
CANDIDATES = ["very", "quite", "xq"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(ROOT / "models" / MODEL, folder / MODEL)
    write_bundle(folder, *tiny_cloze_files(name=CLOZE))
    with serve(folder, engine_threads=1) as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The tab, opened; an example stands in it already. In the end nothing complained."""
    tab = Page(browser)
    tab.look()
    tab.open(f"{server.url}/#fill/{MODEL}", READY)
    tab.wait("document.getElementById('fill-status').innerText.includes(' fills compared; ')")
    unfold(tab)
    yield tab
    assert tab.complaints() == []
    tab.close()


def fill(page: Page, text: str, *candidates: str) -> str:
    page.fill("#fill-text", text)
    page.fill("#fill-candidates", "\n".join(candidates))
    start(page, "fill")
    page.wait("!['', 'Filling…'].includes(document.getElementById('fill-status').innerText)")
    return page.text("#fill-status")


def infill(server: Server, **body: Any) -> Any:
    with server.client() as client:
        return client.post("/infill", json={"model": MODEL, **body}).json()["results"][0]


def shares(logs: list[float]) -> list[float]:
    total = sum(map(math.exp, logs))
    return [math.exp(log) / total for log in logs]


def bars(page: Page) -> list[list[float]]:
    """The bars of every fill."""
    found: list[list[float]] = page.evaluate(
        "[...document.querySelectorAll('.fills tbody tr')].map((row) =>"
        " [...row.querySelectorAll('.bar')].map((x) => Number(x.style.getPropertyValue('--v'))))"
    )
    return found


def test_a_fill_has_bars_for_left_right_and_both(page: Page, server: Server) -> None:
    told = fill(page, TEXT, *CANDIDATES)
    fills = infill(server, text=TEXT, candidates=CANDIDATES)["fills"]
    best, share = fills[0]["text"], 100 * fills[0]["posterior"]
    percent = f"{float(f'{share:.3g}'):g} %"
    assert told == f"3 fills compared; the best is “{best}”, with {percent} of their probability."
    wanted = zip(
        shares([each["logprob"] for each in fills]),
        shares([each["suffix_logprob"] for each in fills]),
        [each["posterior"] for each in fills],
        strict=True,
    )
    assert bars(page) == [pytest.approx(each, rel=1e-6) for each in wanted]
    # Of the open blank's options none applies now.
    assert not page.evaluate("document.getElementById('fill-length').checkVisibility()")


def test_a_fill_is_selected_by_keyboard_and_stands_in_the_text(page: Page) -> None:
    fill(page, "Alice ___ very ___.", "was", "is")
    page.evaluate("document.querySelector('.fills input').focus()")
    seen = set()
    for _ in range(4):
        seen.add(page.text(".filled"))
        page.press("ArrowDown")
    both = ("was", "is")
    assert seen == {f"Alice {first} very {second}." for first in both for second in both}
    assert page.evaluate("document.querySelectorAll('.filled mark').length") == 2


def test_an_open_blank_is_filled_within_its_bounds(page: Page, server: Server) -> None:
    page.fill("#fill-pattern", "[a-z]+")
    page.fill("#fill-length", "4")
    page.fill("#fill-count", "3")
    told = fill(page, TEXT)
    wanted = infill(server, text=TEXT, pattern="[a-z]+", length=4, num_fills=3, seed=1)
    assert told.startswith(f"{wanted['compared']} fills compared; the best is ")
    names = page.evaluate("[...document.querySelectorAll('.fills .said')].map((x) => x.innerText)")
    assert names == [each["text"] for each in wanted["fills"]]


def test_spaces_at_the_ends_of_a_fill_are_drawn_and_stay_spaces(page: Page) -> None:
    fill(page, "Alice ___ ___ tired", "as if", "was ")
    rows = page.evaluate(
        "[...document.querySelectorAll('.fills .said')].map((x) =>"
        " [x.textContent, x.querySelectorAll('.space').length])"
    )
    assert dict(rows) == {
        "as if · as if": 0,
        "as if · was ": 1,
        "was  · as if": 1,
        "was  · was ": 2,
    }
    widths = page.evaluate(
        "[...document.querySelectorAll('.fills .space')].map((x) => x.clientWidth)"
    )
    assert min(widths) >= 4


def test_a_model_for_blanks_may_leave_the_decision_to_a_language_model(page: Page) -> None:
    page.select("#fill-model", CLOZE)
    page.fill("#fill-max-tokens", "2")
    told = fill(page, "ab___c")
    assert " compared" in told
    assert {len(row) for row in bars(page)} == {1}  # it reads both sides at once
    assert "no share for either side alone" in page.text("#fill-results")
    page.select("#fill-rescore", MODEL)
    fill(page, "ab___c")
    assert f"proposed by {CLOZE}, ranked by {MODEL}" in page.text("#fill-results")
    assert {len(row) for row in bars(page)} == {3}
    # It does not translate.
    options = "[...document.querySelectorAll('#translate-model option')].map((x) => x.value)"
    assert page.evaluate(options) == []


def test_what_is_wrong_is_told_beside_its_field(page: Page) -> None:
    page.fill("#fill-pattern", "(")
    start(page, "fill")
    page.wait("!document.getElementById('fill-problem').hidden")
    assert "Pattern:" in page.text("#fill-problem")
    assert value(page, "#fill-pattern", "aria-invalid") == "true"
    page.fill("#fill-text", "no blank")
    page.fill("#fill-pattern", "")
    start(page, "fill")
    page.wait(
        "document.getElementById('fill-problem').innerText.includes('every text needs a blank')"
    )


def test_it_can_be_read_named_and_fits_a_narrow_window(page: Page) -> None:
    fill(page, TEXT, *CANDIDATES, "Characters" * 12)
    assert page.evaluate(CONTRASTS % AA_TEXT) == []
    found = [(role, name) for role, name in page.accessible() if role in CONTROLS]
    assert [role for role, name in found if not name.strip()] == []
    assert ("textbox", "Candidates") in {(role, name.split(" Texts")[0]) for role, name in found}
    page.look(width=360, height=740, dark=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(CONTRASTS % AA_TEXT) == []
