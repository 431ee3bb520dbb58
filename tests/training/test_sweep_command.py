"""`python -m training sweep`: its runs are those of `train`, in a table, by number."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.helpers import FABLE, Main, tiny_document, write_toml
from training.__main__ import main

ROOT = Path(__file__).parents[2]


def configured(folder: Path, **sections: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(FABLE)
    return write_toml(folder / "tiny.toml", tiny_document(**sections))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a sweep of two runs, and of one of them by hand."""
    folder = tmp_path_factory.mktemp("sweep")
    config = str(configured(folder))
    changes = "training.learning_rate=0.001"
    run = str(folder / "by-hand")
    by_hand = subprocess.Popen(
        [sys.executable, "-m", "training", "train", config, "--set", changes, "--run", run],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    words = ["--set", f"{changes},0.02", "--jobs", "2", "--runs", str(folder / "runs")]
    assert main(["sweep", config, *words]) == 0
    assert by_hand.wait(timeout=120) == 0
    return folder


def test_runs_are_to_the_bit_those_that_are_trained_by_hand(folder: Path) -> None:
    run, own = folder / "by-hand", folder / "runs/learning_rate=0.001"
    assert (own / "best.safetensors").read_bytes() == (run / "best.safetensors").read_bytes()
    assert (own / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


def test_the_table_is_sorted_best_first_and_says_how_the_best_is_exported(
    folder: Path, call: Main
) -> None:
    words = ("--set", "training.learning_rate=0.001,0.02", "--runs", folder / "runs")
    status, stdout, _ = call("sweep", folder / "tiny.toml", *words, "--table")
    assert status == 0
    heads, first, second, best = stdout.splitlines()
    assert re.split(r"\s{2,}", heads.strip()) == [
        *("learning_rate", "valid loss", "at step", "steps", "parameters", "seconds", "state")
    ]
    assert [line.split()[1] for line in (first, second)] == ["0.02", "0.001"]
    assert first.split()[4] == "10"
    own = folder / "runs/learning_rate=0.02"
    assert best == f"the best is run 1; next: python -m training export {own}"
    document = json.loads((folder / "runs/table.json").read_text())
    losses = [run["measure"] for run in document["runs"]]
    assert losses == sorted(losses)
    assert [run["values"]["training.learning_rate"] for run in document["runs"]] == [0.02, 0.001]
    assert call("export", own, "--models", folder / "models")[0] == 0


def test_a_run_keeps_the_configuration_that_it_was_trained_with(folder: Path) -> None:
    text = (folder / "runs/learning_rate=0.001/config.toml").read_text()
    assert "learning_rate = 0.001" in text
    assert text.startswith(f"# {folder}/tiny.toml --set training.learning_rate=0.001")


def test_the_runs_are_listed_by_number_and_nothing_is_written(tmp_path: Path, call: Main) -> None:
    words = ("--set", "training.seed=1,2", "--set", "model.cell=gru", "--runs", tmp_path / "runs")
    status, stdout, _ = call("sweep", configured(tmp_path), *words, "--list")
    assert (status, stdout) == (0, "0\tseed=1\n1\tseed=2\n")
    assert not (tmp_path / "runs").exists()


def test_one_run_of_a_grid_of_ngrams_is_trained_alone(tmp_path: Path, call: Main) -> None:
    document = {**tiny_document(), "model": {"cell": "ngram"}}
    del document["training"]
    (tmp_path / "text.txt").write_text(FABLE)
    config = write_toml(tmp_path / "tiny.toml", document)
    words = ("--set", "model.order=2,3", "--runs", tmp_path / "runs", "--only", "1")
    assert call("sweep", config, *words)[0] == 0
    assert [path.parent.name for path in tmp_path.glob("runs/*/best.safetensors")] == ["order=3"]
    shown = (*words[:-2], "--table")
    _, first, second, _ = call("sweep", config, *shown)[1].splitlines()
    assert first.split()[:2] == ["1", "3"]
    assert second.split() == ["0", "2", "waiting"]


def test_a_configuration_that_is_wrong_is_refused_before_any_is_trained(
    tmp_path: Path, call: Main
) -> None:
    words = ("--set", "model.hidden_size=8,0", "--runs", tmp_path / "runs")
    status, _, stderr = call("sweep", configured(tmp_path), *words)
    assert status == 1
    assert stderr == (
        "error: --set model.hidden_size=0: model.hidden_size: Input should be greater than 0\n"
    )
    assert not (tmp_path / "runs").exists()


def test_a_run_by_hand_takes_changes_and_keeps_them_when_it_continues(
    tmp_path: Path, call: Main
) -> None:
    run = tmp_path / "run"
    config = configured(tmp_path, training={"steps": 4, "eval_every": 2})
    assert call("train", config, "--run", run, "--set", "model.cell=gru")[0] == 0
    assert call("train", run, "--resume", "--set", "training.steps=6")[0] == 0
    text = (run / "config.toml").read_text()
    assert 'cell = "gru"' in text
    assert "steps = 6" in text
