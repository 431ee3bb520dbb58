"""From a labeler's run to its bundle: what is written, and when nothing is."""

import json
import math
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from service.bundle.labeler import LabelerBundle, LabelerMeasurement, LabelMetric
from service.bundle.store import read_bundle
from service.bundle.text import BOS_ID, EOS_ID
from service.runtime.labeler import OnnxLabelerSession
from service.runtime.runs import pad_sources
from tests.training.labelled import SORTS, tiny_labeler_trainer, tiny_labelled
from training.data.labelled import LabelledCorpus
from training.errors import ExportError
from training.evaluation.labeler import judge_network, judge_split, label_metrics, network_reader
from training.evaluation.labeler_report import measure_splits
from training.evaluation.linear_chain import chain_of, served_chain
from training.export.gate import MAX_QUANTIZATION_LOSS
from training.export.labeler import EXAMPLES, export, gate
from training.export.temperature import fit_temperature, tempered
from training.loop.labeler import load_best
from training.networks.labeler import Labeler

EXPORTED = ("one", "attention", "several forward", "chain", "masked")
CPU = torch.device("cpu")
TRAINING = {"steps": 30, "eval_every": 30, "checkpoint_every": 30, "learning_rate": 0.03}


def corpus_of(sort: str) -> LabelledCorpus:
    _, labels, label, _ = SORTS[sort]
    return tiny_labelled(labels, label)


@cache
def _trained(folder: Path, sort: str) -> Path:
    """A finished run."""
    run = folder / sort.replace(" ", "-")
    tiny_labeler_trainer(run, sort, training=TRAINING).run()
    _, model, *_ = load_best(run)
    corpus = corpus_of(sort)
    found = measure_splits(model, corpus, corpus.held_out, CPU)
    (run / "metrics.json").write_text(json.dumps({"labels": [x.model_dump() for x in found]}))
    return run


@cache
def _exported(folder: Path, sort: str) -> LabelerBundle:
    run = _trained(folder, sort)
    found = read_bundle(export(run, corpus_of(sort), folder / "models", name=run.name))
    assert isinstance(found, LabelerBundle)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labelers")


@pytest.fixture(params=EXPORTED)
def sort(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def run_of(folder: Path, sort: str) -> tuple[Labeler, LabelledCorpus]:
    _, model, *_ = load_best(_trained(folder, sort))
    return model, corpus_of(sort)


def test_the_service_gives_the_numbers_of_the_run_at_the_bundles_temperature(
    folder: Path, sort: str
) -> None:
    bundle = _exported(folder, sort)
    model, corpus = run_of(folder, sort)
    tokens = [*corpus.valid.tokens, *corpus.train.tokens][:12]
    session = OnnxLabelerSession(bundle, "fp32")
    end = [] if session.reads_forward else [EOS_ID]
    for ids in tokens:
        row = np.array([BOS_ID, *ids.tolist(), *end])
        with torch.no_grad():
            logits = model(torch.from_numpy(row)[None], torch.tensor([len(row)]))
        logits = logits / bundle.manifest.temperature
        wanted = (functional.logsigmoid if corpus.labels.several else _log_softmax)(logits)
        padded = pad_sources([row]) if end else row[None]
        found, _ = session.label(padded, np.array([len(row)], np.int32), session.initial_states(1))
        own = found[0, : len(row)] if session.labels_places else found[0]
        possible = wanted[0].numpy() > -1000
        np.testing.assert_allclose(own[possible], wanted[0].numpy()[possible], atol=2e-5)


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, dim=-1)


def test_the_manifest_says_what_the_model_is_and_what_it_is_worth(folder: Path, sort: str) -> None:
    manifest = _exported(folder, sort).manifest
    model, corpus = run_of(folder, sort)
    assert manifest.labels == corpus.labels
    assert (manifest.model.direction, manifest.model.pooling) == (
        model.head.direction,
        model.head.pooling,
    )
    assert [state.name for state in manifest.states] == model.state_names
    (metrics,) = manifest.metrics
    names = [x.name for x in metrics.measurements if x.kind == "model"]
    assert names == ["PyTorch", "fp32", "int8"]
    assert any(x.kind == "baseline" for x in metrics.measurements)
    assert manifest.training.curve is not None
    assert manifest.training.curve.unit == "nats a label"
    assert {vector.precision for vector in manifest.golden} == {"fp32", manifest.precision}
    assert manifest.data.train_texts == len(corpus.train)


