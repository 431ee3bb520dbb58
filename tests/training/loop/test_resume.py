"""A run that was broken off goes on as if it had not been: the same losses and weights, bit by bit.

The first tests stop in this process between two steps; the others kill real processes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import FABLE, tiny_config, tiny_document, tiny_trainer, write_toml
from training.__main__ import main
from training.loop import checkpoint
from training.loop.changes import forbidden_change
from training.loop.checkpoint import BEST, LAST
from training.loop.run_log import read_log
from training.loop.task import TrainingError
from training.loop.trainer import Trainer
from training.networks.language_model import LanguageModel

ROOT = Path(__file__).parents[3]
# All that holds state: moving average, dropout and weight-drop generators, restarts, replicas.
MODEL = {
    "num_layers": 2,
    "dropout_input": 0.2,
    "dropout_between": 0.2,
    "dropout_output": 0.2,
    "weight_drop": 0.2,
}
STEPS = 200
TRAINING = {
    "steps": STEPS,
    "bptt_len": 16,
    "learning_rate": 0.01,
    "warmup_steps": 50,
    "restart_probability": 0.3,
    "ema_decay": 0.95,
    "replicas": 2,
    "eval_every": 80,
    "checkpoint_every": 40,
    "log_every": 3,
}
TIMINGS = ("seconds", "chars_per_s")
BROKEN_OFF = ("terminated", "killed")

# --- between two steps --------------------------------------------------------------------------


def losses(run: Trainer[LanguageModel], count: int) -> list[float]:
    return [run.train_step()[0] for _ in range(count)]


def assert_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("documents", ["file", "line"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_resumed_run_has_the_same_losses_and_weights(
    tmp_path: Path, cell: str, documents: str, replicas: int
) -> None:
    options: dict[str, Mapping[str, Any]] = {
        "data": {"documents": documents},
        "model": {**MODEL, "cell": cell},
        # Of one cell, since it takes time: what is learned from besides is made anew.
        "training": {**TRAINING, "replicas": replicas, "ngram_targets": 0.4 * (cell == "gru")},
    }
    whole = tiny_trainer(tmp_path / "whole", **options)
    wanted = losses(whole, 16)
    first = tiny_trainer(tmp_path / "parts", **options)
    found = losses(first, 7)
    first.save()
    second = tiny_trainer(tmp_path / "parts", **options)
    losses(second, 2)  # whatever it did before is forgotten
    second.resume()
    found += losses(second, 9)
    assert found == wanted
    assert_same(whole.model.state_dict(), second.model.state_dict())
    assert whole.average is not None
    assert second.average is not None
    assert_same(whole.average.state_dict(), second.average.state_dict())


def test_a_checkpoint_of_a_resumed_run_is_the_checkpoint_it_resumed_from(tmp_path: Path) -> None:
    options: dict[str, Mapping[str, Any]] = {"model": MODEL, "training": TRAINING}
    first = tiny_trainer(tmp_path, **options)
    losses(first, 5)
    first.save()
    before = checkpoint.read(tmp_path / LAST)
    second = tiny_trainer(tmp_path, **options)
    second.resume()
    second.save()
    after = checkpoint.read(tmp_path / LAST)
    assert after[1] == before[1]
    assert_same(after[0], before[0])


# --- refusals -----------------------------------------------------------------------------------


def saved(folder: Path, **sections: Mapping[str, Any]) -> None:
    run = tiny_trainer(folder, **sections)
    losses(run, 1)
    run.save()


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("training", {"bptt_len": 20}),
        ("training", {"seed": 2}),
        ("model", {"hidden_size": 16}),
        ("model", {"dropout_output": 0.5}),
        ("data", {"min_count": 2}),
    ],
)
def test_a_changed_configuration_is_refused(
    tmp_path: Path, section: str, change: dict[str, Any]
) -> None:
    saved(tmp_path)
    changed = tiny_trainer(tmp_path, **{section: change})
    option, value = next(iter(change.items()))
    with pytest.raises(TrainingError, match=f"{section}.{option}: it was ") as caught:
        changed.resume()
    assert f"the configuration has {json.dumps(value)};" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("training", {"steps": 20}),
        ("training", {"learning_rate": 0.02, "final_learning_rate_ratio": 0.5}),
        ("training", {"eval_every": 3, "patience": 7, "checkpoint_every": 5, "log_every": 1}),
        ("training", {"sample_prompt": "a", "sample_chars": 3}),
        ("data", {"title": "another", "source": "elsewhere", "license": "mine"}),
        ("baselines", {"max_order": 2}),
    ],
)
def test_words_schedule_and_what_is_looked_at_may_change(
    tmp_path: Path, section: str, change: dict[str, Any]
) -> None:
    saved(tmp_path)
    changed = tiny_trainer(tmp_path, **{section: change})
    changed.resume()
    assert changed.step == 1


def test_files_may_be_called_otherwise_but_not_change_their_split() -> None:
    one = tiny_config(data={"valid_files": ["b.txt"], "test_files": ["c.txt"]}).model_dump()
    renamed = tiny_config(
        data={"files": ["moved.txt"], "valid_files": ["b.txt"], "test_files": ["c.txt"]}
    ).model_dump()
    assert forbidden_change(one, renamed) is None
    for name in ("train_files", "valid_files", "test_files"):
        moved = tiny_config(
            data={"valid_files": ["b.txt"], "test_files": ["c.txt"], name: ["d.txt"]}
        )
        found = forbidden_change(one, moved.model_dump())
        assert found is not None
        assert found.startswith(f"data.{name}: it was ")


def test_an_option_that_is_younger_than_the_run_had_its_default(tmp_path: Path) -> None:
    saved(tmp_path)
    tensors, record = checkpoint.read(tmp_path / LAST)
    del record["config"]["model"]["dropout_output"]
    checkpoint.save(tmp_path / LAST, tensors, record)
    tiny_trainer(tmp_path).resume()
    with pytest.raises(TrainingError, match=r"dropout_output: it was 0\.0"):
        tiny_trainer(tmp_path, model={"dropout_output": 0.5}).resume()


@pytest.mark.parametrize("text", [FABLE + "more", FABLE.replace("fox", "cat"), "Z" + FABLE])
def test_a_changed_text_is_refused(tmp_path: Path, text: str) -> None:
    saved(tmp_path)
    changed = tiny_trainer(tmp_path, text)
    with pytest.raises(TrainingError, match="the text has changed"):
        changed.resume()


def test_another_number_of_threads_is_accepted(tmp_path: Path) -> None:
    saved(tmp_path, training={"threads": 1})
    other = tiny_trainer(tmp_path, training={"threads": 2})
    other.resume()
    assert other.step == 1


def test_there_is_nothing_to_resume_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(checkpoint.CheckpointError, match="there is no checkpoint"):
        tiny_trainer(tmp_path).resume()


# --- real processes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What a finished run left, and how the process that was broken off ended."""

    folder: Path
    exit_code: int  # of the process that a signal hit
    stdout: str  # of that process
    steps_logged: int  # when it had ended


