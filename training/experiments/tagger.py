"""A tagger's run: texts with a label for each character."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from service.bundle.labeler import LabelerManifest
from training.config import TaggerConfig
from training.data.labelled import LabelledCorpus
from training.data.tagged import input_digest, prepare_tagger
from training.experiments.experiment import NOTHING_KNOWN, Known
from training.experiments.labels import LabelExperiment, middle_text, stored


@dataclass(frozen=True, slots=True)
class TaggerExperiment(LabelExperiment[TaggerConfig]):
    """See `experiment.TrainedExperiment`."""

    noun: ClassVar[str] = "a tagger"
    command: ClassVar[str] = "tag"

    def prepare(self, base: Path, run_dir: Path, known: Known = NOTHING_KNOWN) -> LabelledCorpus:
        """The texts and their labels as one file of JSON."""
        data = self.config.data
        return stored(prepare_tagger(data, base, known.tokenizers, known.labels), run_dir)

    def reading(self) -> Iterator[tuple[str, Any]]:
        """Also the label of characters that are in no tag."""
        yield from self.reading_of_texts()
        yield "data.outside", self.config.data.outside

    def input_digest(self, base: Path) -> str:
        """Of the files of labelled texts."""
        return input_digest(self.config.data, base)

    def requests(
        self, manifest: LabelerManifest, data: LabelledCorpus
    ) -> list[tuple[str, dict[str, Any]]]:
        """Tag a held-out text of middle length."""
        return [("/tag", {"model": manifest.name, "text": middle_text(data)})]
