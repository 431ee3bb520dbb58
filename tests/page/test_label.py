"""The tab that labels texts and their characters, as one types."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.bundle.store import write_bundle
from tests.end_to_end.server import ROOT, Server, serve
from tests.labelers import Sort, tiny_labeler_files
from tests.page.chromium import Browser, Page
from tests.page.test_page import (
    AA_TEXT,
    CONTRASTS,
    CONTROLS,
    READY,
    SCREENSHOTS,
    picture,
    show,
    start,
    unfold,
    value,
)

SORTS: tuple[Sort, ...] = ("bio", "chain", "forward", "restore", "several", "text")
EXAMPLE = "a bad idea"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    for sort in SORTS:
        names = ["", "é"] if sort == "restore" else ["de"]
        example = {"text": EXAMPLE, "labels": names[:1], "found": names[-1:]}
        values = [{"name": "fp32", "kind": "model", "values": {"accuracy": 0.75, "ece": 0.02}}]
        metrics = [{"split": "test", "texts": 8, "labels": 8, "measurements": values}]
        changes = {"examples": [example], "metrics": metrics}
        write_bundle(folder, *tiny_labeler_files(sort, changes=changes))
    with serve(folder, engine_threads=1) as running:
        yield running


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """One for all tests: a new one costs more than most of them."""
    opened = Page(browser)
    yield opened
    opened.close()


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """The tab, which every test has load its page; in the end nothing has complained."""
    before = tab.complaints()
    tab.look()
    yield tab
    assert tab.complaints() == before


def visit(page: Page, server: Server, sort: str) -> None:
    """The tab with a model; an example is labelled already."""
    page.open("about:blank", "true")  # an address that differs in its hash alone is no new page
    page.open(f"{server.url}/#label/tiny-{sort}", READY)
    page.wait("!['', 'Labelling…'].includes(document.getElementById('label-status').innerText)")
    unfold(page)


def labelled(page: Page, text: str) -> str:
    """Type a text, and wait for its labels, without a click; the status."""
    page.evaluate("document.getElementById('label-status').textContent = ''")
    page.fill("#label-text", text)
    page.wait("!['', 'Labelling…'].includes(document.getElementById('label-status').innerText)")
    return page.text("#label-status")


def asked(server: Server, path: str, **body: Any) -> Any:
    with server.client() as client:
        return client.post(path, json=body).raise_for_status().json()["results"][0]


def bars(page: Page) -> list[float]:
    found: list[float] = page.evaluate(
        "[...document.querySelectorAll('.labels .bar')].map((x) =>"
        " Number(x.style.getPropertyValue('--v')))"
    )
    return found


def cells(page: Page) -> str:
    found: str = page.evaluate(
        "[...document.querySelectorAll('#label-results .ch')].slice(0, "
        "document.querySelectorAll('#label-results .charmap .ch').length)"
        ".map((x) => x.textContent).join('')"
    )
    return found


def percent(share: float) -> str:
    return f"{float(f'{100 * share:.3g}'):g} %"


@pytest.mark.parametrize("sort", ["text", "several", "forward"])
def test_a_text_is_labelled_as_one_types(page: Page, server: Server, sort: str) -> None:
    visit(page, server, sort)
    assert page.evaluate("document.getElementById('label-text').value") == EXAMPLE
    told = labelled(page, "abba")
    labels = asked(server, "/classify", model=f"tiny-{sort}", text="abba")["labels"]
    assert told == f"{labels[0]['label']}, {percent(labels[0]['probability'])}."
    names = page.evaluate("[...document.querySelectorAll('.labels .said')].map((x) => x.innerText)")
    assert names == [each["label"] for each in labels]
    assert bars(page) == pytest.approx([each["probability"] for each in labels])
    is_for_itself = "each has a probability of its own" in page.text("#label-results")
    assert is_for_itself == (sort == "several")
    assert ("is the likeliest label from" in page.text("#label-results")) == (sort == "forward")


def test_unlikely_labels_are_left_out_and_perhaps_all(page: Page, server: Server) -> None:
    visit(page, server, "text")
    page.fill("#label-top", "1")
    labelled(page, "abcd")
    assert len(bars(page)) == 1
    assert "with 2 labels left out here, add up to 100 %" in page.text("#label-results")
    page.fill("#label-least", "100")
    assert labelled(page, "abc") == "No label is that likely."
    assert bars(page) == []


def test_what_is_typed_is_labelled_again_by_another_model(page: Page, server: Server) -> None:
    visit(page, server, "text")
    labelled(page, "abba")
    page.select("#label-model", "tiny-bio")
    page.wait("document.querySelector('#label-results .charmap') !== null")
    assert cells(page) == "abba"
    # What is for labels of texts has gone.
    assert not page.evaluate("document.getElementById('label-top').checkVisibility()")
    assert page.evaluate("document.getElementById('label-count').checkVisibility()")


@pytest.mark.parametrize("sort", ["bio", "chain"])
def test_a_text_is_shown_with_its_tags_and_its_doubtful_places(
    page: Page, server: Server, sort: str
) -> None:
    visit(page, server, sort)
    text = "bad ideas abide"
    told = labelled(page, text)
    found = asked(server, "/tag", model=f"tiny-{sort}", text=text, places=True, top=2)
    tags, places = found["tags"], found["places"]
    plural = "" if len(tags) == 1 else "s"
    wrong = sum(1 - place["labels"][0]["probability"] for place in places)
    assert told.startswith(f"{len(tags)} tag{plural}. The model expects ")
    assert float(told.split()[5]) == pytest.approx(wrong, rel=0.05)
    assert cells(page) == text
    tagged = page.evaluate(
        "[...document.querySelectorAll('#label-results .charmap .ch')].map((x) =>"
        " x.classList.contains('tagged'))"
    )
    within = {i for tag in tags for i in range(tag["start"], tag["end"])}
    assert tagged == [i in within for i in range(len(text))]
    names = page.evaluate(
        "[...document.querySelectorAll('#label-results [data-label]')].map((x) => x.dataset.label)"
    )
    assert names == [tag["label"] for tag in tags]
    tints = page.evaluate(
        "[...document.querySelectorAll('#label-results .charmap .ch')].map((x) =>"
        " Number(/s(\\d)/.exec(x.className)[1]))"
    )
    steps = (0.99, 0.9, 0.7, 0.5)
    shares = [place["labels"][0]["probability"] for place in places]
    assert tints == [sum(share < step for step in steps) for share in shares]
    assert len(set(tints)) > 1
    assert bars(page) == pytest.approx([tag["probability"] for tag in tags])


def test_the_places_are_read_by_keyboard_and_in_words(page: Page, server: Server) -> None:
    visit(page, server, "bio")
    text = "bad ideas abide"
    labelled(page, text)
    page.evaluate("document.querySelector('#label-results .charmap').focus()")
    page.press("ArrowRight")
    spoken = value(page, "#label-results .charmap", "aria-valuetext")
    labels = asked(server, "/tag", model="tiny-bio", text=text, places=True, top=5)
    likeliest = labels["places"][1]["labels"]
    words = ", ".join(f"{x['label']} {percent(x['probability'])}" for x in likeliest[:2])
    assert spoken.startswith("“a”")
    assert f"Likeliest labels: {words}" in spoken
    card = page.text("#inspector")
    assert "Likeliest labels" in card
    assert likeliest[0]["label"] in card
    # A tag in the table leads to its place.
    page.press("Escape")
    page.click("#label-results tbody tr:last-child button.span")
    now = int(value(page, "#label-results .charmap", "aria-valuenow"))
    assert now == labels["tags"][-1]["start"] > 1


def test_a_restored_text_shows_what_has_changed(page: Page, server: Server) -> None:
    visit(page, server, "restore")
    text = "a bad idea abides oui"
    told = labelled(page, text)
    found = asked(server, "/tag", model="tiny-restore", text=text)
    restored = found["text"]
    changed = [i for i, (a, b) in enumerate(zip(text, restored, strict=True)) if a != b]
    assert changed
    assert told.startswith(f"{len(changed)} character")
    assert cells(page) == restored
    first = changed[0] + 1
    page.hover(f"#label-results .charmap .ch:nth-of-type({first})")
    page.wait("!document.getElementById('inspector').hidden")
    assert f"was “{text[changed[0]]}”" in page.text("#inspector")
    assert page.text("#label-results .visually-hidden").endswith(restored)


def test_several_taggings_are_compared_and_one_is_chosen(page: Page, server: Server) -> None:
    visit(page, server, "restore")
    page.fill("#label-count", "3")
    labelled(page, "idea")
    found = asked(server, "/tag", model="tiny-restore", text="idea", n=3)
    texts = [found["text"], *(each["text"] for each in found["alternatives"])]
    shown = "[...document.querySelectorAll('.hypothesis .said')].map((x) => x.innerText)"
    assert page.evaluate(shown) == texts
    assert percent(math.exp(found["logprob"])) in page.text(".hypothesis small")
    page.evaluate("document.querySelector('.hypothesis input').focus()")
    page.press("ArrowDown")
    assert cells(page) == texts[1]


def test_what_is_wrong_is_told_beside_its_field(page: Page, server: Server) -> None:
    visit(page, server, "text")
    page.fill("#label-top", "0")
    start(page, "label")
    page.wait("!document.getElementById('label-problem').hidden")
    assert "Labels:" in page.text("#label-problem")
    assert value(page, "#label-top", "aria-invalid") == "true"
    # No labels of an earlier text stay there.
    assert page.evaluate("document.getElementById('label-results').childElementCount") == 0


def test_the_models_tab_shows_labelers(page: Page, server: Server) -> None:
    visit(page, server, "chain")
    page.click("#tab-models")
    page.wait(f"document.querySelectorAll('#models-results tbody tr').length === {len(SORTS)}")
    listed = page.text("#models-results")
    for words in ("LSTM tagger, 5 labels, int8", "LSTM classifier, 3 labels", "Accuracy 75.0 %"):
        assert words in listed
    for sort, words in [
        (
            "chain",
            "B-name, I-name, B-place, I-place; the labels of neighbours depend on each other",
        ),
        ("several", "loud, kind, long, odd; a text may have several"),
        ("restore", "á à é í ó ú"),
    ]:
        page.click(f"#models-results tbody tr:nth-child({SORTS.index(sort) + 1}) button")
        detail = page.text("#model-detail")
        assert words in detail
        assert EXAMPLE in detail
        assert "Calibration error" in detail
        assert "2.0 %" in detail


def test_no_other_tab_takes_a_labeler(page: Page, server: Server) -> None:
    visit(page, server, "text")
    for tab in ("write", "score", "fill", "translate"):
        show(page, tab)
        assert page.evaluate(f"document.getElementById('{tab}-start').disabled")
        assert page.text(f"#{tab}-status").startswith("This service has no ")


@pytest.mark.parametrize("sort", ["text", "chain"])
def test_it_can_be_read_named_and_fits_a_narrow_window(
    page: Page, server: Server, sort: str
) -> None:
    visit(page, server, sort)
    labelled(page, "abide bad ideas " + "abcd" * 30)
    assert page.evaluate(CONTRASTS % AA_TEXT) == []
    found = [(role, name) for role, name in page.accessible() if role in CONTROLS]
    assert [role for role, name in found if not name.strip()] == []
    assert ("textbox", "Text") in {(role, name.split(" Labelled")[0]) for role, name in found}
    page.look(width=360, height=740, dark=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(CONTRASTS % AA_TEXT) == []


@pytest.mark.skipif(SCREENSHOTS is None, reason="only `make screenshots` needs it")
def test_the_pictures_of_the_documents(page: Page, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models/accents", tmp_path / "accents")
    with serve(tmp_path) as running:
        page.open(f"{running.url}/#label/accents", READY)
        labelled(page, "Le musee est ferme cet ete, mais le theatre a deja rouvert.")
        page.hover("#label-results .charmap .s1, #label-results .charmap .s2")
        picture(page, Path(str(SCREENSHOTS)) / "label.png")