def start(folder: Path, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "training", "train", "config.toml", "--run", str(folder)]
    return subprocess.Popen(
        [*command, *flags],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_step(folder: Path) -> int:
    return max((line["step"] for line in read_log(folder / "log.jsonl")), default=0)


def break_off(folder: Path, signals: Mapping[str, signal.Signals]) -> dict[str, Run]:
    """Runs that get their signal after step 90, between two checkpoints and two evaluations."""
    processes = {name: start(folder / name) for name in signals}
    waiting = set(signals)
    deadline = time.monotonic() + 60
    while waiting and time.monotonic() < deadline:
        for name in list(waiting):
            if last_step(folder / name) >= 90 or processes[name].poll() is not None:
                processes[name].send_signal(signals[name])
                waiting.remove(name)
        time.sleep(0.005)
    runs = {}
    for name, process in processes.items():
        stdout, _ = process.communicate(timeout=60)
        runs[name] = Run(folder / name, process.returncode, stdout, last_step(folder / name))
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same run three times: in one piece, after SIGTERM, after SIGKILL."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "text.txt").write_text(FABLE)
    config = write_toml(folder / "config.toml", tiny_document(model=MODEL, training=TRAINING))
    signals = {"terminated": signal.SIGTERM, "killed": signal.SIGKILL}
    found = break_off(folder, signals)
    resumed = start(folder / "terminated", "--resume")
    # In this process what need not be in one of its own: importing torch takes longer than both.
    assert main(["train", str(config), "--run", str(folder / "whole")]) == 0
    assert main(["train", str(config), "--run", str(folder / "killed"), "--resume"]) == 0
    _, stderr = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, stderr
    return {**found, "whole": Run(folder / "whole", 0, "", STEPS)}


def log_without_timings(run: Run) -> list[dict[str, Any]]:
    lines = read_log(run.folder / "log.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def test_sigterm_ends_a_run_with_a_message_and_its_exit_code(runs: dict[str, Run]) -> None:
    run = runs["terminated"]
    assert run.exit_code == 128 + signal.SIGTERM
    message = f"stopped by SIGTERM; to continue: python -m training train {run.folder} --resume"
    assert run.stdout.splitlines()[-1].startswith(message)


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_the_runs_were_broken_off_in_the_middle(runs: dict[str, Run], name: str) -> None:
    assert 90 <= runs[name].steps_logged < STEPS
    assert runs["killed"].exit_code == -signal.SIGKILL


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_a_resumed_process_logs_the_same_losses_to_the_last_digit(
    runs: dict[str, Run], name: str
) -> None:
    wanted = log_without_timings(runs["whole"])
    assert wanted[-1]["step"] == STEPS
    assert log_without_timings(runs[name]) == wanted


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_a_resumed_process_ends_with_the_same_weights_bit_by_bit(
    runs: dict[str, Run], name: str
) -> None:
    for file in (BEST, LAST):
        wanted, wanted_record = checkpoint.read(runs["whole"].folder / file)
        found, record = checkpoint.read(runs[name].folder / file)
        assert_same(found, wanted)
        assert record["step"] == wanted_record["step"]


@pytest.mark.parametrize("name", BROKEN_OFF)
def test_a_resumed_process_measures_the_same(runs: dict[str, Run], name: str) -> None:
    wanted = (runs["whole"].folder / "metrics.json").read_text()
    assert (runs[name].folder / "metrics.json").read_text() == wanted
