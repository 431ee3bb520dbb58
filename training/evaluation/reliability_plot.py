"""Reliability diagrams (Niculescu-Mizil and Caruana 2005): share right against confidence."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from service.bundle.confidence import MeasuredConfidence
from training.evaluation.metrics import share_error

_PANEL = 2.4  # inches
_TICKS = (0.0, 0.5, 1.0)


def draw_reliability(measured: Mapping[str, MeasuredConfidence], path: Path) -> None:
    """One panel for each name, side by side, as a PNG; a bar is two standard errors each way."""
    figure, panels = plt.subplots(
        1,
        len(measured),
        figsize=(_PANEL * len(measured), _PANEL + 0.6),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axes, (name, found) in zip(panels[0], measured.items(), strict=True):
        _draw(axes, name, found)
    panels[0][0].set_ylabel("share right")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the library's version, so that the same figures are the same file.
    figure.savefig(path, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _draw(axes: Axes, name: str, found: MeasuredConfidence) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    axes.errorbar(
        [x.confidence for x in found.bins],
        [x.right for x in found.bins],
        yerr=[2 * share_error(x.right, x.sources) for x in found.bins],
        fmt="o",
        markersize=3,
        linewidth=1,
    )
    axes.set(title=name, xlabel="confidence", xticks=_TICKS, yticks=_TICKS)
    axes.text(0.03, 0.9, f"ECE {found.ece:.3f}", transform=axes.transAxes)
    axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
