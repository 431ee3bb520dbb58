"""The protocol of every kind of model, which the commands work with."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from service.bundle.tokenization import Tokenizer
from training.config import AnyConfig, TrainedConfig
from training.loop.task import Task


class Prepared(Protocol):
    """Data to train on, prepared in a run's folder."""

    @property
    def sha256(self) -> str:
        """The digest of the files that they were made from."""


Data = TypeVar("Data", bound=Prepared)


@dataclass(frozen=True, slots=True)
class Known:
    """What weights can read and write. A run that starts from them keeps its ids."""

    tokenizers: tuple[Tokenizer, ...] = ()  # of a text, or of source and target
    labels: tuple[str, ...] = ()  # a labeler's


NOTHING_KNOWN = Known()


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a run's best weights on held-out data, beside the floors."""

    document: Mapping[str, Any]  # JSON, as the run's folder keeps it
    table: str  # for people


class Start(Protocol):
    """Weights that training begins with."""

    @property
    def name(self) -> str:
        """Of the bundle or the run that they come from."""

    @property
    def record(self) -> dict[str, str]:
        """What the manifest says of the parent."""

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a model whose vocabulary may have grown."""


class Training(Protocol):
    """A training that is ready to begin, or to go on where it was stopped."""

    def run(self) -> Sequence[str]:
        """Train to the end; then the run's folder has its best weights. Returns lines for people.

        Raises Stopped after a signal, and TrainingError.
        """

    def follow(self) -> int | None:
        """Train on a rank other than 0. Returns the signal that ended it.

        Raises LostContact.
        """


class Experiment(Protocol[Data]):
    """A configuration of one kind of model, and all that is done with it.

    `run_dir` is the run's folder; weights are always its best. What is typed Any is the kind's own:
    its options, its bundle and its manifest.
    """

    noun: ClassVar[str]  # what is trained, with its article
    command: ClassVar[str]  # the command of `python -m training` that uses the weights
    stored: ClassVar[str]  # the file or folder that `prepare` writes

    @property
    def config(self) -> AnyConfig:
        """The configuration, of this kind."""

    # --- data ---------------------------------------------------------------------------------

    def prepare(self, base: Path, run_dir: Path, known: Known = NOTHING_KNOWN) -> Data:
        """Prepare the configuration's files in the run's folder. Raises ConfigError.

        Relative paths start from `base`; `known` tokens and labels keep their ids.
        """

    def open(self, run_dir: Path) -> Data:
        """What `prepare` wrote; the files themselves are not read. Raises ConfigError."""

    def input_digest(self, base: Path) -> str:
        """The digest of the configuration's files as they are now. Raises ConfigError."""

    def describe(self, data: Data) -> str:
        """One line on what there is to train on."""

    # --- training and what comes of it ----------------------------------------------------------

    def init_from(self) -> str | None:
        """The folder whose weights training begins with, relative to the configuration's."""

    def training(self, run_dir: Path, data: Data, *, start: Start | None, resume: bool) -> Training:
        """The training of this configuration in the run's folder.

        Raises TrainingError, and ConfigError where it cannot begin with weights or be resumed.
        """

    def measure(self, run_dir: Path, data: Data) -> Measured:
        """Measure the weights and the floors on the held-out data."""

    def floors(self, data: Data) -> str:
        """The table of the floors alone."""

    def evaluate(self, run_dir: Path, split: str | None) -> str:
        """The table of the weights on one split; None is the held-out data. Raises ConfigError."""

    def answer(self, run_dir: Path, options: Any) -> Iterable[str]:
        """The texts that the weights write, for the options of `command`."""

    def export(
        self,
        run_dir: Path,
        data: Data,
        models_dir: Path,
        *,
        name: str | None,
        others: Sequence[Path] = (),
    ) -> Path:
        """Write the weights as a bundle; its folder. Raises ExportError, and nothing is written.

        The weights of `others`, runs of the same data, join them, where this kind can be mixed.
        """

    # --- a bundle that was exported -------------------------------------------------------------

    def table(self, manifest: Any) -> str:
        """The table of what the export measured."""

    def figures(self, manifest: Any) -> list[str]:
        """The same in words, for people who know no perplexity."""

    def requests(self, manifest: Any, data: Data) -> list[tuple[str, dict[str, Any]]]:
        """Requests to the bundle, path and body, with an example from held-out data."""

    # --- weights that another run starts from ---------------------------------------------------

    def reading(self) -> Iterator[tuple[str, Any]]:
        """The options that decide how text becomes tokens, with their values."""

    def known(self, record: Mapping[str, Any]) -> Known:
        """The tokenizers and labels that a checkpoint's record keeps."""

    def starting_weights(self, bundle: Any) -> tuple[dict[str, Tensor], Known]:
        """A bundle's weights as PyTorch names them, and what it knows. Raises ConfigError."""


class TrainedExperiment(Experiment[Data], Protocol):
    """One that is trained by gradient descent."""

    @property
    def config(self) -> TrainedConfig:
        """The configuration, of this kind."""

    def task(self, data: Data) -> Task[Any]:
        """What the trainer trains. Raises TrainingError."""


class TranslatingExperiment(TrainedExperiment[Data], Protocol):
    """One whose bundles translate, and can say how sure they are of it."""

    def add_confidence(
        self, bundle: Any, models_dir: Path, base: Path, pairs: Sequence[Path] = ()
    ) -> Path:
        """Write a bundle again with the confidence of its translations, and nothing else changed.

        It is fitted on the configuration's validation pairs, whose paths start from `base`, and
        measured on its tests; or on a half of `pairs`, files of a person's own, and measured on the
        other. Raises ConfigError, and ExportError where there are too few.
        """
