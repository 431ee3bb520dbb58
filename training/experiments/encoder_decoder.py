"""An encoder-decoder's run: pairs, batches, exact match and error rates, translations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderManifest
from service.bundle.text import normalize
from training.config import ConfigError, EncoderDecoderConfig
from training.data.pairs import PairCorpus, PairSplit, halved, input_digest, prepare_pairs
from training.data.stored import restored_tokenizer
from training.data.stored_pairs import load_pairs, store_pairs
from training.errors import ExportError
from training.evaluation.beam_search import NetworkSteps
from training.evaluation.confidence import Judge, measured_confidence
from training.evaluation.encoder_decoder import length_limits, translate_texts
from training.evaluation.encoder_decoder_report import (
    in_words,
    measure_baselines,
    measure_splits,
    table,
)
from training.evaluation.reliability import confidence_lines
from training.experiments import counts
from training.experiments.experiment import NOTHING_KNOWN, Known, Measured, Start
from training.experiments.gradient_descent import GradientDescent, gradient_descent
from training.export.confidence import write_confidence
from training.export.encoder_decoder import export
from training.loop.encoder_decoder import EncoderDecoderTask, load_best
from training.networks.encoder_decoder import EncoderDecoder

_PAIRS_FILE = "pairs.json"
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class TranslateOptions:
    """What `translate` is asked for."""

    sources: Sequence[str]
    beam_size: int | None  # None: the configuration's


@dataclass(frozen=True, slots=True)
class EncoderDecoderExperiment:
    """See `experiment.Experiment`."""

    config: EncoderDecoderConfig
    noun: ClassVar[str] = "an encoder-decoder"
    command: ClassVar[str] = "translate"
    stored: ClassVar[str] = _PAIRS_FILE

    def prepare(self, base: Path, run_dir: Path, known: Known = NOTHING_KNOWN) -> PairCorpus:
        """The pairs as one file of JSON."""
        corpus = prepare_pairs(self.config.data, base, known.tokenizers)
        run_dir.mkdir(parents=True, exist_ok=True)
        store_pairs(corpus, run_dir / _PAIRS_FILE)
        return corpus

    def open(self, run_dir: Path) -> PairCorpus:
        """What `prepare` wrote."""
        return load_pairs(self.config.data, run_dir / _PAIRS_FILE)

    def input_digest(self, base: Path) -> str:
        """Of the files of pairs."""
        return input_digest(self.config.data, base)

    def describe(self, data: PairCorpus) -> str:
        """Pairs of each split, and the tokens of both sides."""
        tokens = f"{len(data.source)} source tokens, {len(data.target)} target tokens"
        return f"{self.config.name}: pairs: {counts.in_words(data.counts)}; {tokens}"

    def init_from(self) -> str | None:
        """The option of that name."""
        return self.config.training.init_from

    def task(self, data: PairCorpus) -> EncoderDecoderTask:
        """Teacher forcing."""
        return EncoderDecoderTask(self.config, data)

    def training(
        self, run_dir: Path, data: PairCorpus, *, start: Start | None, resume: bool
    ) -> GradientDescent:
        """By gradient descent."""
        return gradient_descent(self.config, self.task(data), run_dir, start, resume=resume)

    def measure(self, run_dir: Path, data: PairCorpus) -> Measured:
        """Greedy and with the beam, on every held-out set."""
        _, model, *_ = load_best(run_dir)
        found = measure_splits(self.config, model, data, data.held_out, _CPU)
        return Measured({"pairs": [x.model_dump() for x in found]}, table(found))

    def floors(self, data: PairCorpus) -> str:
        """The source itself, and the target of the nearest training source."""
        return table(measure_baselines(self.config, data))

    def evaluate(self, run_dir: Path, split: str | None) -> str:
        """The model and the floors on the split, or on every held-out set."""
        config, model, *_ = load_best(run_dir)
        corpus = self.open(run_dir)
        splits = corpus.chosen(split)
        found = table(measure_splits(config, model, corpus, splits, _CPU))
        return "\n".join([found, *self._confidence(model, corpus, splits)])

    def _confidence(
        self, model: EncoderDecoder, corpus: PairCorpus, splits: Sequence[PairSplit]
    ) -> list[str]:
        """How far a confidence that is fitted on the validation pairs can be trusted, in lines."""
        tests = [split for split in splits if split is not corpus.valid]
        if not tests:
            return []
        judge = Judge(
            steps=NetworkSteps(model.eval(), _CPU),
            precision="fp32",
            source=corpus.source,
            target=corpus.target,
            limits=length_limits(corpus.train, self.config.data.max_source_tokens),
        )
        return confidence_lines(measured_confidence(judge, corpus.valid, tests))

    def answer(self, run_dir: Path, options: TranslateOptions) -> Sequence[str]:
        """The best translation of each source."""
        config, model, *_ = load_best(run_dir)
        corpus = self.open(run_dir)
        rules = config.data.source.normalization
        texts = [normalize(text, rules).strip() for text in options.sources]
        limits = length_limits(corpus.train, config.data.max_source_tokens)
        beam_size = options.beam_size or config.training.beam_size
        return translate_texts(model, corpus, texts, limits, beam_size=beam_size, device=_CPU)

    def export(
        self,
        run_dir: Path,
        data: PairCorpus,
        models_dir: Path,
        *,
        name: str | None,
        others: Sequence[Path] = (),
    ) -> Path:
        """An encoder's and a decoder's graph of each precision, of one run."""
        if others:
            raise ExportError(f"{others[0]}: encoder-decoders are not mixed; export one run")
        return export(run_dir, data, models_dir, name=name)

    def add_confidence(
        self,
        bundle: EncoderDecoderBundle,
        models_dir: Path,
        base: Path,
        pairs: Sequence[Path] = (),
    ) -> Path:
        """The same search as the service's, by the bundle's own graphs."""
        config = self.config.data
        if pairs:
            config = halved(config, pairs)
        elif input_digest(config, base) != bundle.manifest.data.sha256:
            raise ConfigError(
                f"{self.config.name}: its files are not those that {bundle.manifest.name} was "
                "trained on; name pairs that it was not trained on with --pairs"
            )
        corpus = prepare_pairs(config, base)
        # Of a person's own pairs, the halves are the splits.
        fitted, tests = (corpus.train, [corpus.valid]) if pairs else (corpus.valid, corpus.tests)
        return write_confidence(models_dir, bundle, fitted, tests)

    def table(self, manifest: EncoderDecoderManifest) -> str:
        """Every held-out set, and how far the confidence can be trusted."""
        return "\n".join(
            [
                f"served in {manifest.precision}",
                table(manifest.metrics),
                *confidence_lines(manifest.confidence),
            ]
        )

    def figures(self, manifest: EncoderDecoderManifest) -> list[str]:
        """How often it is right, beside the floors."""
        return in_words(manifest.metrics)

    def requests(
        self, manifest: EncoderDecoderManifest, data: PairCorpus
    ) -> list[tuple[str, dict[str, Any]]]:
        """Translate a held-out source of middle length."""
        sources = sorted(data.held_out[0].references, key=len)
        return [("/translate", {"model": manifest.name, "source": sources[len(sources) // 2]})]

    def reading(self) -> Iterator[tuple[str, Any]]:
        """The tokenization and the normalization of each side."""
        data = self.config.data
        yield "data.share_vocab", data.share_vocab
        for name, side in (("source", data.source), ("target", data.target)):
            yield f"data.{name}.tokenization", side.tokenization
            for rule, value in side.normalization.model_dump(mode="json").items():
                yield f"data.{name}.normalization.{rule}", value

    def known(self, record: Mapping[str, Any]) -> Known:
        """The source's and the target's."""
        data = self.config.data
        source = restored_tokenizer(data.source, record["source"])
        return Known((source, restored_tokenizer(data.target, record["target"])))

    def starting_weights(self, bundle: EncoderDecoderBundle) -> tuple[dict[str, Tensor], Known]:
        """Never: raises ConfigError."""
        raise ConfigError(
            f"training.init_from: {bundle.manifest.name}: the graphs of an encoder-decoder hold "
            "products of its weights; start from its run's folder instead"
        )
