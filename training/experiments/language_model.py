"""A recurrent language model's run: a text experiment that is trained by gradient descent."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from service.bundle.language_model import LanguageModelBundle
from service.bundle.tokenization import Characters
from training.config import ConfigError, LanguageModelConfig
from training.data.corpus import Corpus
from training.experiments.experiment import Known, Start
from training.experiments.gradient_descent import GradientDescent, gradient_descent
from training.experiments.text import TextExperiment
from training.graphs.language_model_weights import weights_of
from training.loop.language_model import LanguageModelTask


@dataclass(frozen=True, slots=True)
class LanguageModelExperiment(TextExperiment[LanguageModelConfig]):
    """See `experiment.TrainedExperiment`."""

    def init_from(self) -> str | None:
        """The option of that name."""
        return self.config.training.init_from

    def run_name(self) -> str:
        """The name, and that it is the network alone where the export mixes an n-gram in."""
        name = self.config.name
        return name if self.config.ngram is None else f"{name}, network alone"

    def task(self, data: Corpus) -> LanguageModelTask:
        """Truncated backpropagation through time."""
        return LanguageModelTask(self.config, data)

    def training(
        self, run_dir: Path, data: Corpus, *, start: Start | None, resume: bool
    ) -> GradientDescent:
        """By gradient descent."""
        return gradient_descent(self.config, self.task(data), run_dir, start, resume=resume)

    def starting_weights(self, bundle: LanguageModelBundle) -> tuple[dict[str, Tensor], Known]:
        """Those of an LSTM or GRU, from its graph in fp32; of a mixture, the first network's."""
        name = bundle.manifest.name
        if self.config.model.cell == "rnn":
            raise ConfigError(
                f"training.init_from: {name}: the graph of a tanh RNN holds products of its "
                "weights; start from its run's folder instead"
            )
        found = bundle.graph("fp32", "sequence")
        if found is None:
            raise ConfigError(f"training.init_from: {name}: it has no graph in fp32")
        weights = dict(weights_of(found[1], self.config.model))
        # The export has divided these by the temperature.
        for part in bundle.manifest.parts[:1]:
            for name in ("output.weight", "output.bias"):
                weights[name] = weights[name] * (part.temperature or 1.0)
        return weights, Known((Characters(bundle.vocab.tokens),))
