"""The run of an encoder-decoder that fills blanks: pairs from a person's own text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderManifest
from service.bundle.infill import MARKS
from service.bundle.text import SPECIAL_TOKENS, normalize
from training.config import ConfigError, InfillConfig
from training.data import corpus as corpora
from training.data import infill as infill_data
from training.data.infill import InfillCorpus, infill_options
from training.data.stored import restored_tokenizer
from training.errors import ExportError
from training.evaluation.filling import fill_blanks
from training.evaluation.infill_report import (
    Floors,
    in_words,
    measure_floors,
    measure_splits,
    table,
)
from training.experiments import counts
from training.experiments.experiment import NOTHING_KNOWN, Known, Measured, Start
from training.experiments.gradient_descent import GradientDescent, gradient_descent
from training.export.encoder_decoder import export
from training.loop.encoder_decoder import EncoderDecoderTask, load_best

_CORPUS_FOLDER = "corpus"
_CPU = torch.device("cpu")
DEFAULT_BLANK = "___"


@dataclass(frozen=True, kw_only=True, slots=True)
class InfillOptions:
    """What `infill` is asked for."""

    texts: Sequence[str]
    blank: str  # what marks a blank in them
    beam_size: int | None  # None: the configuration's


@dataclass(frozen=True, slots=True)
class InfillExperiment:
    """See `experiment.TrainedExperiment`."""

    config: InfillConfig
    noun: ClassVar[str] = "a model that fills blanks"
    command: ClassVar[str] = "infill"
    stored: ClassVar[str] = _CORPUS_FOLDER

    def prepare(self, base: Path, run_dir: Path, known: Known = NOTHING_KNOWN) -> InfillCorpus:
        """The text's ids by split, memory-mapped."""
        tokens = known.tokenizers[0].tokens if known.tokenizers else ()
        return infill_data.prepare(self.config, base, run_dir / _CORPUS_FOLDER, tokens)

    def open(self, run_dir: Path) -> InfillCorpus:
        """What `prepare` wrote."""
        return infill_data.load(self.config, run_dir / _CORPUS_FOLDER)

    def input_digest(self, base: Path) -> str:
        """Of the text files."""
        return corpora.input_digest(self.config.data, base)

    def describe(self, data: InfillCorpus) -> str:
        """Characters of each split."""
        text = data.text
        splits = ", ".join(
            f"{split.chars:,} characters to {purpose}"
            for split, purpose in (
                (text.train, "train"),
                (text.valid, "validate"),
                (text.test, "test"),
            )
        )
        read = f" {counts.in_words(text.counts)};" if text.counts else ""
        special = len(SPECIAL_TOKENS) + len(MARKS)
        tokens = f"{len(text.vocab) - special} characters, {special} special"
        return f"{self.config.name}:{read} {splits}; {len(text.vocab)} tokens ({tokens})"

    def init_from(self) -> str | None:
        """The option of that name."""
        return self.config.training.init_from

    def task(self, data: InfillCorpus) -> EncoderDecoderTask:
        """Teacher forcing."""
        return EncoderDecoderTask(self.config.pairs, data.pairs)

    def training(
        self, run_dir: Path, data: InfillCorpus, *, start: Start | None, resume: bool
    ) -> GradientDescent:
        """By gradient descent."""
        return gradient_descent(self.config, self.task(data), run_dir, start, resume=resume)

    def measure(self, run_dir: Path, data: InfillCorpus) -> Measured:
        """Greedy and with the beam, on every held-out set."""
        config, model, *_ = load_best(run_dir)
        found = measure_splits(config, model, self._floors(data), data.pairs.held_out, _CPU)
        return Measured({"pairs": [x.model_dump() for x in found]}, table(found))

    def floors(self, data: InfillCorpus) -> str:
        """The most frequent text, and an n-gram from the left."""
        return table(measure_floors(self._floors(data)))

    def _floors(self, data: InfillCorpus) -> Floors:
        return Floors(data, infill_options(self.config.spans))

    def evaluate(self, run_dir: Path, split: str | None) -> str:
        """The model and the floors on the split, or on every held-out set."""
        config, model, *_ = load_best(run_dir)
        data = self.open(run_dir)
        splits = data.pairs.chosen(split)
        return table(measure_splits(config, model, self._floors(data), splits, _CPU))

    def answer(self, run_dir: Path, options: InfillOptions) -> Iterator[str]:
        """Each text with its blanks filled, each fill in brackets."""
        config, model, *_ = load_best(run_dir)
        pairs, infill = self.open(run_dir).pairs, infill_options(self.config.spans)
        blanked = [self._pieces(text, options.blank) for text in options.texts]
        sources = [infill.source(pieces, begins=True, ends=False) for pieces in blanked]
        beam_size = options.beam_size or config.training.beam_size
        found = fill_blanks(model, pairs, infill, sources, beam_size=beam_size, device=_CPU)
        for (first, *rest), texts in zip(blanked, found, strict=True):
            yield first + "".join(f"[{x}]{y}" for x, y in zip(texts, rest, strict=True))

    def _pieces(self, text: str, blank: str) -> list[str]:
        """A text's pieces. Raises ConfigError if it has no blank, or too many."""
        spans = self.config.spans
        pieces = [normalize(x, self.config.data.normalization) for x in text.split(blank)]
        if not 1 < len(pieces) <= spans.max_blanks + 1:
            raise ConfigError(f"a text has 1 to {spans.max_blanks} blanks, each written {blank}")
        if any(len(piece) > spans.context for piece in pieces[1:-1]):
            raise ConfigError(f"two blanks have at most {spans.context} characters between them")
        return pieces

    def export(
        self,
        run_dir: Path,
        data: InfillCorpus,
        models_dir: Path,
        *,
        name: str | None,
        others: Sequence[Path] = (),
    ) -> Path:
        """An encoder's and a decoder's graph of each precision, of one run."""
        if others:
            raise ExportError(f"{others[0]}: encoder-decoders are not mixed; export one run")
        infill = infill_options(self.config.spans)
        return export(run_dir, data.pairs, models_dir, name=name, infill=infill)

    def table(self, manifest: EncoderDecoderManifest) -> str:
        """Every held-out set."""
        return f"served in {manifest.precision}\n{table(manifest.metrics)}"

    def figures(self, manifest: EncoderDecoderManifest) -> list[str]:
        """How often it is right, beside the floors."""
        return in_words(manifest.metrics)

    def requests(
        self, manifest: EncoderDecoderManifest, data: InfillCorpus
    ) -> list[tuple[str, dict[str, Any]]]:
        """Fill the blanks of a held-out text."""
        pairs = data.pairs
        source, _ = pairs.held_out[0].pairs[0]
        return [("/infill", {"model": manifest.name, "text": pairs.readable(source)})]

    def reading(self) -> Iterator[tuple[str, Any]]:
        """The normalization."""
        for rule, value in self.config.data.normalization.model_dump(mode="json").items():
            yield f"data.normalization.{rule}", value

    def known(self, record: Mapping[str, Any]) -> Known:
        """The characters, on both sides."""
        side = self.config.pairs.data.source
        return Known((restored_tokenizer(side, record["source"]),))

    def starting_weights(self, bundle: EncoderDecoderBundle) -> tuple[dict[str, Tensor], Known]:
        """Never: raises ConfigError."""
        raise ConfigError(
            f"training.init_from: {bundle.manifest.name}: the graphs of an encoder-decoder hold "
            "products of its weights; start from its run's folder instead"
        )
