"""The kinds of model that can be trained, by a configuration's `kind`.

A new kind, NAME, is one file a room and an entry in the tables:

- `config.py`: its schema, in the table and in the union;
- `data/`: how its files are read and batched, where no text, pairs or labelled texts will do;
- `networks/NAME.py`: the network;
- `evaluation/NAME.py` and `NAME_report.py`: how good weights are, beside the floors;
- `graphs/NAME.py`: its graphs;
- `loop/NAME.py`: its task for the trainer;
- `export/NAME.py` and `NAME_parity.py`: its bundle, and its graphs compared with PyTorch;
- `experiments/NAME.py`: all of it together, and an entry in this table;
- `learn/NAME.py`, the table in `learn/recipe.py` and, for files of a new sort,
  `learn/recognize.py`: how `learn` chooses it;
- `__main__.py`: the command that uses its weights, where it is a new one.

A new experiment on a kind of network that there is, as `infill` is one on pairs that are made from
text, needs its schema, its data, its floors (`evaluation/`), its file in `experiments/` and the
entry here; loop, graphs and export are those of the network. `classifier`, `tagger` and `restore`
are experiments on the labeler, and share `experiments/labels.py`.

The bundle itself is `service/bundle/NAME.py`. No other file knows which kinds there are.
"""

from collections.abc import Callable, Mapping
from typing import Any

from training.config import AnyConfig, ConfigError
from training.experiments.classifier import ClassifierExperiment
from training.experiments.encoder_decoder import EncoderDecoderExperiment
from training.experiments.experiment import Experiment, TrainedExperiment, TranslatingExperiment
from training.experiments.infill import InfillExperiment
from training.experiments.language_model import LanguageModelExperiment
from training.experiments.ngram import NGramExperiment
from training.experiments.restore import RestoreExperiment
from training.experiments.tagger import TaggerExperiment

_TRANSLATING: Mapping[str, Callable[[Any], TranslatingExperiment[Any]]] = {
    "encoder_decoder": EncoderDecoderExperiment,
}
_TRAINED: Mapping[str, Callable[[Any], TrainedExperiment[Any]]] = {
    **_TRANSLATING,
    "language_model": LanguageModelExperiment,
    "infill": InfillExperiment,
    "classifier": ClassifierExperiment,
    "tagger": TaggerExperiment,
    "restore": RestoreExperiment,
}
_KINDS: Mapping[str, Callable[[Any], Experiment[Any]]] = {**_TRAINED, "ngram": NGramExperiment}


def experiment_of(config: AnyConfig) -> Experiment[Any]:
    """The experiment of a configuration."""
    return _KINDS[config.kind](config)


def trained_experiment_of(config: AnyConfig) -> TrainedExperiment[Any]:
    """The same, of a kind that is trained by gradient descent. Raises ConfigError for another."""
    if config.kind not in _TRAINED:
        raise ConfigError(f"{config.name}: it is counted, not trained: it has no [training]")
    return _TRAINED[config.kind](config)


def translating_experiment_of(config: AnyConfig) -> TranslatingExperiment[Any]:
    """The same, of a kind that translates. Raises ConfigError for another."""
    if config.kind not in _TRANSLATING:
        raise ConfigError(f"{config.name}: it does not translate, so there is no confidence")
    return _TRANSLATING[config.kind](config)
