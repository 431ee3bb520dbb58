"""`POST /infill` where one model proposes and another decides."""

from collections.abc import Iterator
from typing import Any

import pytest

from service.app import create_app
from service.bundle.store import write_bundle
from service.settings import Settings
from tests.bundles import tiny_cloze_files, tiny_files
from tests.fakes import AppClient

LETTERS = " abcdefghijklmnopqrstuvwxyz"
ASKED: dict[str, Any] = {"prefix": "the ", "suffix": " rabbit", "length": 3, "seed": 1}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    """Of an app with the models `tiny-lstm` and `tiny-cloze`."""
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder, *tiny_files("lstm"))
    write_bundle(folder, *tiny_cloze_files(characters=LETTERS))
    with AppClient(create_app(Settings(models_dir=folder))) as running:
        yield running


def infill(client: AppClient, **body: Any) -> Any:
    answer = client.ask("/infill", **{**ASKED, **body})
    (result,) = answer["results"]
    return answer, result


def total(fill: Any) -> float:
    return float(fill["logprob"] + fill["suffix_logprob"])


def test_each_alone_fills_the_blank(client: AppClient) -> None:
    answer, result = infill(client, model="tiny-cloze")
    assert (answer["model"], answer["rescore"]) == ("tiny-cloze", None)
    assert {fill["suffix_logprob"] for fill in result["fills"]} == {None}
    assert {len(fill["text"]) for fill in result["fills"]} == {3}
    _, left = infill(client, model="tiny-lstm")
    assert {fill["text"] for fill in left["fills"]}.isdisjoint(
        fill["text"] for fill in result["fills"]
    )


def test_the_language_model_decides_on_the_proposals_and_its_own(client: AppClient) -> None:
    answer, both = infill(
        client, model="tiny-cloze", rescore="tiny-lstm", num_proposals=8, num_fills=16
    )
    assert (answer["model"], answer["rescore"]) == ("tiny-cloze", "tiny-lstm")
    _, proposed = infill(client, model="tiny-cloze", num_proposals=8, num_fills=8)
    _, alone = infill(client, model="tiny-lstm", num_proposals=8, num_fills=16)
    texts = {fill["text"] for fill in both["fills"]}
    assert texts == {fill["text"] for x in (proposed, alone) for fill in x["fills"]}
    assert both["compared"] == len(texts)
    listed = {**ASKED, "candidates": sorted(texts), "num_fills": 16}
    del listed["length"], listed["seed"]
    (scored,) = client.ask("/infill", model="tiny-lstm", **listed)["results"]
    assert both["fills"] == scored["fills"]
    assert total(both["fills"][0]) >= total(alone["fills"][0])
    assert both["found_mass"] >= alone["found_mass"]


def test_several_blanks_are_decided_together(client: AppClient) -> None:
    text = {"prefix": None, "suffix": None, "text": "the ___bb___ sat", "length": 2}
    _, both = infill(client, model="tiny-cloze", rescore="tiny-lstm", num_proposals=8, **text)
    _, alone = infill(client, model="tiny-lstm", num_proposals=8, **text)
    assert {len(x) for fill in both["fills"] for x in fill["texts"]} == {2}
    assert total(both["fills"][0]) >= total(alone["fills"][0])


def test_more_proposals_than_a_beam_has_are_only_the_deciders(client: AppClient) -> None:
    _, both = infill(client, model="tiny-cloze", rescore="tiny-lstm", num_proposals=64)
    assert both["compared"] > 32
    response = client.post("/infill", json={**ASKED, "model": "tiny-cloze", "num_proposals": 64})
    assert response.status_code == 422
    assert [x["pointer"] for x in response.json()["errors"]] == ["/num_proposals"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"model": "tiny-cloze", "rescore": "tiny-cloze"}, "/rescore"),
        ({"model": "tiny-lstm", "rescore": "tiny-lstm"}, "/model"),
        ({"model": "tiny-cloze", "rescore": "tiny-lstm", "length": 9}, "/length"),
    ],
)
def test_who_cannot_propose_or_decide_is_named(
    client: AppClient, body: dict[str, Any], pointer: str
) -> None:
    response = client.post("/infill", json={**ASKED, **body})
    assert response.status_code == 422
    assert [x["pointer"] for x in response.json()["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/translate", {"source": "a"}),
        ("/score", {"text": "a", "source": "b"}),
        ("/generate", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a"}),
    ],
)
def test_a_model_that_fills_blanks_does_nothing_else(
    client: AppClient, path: str, body: dict[str, Any]
) -> None:
    response = client.post(path, json={"model": "tiny-cloze", **body})
    assert response.status_code == 422
    document = response.json()
    pointers = [x["pointer"] for x in document.get("errors", ())]
    assert pointers == ["/model"] or document["error"]["param"] == "model"
    assert "; it answers /infill" in response.text
