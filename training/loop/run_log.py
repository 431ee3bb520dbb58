"""The log of a run: JSON lines, TensorBoard events and the learning curve."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from torch.utils.tensorboard import SummaryWriter

from training.loop.task import Curve

LOG_FILE = "log.jsonl"
# A drawing takes as long as many steps of a small model.
_REDRAW_S = 10.0


class RunLog:
    """`log.jsonl`, `tensorboard/` and `curve.png` in the run's folder.

    `resume_step` drops what an interrupted run logged after the checkpoint that it resumes from.
    """

    def __init__(self, folder: Path, *, resume_step: int | None) -> None:
        self._path = folder / LOG_FILE
        self._curve = folder / "curve.png"
        self._lines: list[dict[str, Any]] = []
        self._undrawn: Callable[[], None] | None = None
        self._next_drawing = time.monotonic() + _REDRAW_S
        if resume_step is not None:
            self._lines = [x for x in read_log(self._path) if x["step"] <= resume_step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        purge = None if resume_step is None else resume_step + 1
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def add(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Append a line of kind `train` or `valid`, and the same scalars for TensorBoard."""
        line: dict[str, Any] = {"kind": kind, "step": step, **values}
        self._lines.append(line)
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def draw(self, title: str, curve: Curve) -> None:
        """Redraw the learning curve, now and then; what is left over is drawn by `close`."""
        self._undrawn = partial(self._redraw, title, curve)
        if time.monotonic() >= self._next_drawing:
            self._undrawn()

    def close(self) -> None:
        """Draw the whole curve, and flush the TensorBoard events."""
        if self._undrawn is not None:
            self._undrawn()
        self._events.close()

    def _redraw(self, title: str, curve: Curve) -> None:
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        for kind, style in (("train", "-"), ("valid", "o-")):
            points = [(x["step"], x[curve.key]) for x in self._lines if x["kind"] == kind]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=kind, markersize=4)
        axes.set(title=title, xlabel="step", ylabel=curve.label)
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        figure.savefig(self._curve, dpi=100)
        plt.close(figure)
        self._undrawn = None
        self._next_drawing = time.monotonic() + _REDRAW_S


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`, without a last line that a crash has cut short."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
