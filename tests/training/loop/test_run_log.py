"""JSON lines, TensorBoard events and the learning curve."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from tests.training.helpers import tiny_trainer
from training.loop.run_log import RunLog, read_log
from training.loop.task import Curve

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_lines(folder: Path, first: int, last: int, *, resume_step: int | None = None) -> None:
    log = RunLog(folder, resume_step=resume_step)
    for step in range(first, last + 1):
        log.add("train", step, {"loss": 1.0 / step, "bits_per_char": 2.0 / step})
    log.close()


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_every_entry_is_a_line_of_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=None)
    log.add("train", 3, {"loss": 0.1})
    log.add("valid", 3, {"loss": 0.25, "perplexity": 1.5})
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == (
        '{"kind": "train", "step": 3, "loss": 0.1}\n'
        '{"kind": "valid", "step": 3, "loss": 0.25, "perplexity": 1.5}\n'
    )


def test_a_line_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=None)
    log.add("train", 1, {"loss": 0.5})
    assert [line["loss"] for line in read_log(tmp_path / "log.jsonl")] == [0.5]
    log.close()


def test_tensorboard_has_the_same_scalars(tmp_path: Path) -> None:
    write_lines(tmp_path, 1, 3)
    steps, values = zip(*scalars(tmp_path, "train/loss"), strict=True)
    assert steps == (1, 2, 3)
    assert values == pytest.approx([1.0, 1.0 / 2, 1.0 / 3])


def test_the_learning_curve_is_a_png(tmp_path: Path) -> None:
    log = RunLog(tmp_path, resume_step=None)
    log.add("valid", 1, {"bits_per_char": 2.0})
    log.draw("a run", Curve("bits_per_char", "bits a character"))
    log.close()
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG_SIGNATURE)


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    write_lines(tmp_path, 1, 3)
    write_lines(tmp_path, 1, 1)
    assert [line["step"] for line in read_log(tmp_path / "log.jsonl")] == [1]


def test_resuming_cuts_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    write_lines(tmp_path, 1, 6)
    write_lines(tmp_path, 5, 7, resume_step=4)
    steps = [line["step"] for line in read_log(tmp_path / "log.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


def test_tensorboard_forgets_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    write_lines(tmp_path, 1, 6)
    write_lines(tmp_path, 5, 5, resume_step=4)
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5]


def test_a_last_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "st')
    assert read_log(path) == [{"kind": "train", "step": 1}]


def test_a_log_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []


def test_the_curve_of_a_resumed_run_has_all_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path, 1, 3)
    drawn: list[tuple[object, object]] = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot",
        lambda _, steps, values, *__, **___: drawn.append((steps, values)),
    )
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda _: None)
    log = RunLog(tmp_path, resume_step=2)
    log.add("train", 4, {"bits_per_char": 0.5})
    log.draw("a run", Curve("bits_per_char", "bits a character"))
    log.close()
    assert drawn == [((1, 2, 4), (2.0, 1.0, 0.5))]


def test_a_run_logs_what_it_trained_and_validated(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, training={"steps": 6, "log_every": 2, "eval_every": 3}).run()
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 2),
        ("valid", 3),
        ("train", 4),
        ("train", 6),
        ("valid", 6),
    ]
    assert set(lines[0]) == {
        "kind",
        "step",
        "loss",
        "bits_per_char",
        "learning_rate",
        "chars_per_s",
        "seconds",
    }
    assert set(lines[1]) == {"kind", "step", "loss", "bits_per_char", "perplexity", "seconds"}
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG_SIGNATURE)
    assert [step for step, _ in scalars(tmp_path, "valid/perplexity")] == [3, 6]


def test_a_logged_loss_is_the_mean_since_the_last_line(tmp_path: Path) -> None:
    one = tiny_trainer(tmp_path / "a", training={"steps": 4, "log_every": 4})
    one.run()
    other = tiny_trainer(tmp_path / "b")
    steps = [other.train_step() for _ in range(4)]
    mean = sum(nats for nats, _ in steps) / sum(predicted for _, predicted in steps)
    logged = [x for x in read_log(tmp_path / "a/log.jsonl") if x["kind"] == "train"]
    # The learning rate depends on the number of steps after the warm-up of three: equal up to 4.
    assert logged[0]["loss"] == pytest.approx(mean, abs=1e-9)


def test_the_learning_curve_is_redrawn_now_and_then_and_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 9.0, 11.0, 12.0, 13.0, 14.0])
    now = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("training.loop.run_log.time", now)
    path, curve = tmp_path / "curve.png", Curve("loss", "nats")
    log = RunLog(tmp_path, resume_step=None)
    pictures = []
    for step in (1, 2, 3):
        log.add("valid", step, {"loss": 1.0 / step})
        log.draw("a run", curve)
        pictures.append(path.read_bytes() if path.exists() else None)
    log.close()
    nothing, two_points, same = pictures
    assert nothing is None
    assert two_points == same != path.read_bytes()
    path.unlink()
    log.close()  # there is nothing left over
    assert not path.exists()
