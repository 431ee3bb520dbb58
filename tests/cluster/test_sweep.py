"""Ctrl-C ends a sweep in order, and the same command continues it to the last digit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.training.helpers import FABLE, tiny_document, write_toml

ROOT = Path(__file__).parents[2]
# Long enough to be interrupted, and still a matter of seconds.
SIZES = {"hidden_size": 64, "embedding_dim": 16}
TRAINING = {"steps": 400, "eval_every": 100, "checkpoint_every": 10, "log_every": 50}
CHANGES = "training.learning_rate=0.001"


def training(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "training", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_sweep_that_was_interrupted_continues_to_the_bit(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(FABLE)
    config = write_toml(tmp_path / "tiny.toml", tiny_document(model=SIZES, training=TRAINING))
    words = ["sweep", str(config), "--set", f"{CHANGES},0.02", "--jobs", "2"]
    words += ["--runs", str(tmp_path / "runs")]
    interrupted = training(*words)
    deadline = time.monotonic() + 120
    while len([*tmp_path.glob("runs/*/last.safetensors")]) < 2 and interrupted.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    interrupted.send_signal(signal.SIGINT)
    stdout, _ = interrupted.communicate(timeout=120)
    assert (interrupted.returncode, stdout.splitlines()[-1]) == (
        128 + signal.SIGINT,
        "stopped by SIGINT; the same command continues, and skips the finished runs",
    )
    assert not [*tmp_path.glob("runs/*/outcome.json")]
    by_hand = tmp_path / "by-hand"
    for process in (
        training(*words),
        training("train", str(config), "--set", CHANGES, "--run", str(by_hand)),
    ):
        process.communicate(timeout=120)
        assert process.returncode == 0
    own = tmp_path / "runs/learning_rate=0.001"
    assert "--resume" in (own / "train.log").read_text()
    assert (own / "best.safetensors").read_bytes() == (by_hand / "best.safetensors").read_bytes()
