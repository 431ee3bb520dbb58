"""Mixtures and ensembles in a bundle."""

import logging
from pathlib import Path

import pytest

from service.bundle.language_model import LanguageModelBundle
from service.bundle.store import read_language_model
from tests.training.helpers import FABLE, tiny_document, write_toml
from training.__main__ import main
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.errors import ExportError
from training.evaluation.language_model_report import in_words
from training.export.language_model import export

PARTS = {"valid_fraction": 0.25, "test_fraction": 0.25, "split_by": "position"}


def train(folder: Path, text: str = 3 * FABLE, *, seed: int = 1, ngram: bool = True) -> Path:
    """The folder of a run of a few steps."""
    folder.mkdir()
    (folder / "text.txt").write_text(text)
    document = tiny_document(
        data=PARTS,
        training={"steps": 20, "eval_every": 20, "learning_rate": 0.02, "seed": seed},
    )
    document |= {"ngram": {"order": 3}} if ngram else {}
    config = write_toml(folder / "config.toml", document)
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    return folder / "run"


def corpus_of(run: Path) -> Corpus:
    return corpora.load(run / "corpus")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("mixture") / "first")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("mixture") / "other", seed=2)


@pytest.fixture(scope="module")
def bundle(run: Path) -> LanguageModelBundle:
    return read_language_model(export(run, corpus_of(run), run / "models"))


def test_a_mixture_has_graphs_states_and_parts(bundle: LanguageModelBundle, run: Path) -> None:
    manifest = bundle.manifest
    assert [x.name for x in manifest.states] == ["h0", "c0", "ngram_nodes"]
    assert ("fp32", "sequence") in [(x.precision, x.role) for x in manifest.graphs]
    assert [x.model.cell for x in manifest.parts] == ["lstm", "ngram"]
    assert sum(x.weight for x in manifest.parts) == pytest.approx(1.0)
    assert manifest.parts[0].temperature is not None
    assert manifest.parts[1].temperature is None
    assert manifest.fit is not None
    assert manifest.fit.chars == corpus_of(run).valid.chars


def test_the_whole_is_better_than_its_parts_and_measured_beside_them(
    bundle: LanguageModelBundle,
) -> None:
    measured = bundle.manifest.metrics.measurements
    figures = {x.name: x.bits_per_char for x in measured if x.kind == "part"}
    assert {x.name for x in bundle.manifest.parts} < {*figures}
    assert measured[0].bits_per_char < min(figures.values())
    assert bundle.manifest.metrics.expected_bits_per_char is not None
    said = next(x for x in in_words(bundle.manifest, "text") if x.startswith("It is a mixture"))
    for x, name in zip(bundle.manifest.parts, ("LSTM", "3-gram"), strict=True):
        assert f"the {name} ({figures[x.name]:.2f} alone)" in said


def test_what_adapting_is_worth_is_said(bundle: LanguageModelBundle) -> None:
    manifest = bundle.manifest
    assert not any("adapt" in x for x in in_words(manifest, "text"))
    served = next(x for x in manifest.metrics.measurements if x.name == manifest.precision)
    adapting = served.model_copy(update={"kind": "adapting", "bits_per_char": 1.234})
    metrics = manifest.metrics.model_copy(
        update={"measurements": [*manifest.metrics.measurements, adapting]}
    )
    said = in_words(manifest.model_copy(update={"metrics": metrics}), "text")
    assert any("adapt to the text that it reads, it needs 1.23." in x for x in said)


def test_the_same_run_gives_the_same_mixture(
    bundle: LanguageModelBundle, run: Path, tmp_path: Path
) -> None:
    again = read_language_model(export(run, corpus_of(run), tmp_path))
    assert again.graphs == bundle.graphs


def test_runs_on_the_same_text_are_an_ensemble(run: Path, other: Path, tmp_path: Path) -> None:
    others = [(other, corpus_of(other))]
    made = read_language_model(export(run, corpus_of(run), tmp_path, ensemble=others)).manifest
    assert [x.name for x in made.states] == ["h0", "c0", "p1_h0", "p1_c0", "ngram_nodes"]
    assert [x.name for x in made.parts][:2] == ["lstm 1", "lstm 2"]


def test_runs_on_other_text_are_none(run: Path, tmp_path: Path) -> None:
    stranger = train(tmp_path / "stranger", 2 * FABLE, ngram=False)
    with pytest.raises(ExportError, match="an ensemble needs runs on the same text"):
        export(run, corpus_of(run), tmp_path, ensemble=[(stranger, corpus_of(stranger))])


def test_too_little_text_is_not_fitted_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train(tmp_path / "small", FABLE)
    with caplog.at_level(logging.WARNING):
        made = read_language_model(export(run, corpus_of(run), tmp_path)).manifest
    assert made.fit is None
    assert "too little validation text" in caplog.text
    assert [x.temperature for x in made.parts] == [1.0, None]
