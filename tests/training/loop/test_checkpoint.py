"""Checkpoints: safetensors and JSON, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.training.helpers import tiny_model, tiny_trainer
from training.loop import checkpoint
from training.loop.checkpoint import CheckpointError
from training.loop.language_model import load_best


def some_tensors() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.uint8)}


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    record = {"step": 3, "vocab": ["\u2028", "\x00", "\U0001f407"], "best": None, "loss": 0.1}
    checkpoint.save(tmp_path / "a.safetensors", some_tensors(), record)
    tensors, found = checkpoint.read(tmp_path / "a.safetensors")
    assert found == record
    torch.testing.assert_close(tensors, some_tensors(), rtol=0, atol=0)


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    model = tiny_model(embedding_dim=8, tie_embeddings=True)
    checkpoint.save(tmp_path / "a.safetensors", model.state_dict(), {})
    tensors, _ = checkpoint.read(tmp_path / "a.safetensors")
    assert torch.equal(tensors["output.weight"], tensors["embedding.weight"])


def test_tensors_that_are_not_contiguous_are_saved(tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).t()
    checkpoint.save(tmp_path / "a.safetensors", {"a": turned}, {})
    assert torch.equal(checkpoint.read(tmp_path / "a.safetensors")[0]["a"], turned)


def test_a_runs_folder_holds_no_pickle(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).run()
    files = sorted(x.name for x in tmp_path.iterdir() if x.is_file())
    assert files == ["best.safetensors", "curve.png", "last.safetensors", "log.jsonl", "text.txt"]
    for name in ("best.safetensors", "last.safetensors"):
        with safe_open(tmp_path / name, framework="np") as file:
            json.loads(file.metadata()["record"])


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, some_tensors(), {"step": 1})
    checkpoint.save(path, {"c": torch.ones(1)}, {"step": 2})
    assert checkpoint.read(path) == ({"c": torch.ones(1)}, {"step": 2})
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["save_file", "os.fsync"])
def test_a_failure_while_writing_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, some_tensors(), {"step": 1})

    def disk_full(*arguments: Any, **_: Any) -> None:
        if broken == "save_file":
            Path(arguments[1]).write_bytes(b"half a che")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"training.loop.checkpoint.{broken}", disk_full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"c": torch.ones(1)}, {"step": 2})
    tensors, record = checkpoint.read(path)
    assert record == {"step": 1}
    assert set(tensors) == {"a", "b"}


def test_what_keeps_safetensors_from_writing_is_an_error_of_one_line(tmp_path: Path) -> None:
    """Of a full disk, too, safetensors makes no OSError."""
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No such file"):
        checkpoint.save(tmp_path / "gone" / "x.safetensors", some_tensors(), {})


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors: there is no checkpoint"):
        checkpoint.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff" * 100, b"\x80\x04\x95pickle."])
def test_garbage_is_not_a_checkpoint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a checkpoint"):
        checkpoint.read(tmp_path / "a.safetensors")


def test_a_checkpoint_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, some_tensors(), {"step": 1})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.read(path)


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.read(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"record": "no JSON"}])
def test_a_foreign_safetensors_file_is_refused(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(some_tensors(), path, metadata=metadata)
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        checkpoint.read(path)


def test_a_folder_without_a_run_has_no_best_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: there is no checkpoint"):
        load_best(tmp_path)


def test_prefixes_come_off_again() -> None:
    tensors = {"x.y": torch.ones(1), "z": torch.zeros(1)}
    both = checkpoint.prefixed("a", tensors) | checkpoint.prefixed("ab", {"q": torch.ones(2)})
    assert checkpoint.unprefixed("a", both) == tensors


def test_the_optimizers_state_is_restored(tmp_path: Path) -> None:
    first, second = tiny_trainer(tmp_path / "a"), tiny_trainer(tmp_path / "b")
    for _ in range(3):
        first.train_step()
    tensors = checkpoint.optimizer_tensors(first.optimizer)
    checkpoint.restore_optimizer(second.optimizer, tensors)
    again = checkpoint.optimizer_tensors(second.optimizer)
    torch.testing.assert_close(again, tensors, rtol=0, atol=0)
    assert float(again["0.step"]) == 3.0
