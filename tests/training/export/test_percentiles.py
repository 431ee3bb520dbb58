"""The table that an export writes is `/score`'s own numbers on the held-out texts."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.bundle.store import read_language_model
from service.bundle.text import SPECIAL_TOKENS
from service.settings import Settings
from tests.fakes import AppClient
from tests.training.helpers import FABLE, tiny_document, write_toml
from training.__main__ import main
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.export.language_model import export

LINES, GRAMS = "lines", "grams"
WORDS = sorted(set(FABLE.split()))


def made_lines() -> str:
    """Different lines of one to eight words."""
    rng = random.Random(3)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(800)]
    return "\n".join(lines) + "\n"


def export_one(folder: Path, name: str, text: str, document: dict[str, Any]) -> None:
    """Train in `folder/<name>`, and export to `folder/models`."""
    (folder / f"{name}.txt").write_text(text)
    data = {"files": [f"{name}.txt"], "valid_fraction": 0.1, "test_fraction": 0.3}
    changes = {"name": name, "data": tiny_document()["data"] | document.get("data", {}) | data}
    path = write_toml(folder / f"{name}.toml", document | changes)
    run = folder / name
    assert main(["train", str(path), "--run", str(run)]) == 0
    export(run, corpora.load(run / "corpus"), folder / "models")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture that learned lines, and an n-gram of running text."""
    folder = tmp_path_factory.mktemp("percentiles")
    network = tiny_document(training={"steps": 10, "eval_every": 10})
    mixed = network | {"data": {"documents": "line"}, "ngram": {"order": 3}}
    export_one(folder, LINES, made_lines(), mixed)
    export_one(folder, GRAMS, 4 * FABLE, {"model": {"cell": "ngram", "order": 3}})
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[AppClient]:
    options = Settings(models_dir=folder / "models", precision="fp32")
    with AppClient(create_app(options)) as running:
        yield running


def texts_of(corpus: Corpus) -> list[str]:
    split, tokens = corpus.held_out, corpus.vocab.tokens
    bounds = zip(split.starts[:-1], split.starts[1:], strict=True)
    return [
        "".join(tokens[i] for i in split.ids[a:b] if i >= len(SPECIAL_TOKENS)) for a, b in bounds
    ]


@pytest.mark.parametrize("eos", [False, True])
def test_a_held_out_line_stands_where_counting_puts_it(
    folder: Path, client: AppClient, eos: bool
) -> None:
    texts = texts_of(corpora.load(folder / LINES / "corpus"))
    manifest = read_language_model(folder / "models" / LINES).manifest
    assert manifest.percentiles is not None
    assert (manifest.percentiles.split, manifest.percentiles.texts) == ("test", "documents")
    answer = client.ask("/score", model=LINES, text=texts, eos=eos, percentile=True)
    assert answer["precision"] == "fp32"
    results = answer["results"]
    for found in manifest.percentiles.lengths:
        same = [x for x in results if found.least_chars <= x["chars"] <= found.most_chars]
        assert len(same) == found.texts
        bits = sorted(x["bits_per_char"] for x in same)
        listed = found.bits_per_char_with_eos if eos else found.bits_per_char
        assert [bits[rank - 1] for rank in found.ranks] == pytest.approx(listed, abs=2e-4)
        for x in same:
            below = sum(y <= x["bits_per_char"] - 2e-3 for y in bits)
            share = 100.0 * below / found.texts
            assert x["percentile_low"] <= share <= x["percentile_high"]
            assert x["percentile_texts"] == found.texts
    assert sum(x.texts for x in manifest.percentiles.lengths) == len(texts)


def test_running_text_is_scored_in_stretches(folder: Path, client: AppClient) -> None:
    manifest = read_language_model(folder / "models" / GRAMS).manifest
    assert manifest.percentiles is not None
    assert manifest.percentiles.texts == "stretches"
    calm, wild = "the fox jumped", "zgz hht,, qxx!"
    found = client.ask("/score", model=GRAMS, text=[calm, wild], percentile=True)["results"]
    assert found[0]["percentile"] < 95.0
    assert found[1]["percentile"] == 100.0
    assert found[1]["percentile_texts"] == manifest.percentiles.lengths[1].texts
