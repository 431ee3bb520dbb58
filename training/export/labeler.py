"""A trained labeler to a bundle."""

from pathlib import Path

from training.data.labelled import LabelledCorpus
from training.errors import ExportError


def export(
    run_dir: Path, corpus: LabelledCorpus, models_dir: Path, *, name: str | None = None
) -> Path:
    """Write a run's best weights as a bundle. Raises ExportError, and nothing is written."""
    texts = len(corpus.train)
    raise ExportError(f"{run_dir}: {name or models_dir}: {texts} texts: not written yet")
