"""A classifier's run: texts that have a label each, or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from service.bundle.labeler import LabelerManifest
from service.bundle.tokenization import Tokenizer
from training.config import ClassifierConfig
from training.data.classified import input_digest, prepare_classifier
from training.data.labelled import LabelledCorpus
from training.experiments.labels import LabelExperiment, middle_text, stored


@dataclass(frozen=True, slots=True)
class ClassifierExperiment(LabelExperiment[ClassifierConfig]):
    """See `experiment.TrainedExperiment`."""

    noun: ClassVar[str] = "a classifier"
    command: ClassVar[str] = "classify"

    def prepare(self, base: Path, run_dir: Path, known: Sequence[Tokenizer] = ()) -> LabelledCorpus:
        """The texts and their labels as one file of JSON."""
        return stored(prepare_classifier(self.config.data, base, known), run_dir)

    def input_digest(self, base: Path) -> str:
        """Of the files of labelled texts."""
        return input_digest(self.config.data, base)

    def requests(
        self, manifest: LabelerManifest, data: LabelledCorpus
    ) -> list[tuple[str, dict[str, Any]]]:
        """Classify a held-out text of middle length."""
        return [("/classify", {"model": manifest.name, "text": middle_text(data), "top": 3})]
