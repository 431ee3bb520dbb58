"""An n-gram's run: every command works on it, or says why not."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.bundle.store import read_language_model
from tests.training.helpers import (
    FABLE,
    Main,
    tiny_document,
    tiny_ngram_document,
    write_toml,
)
from training.config import NGramConfig
from training.data import corpus as corpora
from training.evaluation import ngram
from training.loop.language_model import open_best
from training.loop.ngram import fit_ngram

MAX_ORDER = 4


def configured(folder: Path, text: str = FABLE, **model: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(text)
    document = tiny_ngram_document(model=model, baselines={"max_order": MAX_ORDER})
    return write_toml(folder / "tiny.toml", document)


@pytest.fixture
def run(tmp_path: Path, call: Main) -> Path:
    """The folder of a 3-gram's run."""
    assert call("train", configured(tmp_path), "--run", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def losses(run: Path) -> dict[str, float]:
    measurements = json.loads((run / "metrics.json").read_text())["measurements"]
    return {x["name"]: x["loss"] for x in measurements}


def counted(stdout: str) -> int:
    found = re.search(r"^([\d,]+) n-grams of 2 to \d+ tokens in [\d.]+ s$", stdout, re.MULTILINE)
    assert found is not None
    return int(found[1].replace(",", ""))


def assert_refused(answer: tuple[int, str, str], *parts: str) -> None:
    status, _, stderr = answer
    assert status == 1
    assert "Traceback" not in stderr
    (line,) = stderr.splitlines()
    assert all(part in line for part in parts), line


def test_training_counts_and_measures_the_ngram_beside_the_floors(
    tmp_path: Path, call: Main
) -> None:
    status, stdout, _ = call("train", configured(tmp_path), "--run", tmp_path / "run")
    assert status == 0
    assert "\nvalid: loss " in stdout
    assert counted(stdout) > 500
    found = losses(tmp_path / "run")
    assert len(found) == 1 + MAX_ORDER
    # The tables are in double precision, the probabilities in single.
    assert found["tiny-ngram (PyTorch)"] == pytest.approx(found["kneser-ney 3-gram"], abs=1e-6)
    files = {x.name for x in (tmp_path / "run").iterdir()}
    assert files == {"best.safetensors", "config.toml", "corpus", "metrics.json"}


def test_a_run_gives_the_model_of_its_training_text(run: Path) -> None:
    corpus = corpora.load(run / "corpus")
    expected = ngram.fit(corpus.train.ids, corpus.train.starts, len(corpus.vocab), 3)[-1]
    config, model, record = open_best(run)
    assert (config.kind, record["step"], record["vocab"]) == (
        "ngram",
        0,
        list(corpus.vocab.tokens),
    )
    ids = np.asarray(corpus.test.ids, np.int64)
    logprobs, _ = model(torch.from_numpy(ids[None, :-1]), model.initial_states(1))
    found = logprobs[0].gather(1, torch.from_numpy(ids[1:, None]))[:, 0]
    np.testing.assert_allclose(found, expected.logprobs(ids), atol=1e-6)


def test_the_same_text_and_options_give_the_same_bytes(
    run: Path, tmp_path: Path, call: Main
) -> None:
    call("train", tmp_path / "tiny.toml", "--run", tmp_path / "again")
    names = ("best.safetensors", "metrics.json")
    assert all((run / x).read_bytes() == (tmp_path / "again" / x).read_bytes() for x in names)


def test_a_pruned_run_has_fewer_ngrams(run: Path, tmp_path: Path, call: Main) -> None:
    options: list[Mapping[str, Any]] = [{"max_ngrams": 321}, {"prune": 1e-3}, {"prune": 0.1}]
    found = []
    for i, each in enumerate(options):
        config = configured(tmp_path / str(i), **each)
        _, stdout, _ = call("train", config, "--run", tmp_path / str(i) / "run")
        found.append(counted(stdout))
        pruned = losses(tmp_path / str(i) / "run")["tiny-ngram (PyTorch)"]
        assert pruned != losses(run)["tiny-ngram (PyTorch)"]
    assert found[0] == 321
    assert found[1] > found[2]


def test_the_model_is_fitted_on_the_training_split_alone(run: Path) -> None:
    corpus = corpora.load(run / "corpus")
    options = NGramConfig(order=5, max_ngrams=200)
    model = fit_ngram(options, corpus.train, len(corpus.vocab))
    assert (model.order, model.ngrams) == (5, 200)
    own, held_out = (
        float(model.logprobs(np.asarray(x.ids)).mean()) for x in (corpus.train, corpus.test)
    )
    assert own > held_out


def test_without_a_test_split_evaluate_scores_the_text_that_training_reported(
    tmp_path: Path, call: Main
) -> None:
    path = configured(tmp_path, FABLE * 16)
    text = path.read_text()
    path.write_text(re.sub(r"(?m)^test_fraction = .*$", "test_fraction = 0.0", text))
    run = tmp_path / "run"
    assert call("train", path, "--run", run)[0] == 0
    corpus = corpora.load(run / "corpus")
    assert corpus.held_out.chars < corpus.valid.chars
    reported = f"{losses(run)['tiny-ngram (PyTorch)']:.4f}"
    assert reported in call("evaluate", run)[1]
    assert reported not in call("evaluate", run, "--split", "valid")[1]


def test_evaluate_and_baselines_work(run: Path, tmp_path: Path, call: Main) -> None:
    status, stdout, _ = call("evaluate", run)
    assert status == 0
    assert f"{losses(run)['tiny-ngram (PyTorch)']:.4f}" in stdout
    assert call("evaluate", run, "--split", "valid")[0] == 0
    status, stdout, _ = call("baselines", tmp_path / "tiny.toml", "--run", tmp_path / "floors")
    assert status == 0
    assert f"{losses(run)['kneser-ney 3-gram']:.4f}" in stdout


def test_samples_continue_the_prompt_and_follow_from_the_seed(run: Path, call: Main) -> None:
    arguments = ("sample", run, "--prompt", "the fox", "--max-tokens", 40, "--n", 2)
    status, stdout, _ = call(*arguments)
    assert status == 0
    assert stdout.count("the fox") >= 2
    assert call(*arguments)[1] == stdout
    assert call(*arguments, "--seed", 7)[1] != stdout


def test_a_run_is_not_overwritten_and_not_resumed(run: Path, tmp_path: Path, call: Main) -> None:
    before = (run / "best.safetensors").read_bytes()
    config = tmp_path / "tiny.toml"
    again = call("train", config, "--run", run)
    assert_refused(again, "holds a run; name another folder with --run")
    for arguments in ((config, "--run", run), (run,)):
        answer = call("train", *arguments, "--resume")
        assert_refused(answer, "an n-gram is counted from the beginning", "--run")
    assert (run / "best.safetensors").read_bytes() == before


def test_an_ngram_starts_from_nothing_and_nothing_starts_from_it(
    run: Path, tmp_path: Path, call: Main
) -> None:
    again = call("train", tmp_path / "tiny.toml", "--run", tmp_path / "b", "--init-from", run)
    assert_refused(again, "an n-gram is counted from the beginning")
    config = write_toml(tmp_path / "lstm.toml", tiny_document())
    lstm = call("train", config, "--run", tmp_path / "c", "--init-from", run)
    assert_refused(lstm, "training.init_from: model.cell is ngram in tiny-ngram and lstm here")
    assert not (tmp_path / "b/best.safetensors").exists()


def test_an_ngram_needs_no_device(tmp_path: Path, call: Main) -> None:
    answer = call("train", configured(tmp_path), "--run", tmp_path / "run", "--device", "cpu")
    assert_refused(answer, "it is counted, not trained: it has no [training]")


def test_a_networks_run_is_not_resumed_over_an_ngrams(
    run: Path, tmp_path: Path, call: Main
) -> None:
    config = write_toml(tmp_path / "lstm.toml", tiny_document())
    before = (run / "best.safetensors").read_bytes()
    assert_refused(call("train", config, "--run", run, "--resume"), "there is no checkpoint")
    assert (run / "best.safetensors").read_bytes() == before
    assert "ngram" in (run / "config.toml").read_text()


def test_a_run_becomes_a_bundle_of_one_part(run: Path, tmp_path: Path, call: Main) -> None:
    status, stdout, stderr = call("export", run, "--models", tmp_path / "models")
    assert status == 0, stderr
    assert f"{losses(run)['tiny-ngram (PyTorch)']:.4f}" in stdout
    manifest = read_language_model(tmp_path / "models/tiny-ngram").manifest
    assert (manifest.model.cell, manifest.model.order) == ("ngram", 3)
    assert [part.weight for part in manifest.parts] == [1.0]
    assert (manifest.training.steps, manifest.training.curve, manifest.adapt) == (0, None, None)
    assert manifest.training.config["model"]["order"] == 3
    config = configured(tmp_path)
    again = call(
        "train", config, "--run", tmp_path / "b", "--init-from", tmp_path / "models/tiny-ngram"
    )
    assert_refused(again, "training.init_from: tiny-ngram: an n-gram has no weights to start from")


def test_two_networks_of_the_same_text_become_one_bundle(tmp_path: Path, call: Main) -> None:
    (tmp_path / "text.txt").write_text(FABLE)
    for seed in (1, 2):
        config = write_toml(tmp_path / "tiny.toml", tiny_document(training={"seed": seed}))
        assert call("train", config, "--run", tmp_path / str(seed))[0] == 0
    status, stdout, stderr = call(
        "export", tmp_path / "1", tmp_path / "2", "--models", tmp_path / "models"
    )
    assert status == 0, stderr
    manifest = read_language_model(tmp_path / "models/tiny").manifest
    assert [part.model.cell for part in manifest.parts] == ["lstm", "lstm"]
    shown = [x for x in manifest.metrics.measurements if x.kind != "baseline"]
    assert len(shown) >= 3
    assert all(f"{x.loss:.4f}" in stdout for x in shown)
