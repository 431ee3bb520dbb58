"""A classifier's run: texts that have one label each, or several."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from service.bundle.labeler import LabelerManifest
from training.config import ClassifierConfig
from training.data.classified import input_digest, prepare_classifier
from training.data.labelled import LabelledCorpus
from training.experiments.experiment import NOTHING_KNOWN, Known
from training.experiments.labels import LabelExperiment, middle_text, stored


@dataclass(frozen=True, slots=True)
class ClassifierExperiment(LabelExperiment[ClassifierConfig]):
    """See `experiment.TrainedExperiment`."""

    noun: ClassVar[str] = "a classifier"
    command: ClassVar[str] = "classify"

    def prepare(self, base: Path, run_dir: Path, known: Known = NOTHING_KNOWN) -> LabelledCorpus:
        """The texts and their labels as one file of JSON."""
        data = self.config.data
        return stored(prepare_classifier(data, base, known.tokenizers, known.labels), run_dir)

    def reading(self) -> Iterator[tuple[str, Any]]:
        """Also whether a text may have several labels."""
        yield from self.reading_of_texts()
        yield "data.several", self.config.data.several

    def input_digest(self, base: Path) -> str:
        """Of the files of labelled texts."""
        return input_digest(self.config.data, base)

    def requests(
        self, manifest: LabelerManifest, data: LabelledCorpus
    ) -> list[tuple[str, dict[str, Any]]]:
        """Classify a held-out text of middle length."""
        return [("/classify", {"model": manifest.name, "text": middle_text(data), "top": 3})]
