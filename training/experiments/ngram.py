"""An n-gram's run: a text experiment whose model is counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from service.bundle.language_model import LanguageModelBundle
from training.config import ConfigError, NGramLanguageModelConfig
from training.data.corpus import Corpus
from training.experiments.experiment import Known, Start
from training.experiments.text import TextExperiment
from training.loop.ngram import train_ngram
from training.loop.task import TrainingError


@dataclass(frozen=True, slots=True)
class Counting:
    """See `experiment.Training`."""

    config: NGramLanguageModelConfig
    corpus: Corpus
    run_dir: Path

    def run(self) -> Sequence[str]:
        """Count once."""
        return train_ngram(self.config, self.corpus, self.run_dir)

    def follow(self) -> None:
        """Never: one process counts."""


@dataclass(frozen=True, slots=True)
class NGramExperiment(TextExperiment[NGramLanguageModelConfig]):
    """See `experiment.Experiment`."""

    def init_from(self) -> str | None:
        """None: counting starts from no weights."""
        return None

    def training(
        self, run_dir: Path, data: Corpus, *, start: Start | None, resume: bool
    ) -> Counting:
        """By counting. Raises TrainingError unless that is to start from the beginning."""
        if start is not None or resume:
            raise TrainingError(
                f"{run_dir}: an n-gram is counted from the beginning, which takes seconds. It "
                "cannot start from other weights or be resumed. Train it in another folder (--run)"
            )
        return Counting(self.config, data, run_dir)

    def starting_weights(self, bundle: LanguageModelBundle) -> tuple[dict[str, Tensor], Known]:
        """Raises ConfigError: counting starts from no weights."""
        raise ConfigError(
            f"training.init_from: {bundle.manifest.name}: an n-gram has no weights to start from"
        )
