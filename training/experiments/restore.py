"""A restorer's run: any text loses something, which is put back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from service.bundle.labeler import LabelerManifest
from training.config import RestoreConfig
from training.data.labelled import LabelledCorpus
from training.data.restored import input_digest, prepare_restore
from training.experiments.experiment import NOTHING_KNOWN, Known
from training.experiments.labels import LabelExperiment, middle_text, stored


@dataclass(frozen=True, slots=True)
class RestoreExperiment(LabelExperiment[RestoreConfig]):
    """See `experiment.TrainedExperiment`."""

    noun: ClassVar[str] = "a restorer"
    command: ClassVar[str] = "tag"

    def prepare(self, base: Path, run_dir: Path, known: Known = NOTHING_KNOWN) -> LabelledCorpus:
        """What is left of the texts, and their labels, as one file of JSON."""
        data = self.config.data
        return stored(prepare_restore(data, base, known.tokenizers, known.labels), run_dir)

    def reading(self) -> Iterator[tuple[str, Any]]:
        """Also what a text loses."""
        yield from self.reading_of_texts()
        yield "data.loss", self.config.data.loss

    def input_digest(self, base: Path) -> str:
        """Of the files of texts."""
        return input_digest(self.config.data, base)

    def requests(
        self, manifest: LabelerManifest, data: LabelledCorpus
    ) -> list[tuple[str, dict[str, Any]]]:
        """Restore a held-out text of middle length."""
        return [("/tag", {"model": manifest.name, "text": middle_text(data)})]
