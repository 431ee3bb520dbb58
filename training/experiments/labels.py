"""What the runs of all labelers share: labelled texts, figures, labels for new texts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from service.bundle.labeler import LabelerBundle, LabelerManifest, Labels
from service.bundle.text import normalize
from training.config import ConfigError, LabelerConfig
from training.data.labelled import LabelledCorpus
from training.data.stored import restored_tokenizer
from training.data.stored_labels import load_labelled, store_labelled
from training.errors import ExportError
from training.evaluation.label_answers import answer_lines
from training.evaluation.labeler import judge_network
from training.evaluation.labeler_report import (
    in_words,
    measure_floors,
    measure_judged,
    measure_splits,
    mistakes,
    table,
)
from training.experiments import counts
from training.experiments.experiment import Known, Measured, Start
from training.experiments.gradient_descent import GradientDescent, gradient_descent
from training.export.labeler import export
from training.loop.labeler import LabelerTask, load_best

Config = TypeVar("Config", bound=LabelerConfig)

_LABELS_FILE = "labelled.json"
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelOptions:
    """What `classify` and `tag` are asked for."""

    texts: Sequence[str]
    top: int = 1  # labels of each text


@dataclass(frozen=True, slots=True)
class LabelExperiment(Generic[Config]):
    """The part of `experiment.TrainedExperiment` that all labelers share."""

    config: Config
    stored: ClassVar[str] = _LABELS_FILE

    def open(self, run_dir: Path) -> LabelledCorpus:
        """What `prepare` wrote."""
        return load_labelled(self.config.data, run_dir / _LABELS_FILE)

    def describe(self, data: LabelledCorpus) -> str:
        """Texts of each split, tokens and labels."""
        read, known = counts.in_words(data.counts), len(data.labels.names)
        return f"{self.config.name}: texts: {read}; {len(data.tokenizer)} tokens, {known} labels"

    def init_from(self) -> str | None:
        """The option of that name."""
        return self.config.training.init_from

    def task(self, data: LabelledCorpus) -> LabelerTask:
        """Cross entropy of the labels."""
        return LabelerTask(self.config, data)

    def training(
        self, run_dir: Path, data: LabelledCorpus, *, start: Start | None, resume: bool
    ) -> GradientDescent:
        """By gradient descent."""
        return gradient_descent(self.config, self.task(data), run_dir, start, resume=resume)

    def measure(self, run_dir: Path, data: LabelledCorpus) -> Measured:
        """The model and the floors on every held-out set."""
        _, model, *_ = load_best(run_dir)
        found = measure_splits(model, data, data.held_out, _CPU)
        return Measured({"labels": [x.model_dump() for x in found]}, table(found))

    def floors(self, data: LabelledCorpus) -> str:
        """The baselines, which need no network."""
        return table(measure_floors(data))

    def evaluate(self, run_dir: Path, split: str | None) -> str:
        """The model and the floors on the split, or on every held-out set, and its mistakes."""
        _, model, *_ = load_best(run_dir)
        corpus = self.open(run_dir)
        splits = corpus.chosen(split)
        judged = [judge_network(model, x, corpus.labels, _CPU) for x in splits]
        lines = [table(measure_judged(judged, corpus, splits))]
        for own, found in zip(judged, splits, strict=True):
            lines += [f"{found.name}:", *mistakes(own, corpus.labels)]
        return "\n".join(lines)

    def answer(self, run_dir: Path, options: LabelOptions) -> Sequence[str]:
        """The labels of each text."""
        config, model, tokenizer, labels, _ = load_best(run_dir)
        rules = config.data.text.normalization
        texts = [normalize(text, rules) for text in options.texts]
        if not all(texts):
            raise ConfigError("a text is empty")
        tokens = [tokenizer.encode(text) for text in texts]
        return answer_lines(model, labels, texts, tokens, _CPU, top=options.top)

    def export(
        self,
        run_dir: Path,
        data: LabelledCorpus,
        models_dir: Path,
        *,
        name: str | None,
        others: Sequence[Path] = (),
    ) -> Path:
        """A graph of each precision, of one run."""
        if others:
            raise ExportError(f"{others[0]}: labelers are not mixed; export one run")
        return export(run_dir, data, models_dir, name=name)

    def table(self, manifest: LabelerManifest) -> str:
        """Every held-out set."""
        return f"served in {manifest.precision}\n{table(manifest.metrics)}"

    def figures(self, manifest: LabelerManifest) -> list[str]:
        """How often it is right, beside the floors."""
        return in_words(manifest.metrics, manifest.labels)

    def reading_of_texts(self) -> Iterator[tuple[str, Any]]:
        """The tokenization and the normalization."""
        text = self.config.data.text
        yield "data.text.tokenization", text.tokenization
        for rule, value in text.normalization.model_dump(mode="json").items():
            yield f"data.text.normalization.{rule}", value

    def known(self, record: Mapping[str, Any]) -> Known:
        """The text's tokens, and the labels."""
        tokenizer = restored_tokenizer(self.config.data.text, record["text"])
        return Known((tokenizer,), tuple(Labels.model_validate(record["labels"]).names))

    def starting_weights(self, bundle: LabelerBundle) -> tuple[dict[str, Tensor], Known]:
        """Never: raises ConfigError."""
        raise ConfigError(
            f"training.init_from: {bundle.manifest.name}: the graphs of a labeler hold products of "
            "its weights; start from its run's folder instead"
        )


def stored(corpus: LabelledCorpus, run_dir: Path) -> LabelledCorpus:
    """Keep prepared texts in the run's folder, as one file of JSON."""
    run_dir.mkdir(parents=True, exist_ok=True)
    store_labelled(corpus, run_dir / _LABELS_FILE)
    return corpus


def middle_text(data: LabelledCorpus) -> str:
    """A held-out text of middle length."""
    texts = sorted(data.held_out[0].texts, key=len)
    return texts[len(texts) // 2]