def test_a_temperature_lowers_the_loss_and_keeps_what_is_found(folder: Path, sort: str) -> None:
    manifest = _exported(folder, sort).manifest
    _, corpus = run_of(folder, sort)
    before, after = (
        next(x for x in manifest.metrics[0].measurements if x.name == name)
        for name in ("PyTorch", "fp32")
    )
    assert manifest.temperature != 1.0
    # The set is small: the prior may cost a little.
    assert after.values["loss"] <= before.values["loss"] + 1e-4
    if not corpus.labels.several:
        assert after.values["accuracy"] == before.values["accuracy"]


def test_a_chains_numbers_are_divided_by_the_temperature(folder: Path) -> None:
    manifest = _exported(folder, "chain").manifest
    model, corpus = run_of(folder, "chain")
    assert manifest.chain is not None
    assert model.chain is not None
    assert served_chain(manifest.chain).first == pytest.approx(
        chain_of(model.chain).first / manifest.temperature, abs=1e-7
    )
    other = tempered(model, manifest.temperature)
    found = label_metrics(judge_network(other, corpus.valid, corpus.labels, CPU), corpus.labels)
    fp32 = next(x for x in manifest.metrics[0].measurements if x.name == "fp32")
    assert fp32.values["loss"] == pytest.approx(found["loss"], abs=1e-5)


def test_examples_are_the_first_by_sha256(folder: Path, sort: str) -> None:
    manifest = _exported(folder, sort).manifest
    model, corpus = run_of(folder, sort)
    split = corpus.valid
    assert len(manifest.examples) == min(EXAMPLES, len(split))
    judged = judge_split(
        network_reader(model, corpus.labels, CPU),
        split,
        corpus.labels,
        forward=model.head.direction == "forward",
        chain=None if model.chain is None else chain_of(model.chain),
    )
    for example in manifest.examples:
        i = list(split.texts).index(example.text)
        names = corpus.labels.names
        assert example.labels == [names[j] for j in split.labels[i]]
        assert example.found == [names[j] for j in judged[i].found]


# --- the temperature ----------------------------------------------------------------------------


def test_the_temperature_is_where_the_loss_is_smallest(folder: Path, sort: str) -> None:
    model, corpus = run_of(folder, sort)
    labels = corpus.labels

    def loss(temperature: float) -> float:
        judged = judge_network(tempered(model, temperature), corpus.valid, labels, CPU)
        values = label_metrics(judged, labels)
        decisions = sum(x.decisions for x in judged)
        return values["loss"] + (math.log(temperature) / 0.5) ** 2 / 2 / decisions

    best = fit_temperature(model, corpus.valid, labels)
    assert loss(best) <= min(loss(best * 1.02), loss(best / 1.02)) + 1e-9


def test_a_network_that_is_too_sure_is_made_less_sure(folder: Path) -> None:
    model, corpus = run_of(folder, "one")
    right = fit_temperature(model, corpus.valid, corpus.labels)
    surer = tempered(model, 0.5)
    # Twice as much, but for the prior.
    assert 1.5 * right < fit_temperature(surer, corpus.valid, corpus.labels) < 2 * right


# --- refusals -----------------------------------------------------------------------------------


@pytest.fixture
def spoilt(folder: Path, tmp_path: Path) -> Path:
    """A copy of a run."""
    return Path(shutil.copytree(_trained(folder, "one"), tmp_path / "run"))


def test_other_texts_than_those_of_the_training_are_refused(spoilt: Path, tmp_path: Path) -> None:
    other = replace(corpus_of("one"), sha256="1" * 64)
    with pytest.raises(ExportError, match="not those the weights were trained on"):
        export(spoilt, other, tmp_path / "models")


def test_a_run_that_has_not_finished_is_refused_and_nothing_is_written(
    spoilt: Path, tmp_path: Path
) -> None:
    (spoilt / "metrics.json").unlink()
    with pytest.raises(ExportError, match=r"metrics\.json"):
        export(spoilt, corpus_of("one"), tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("cost", "precision"),
    [(-1.0, "int8"), (0.99, "int8"), (1.01, "fp32"), (math.nan, "fp32")],
)
def test_int8_is_served_if_it_costs_at_most_the_limit(cost: float, precision: str) -> None:
    def of(bits: float) -> dict[str, LabelerMeasurement]:
        values: dict[LabelMetric, float] = {"loss": bits * math.log(2)}
        found = LabelerMeasurement(name="x", kind="model", values={"loss": 1.0})
        return {"test": found.model_copy(update={"values": values})}  # NaN, too

    losses = {"fp32": of(1.0), "int8": of(1.0 + cost * MAX_QUANTIZATION_LOSS)}
    assert gate(losses) == precision  # type: ignore[arg-type]
    assert gate({"fp32": of(1.0)}) == "fp32"
