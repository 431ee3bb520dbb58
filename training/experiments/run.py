"""A run's folder: what is trained from it, measured and exported, with nothing beside it.

It holds the configuration, the prepared data, the checkpoints, the log and the figures, so that it
can be moved to another machine, and its text can go.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from service.bundle.encoder_decoder import EncoderDecoderMetrics
from service.bundle.language_model import LanguageModelMeasurement
from training.config import ConfigError, EncoderDecoderConfig, LanguageModelConfig, parse_config
from training.data import corpus as corpora
from training.data.corpus import Corpus
from training.data.pairs import PairCorpus, pair_input_digest, prepare_pairs
from training.data.stored_pairs import load_pairs, store_pairs
from training.evaluation.encoder_decoder_report import measure_pairs, pair_table
from training.evaluation.language_model import evaluate
from training.evaluation.language_model_report import measure_baselines, measurement, table
from training.export import encoder_decoder, language_model
from training.export.language_model import held_out_split
from training.export.manifest_parts import ExportError
from training.loop import checkpoint
from training.loop.checkpoint import BEST, LAST
from training.loop.encoder_decoder import EncoderDecoderTask, load_best_pairs
from training.loop.language_model import LanguageModelTask, load_best
from training.loop.starting_point import StartingPoint, open_starting_point
from training.loop.task import Task, TrainingError
from training.loop.trainer import Trainer

CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.json"
_CORPUS_FOLDER = "corpus"
_PAIRS_FILE = "pairs.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run's best weights are worth, and its floors, on the held-out data."""

    step: int  # of the weights
    split: str  # of a language model; pairs have theirs in `pairs`
    chars: int
    measurements: list[LanguageModelMeasurement]
    pairs: list[EncoderDecoderMetrics]

    @property
    def table(self) -> str:
        """For people."""
        if self.pairs:
            return pair_table(self.pairs)
        return table(f"{self.split}, {self.chars:,} characters", self.measurements)


def prepare_data(
    config: LanguageModelConfig | EncoderDecoderConfig,
    base: Path,
    run_dir: Path,
    start: StartingPoint | None = None,
) -> Corpus | PairCorpus:
    """The files of a configuration, prepared in the run's folder. Raises ConfigError.

    `base` is the folder that the configuration's paths start from; the tokens of `start` keep
    their ids.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    known = start.tokenizers if start is not None else ()
    if isinstance(config, LanguageModelConfig):
        tokens = known[0].tokens if known else ()
        corpus = corpora.prepare(config.data, base, run_dir / _CORPUS_FOLDER, tokens)
        corpora.check_held_out(config.data, corpus)
        return corpus
    pairs = prepare_pairs(config.data, base, known)
    store_pairs(pairs, run_dir / _PAIRS_FILE)
    return pairs


def open_data(
    config: LanguageModelConfig | EncoderDecoderConfig, run_dir: Path
) -> Corpus | PairCorpus:
    """What `prepare_data` left; the files are not looked at. Raises ConfigError."""
    if isinstance(config, LanguageModelConfig):
        return corpora.load(run_dir / _CORPUS_FOLDER)
    return load_pairs(config.data, run_dir / _PAIRS_FILE)


def describe_data(
    config: LanguageModelConfig | EncoderDecoderConfig, data: Corpus | PairCorpus
) -> str:
    """A line on what there is to train on."""
    # What was read first, and what became of it last.
    names = sorted(data.counts, key=lambda name: (name in _PURPOSES) - (name == "read"))
    counts = ", ".join(f"{data.counts[name]:,} {_counted(name, data.counts)}" for name in names)
    if isinstance(data, PairCorpus):
        tokens = f"{len(data.source)} source tokens, {len(data.target)} target tokens"
        return f"{config.name}: pairs: {counts}; {tokens}"
    line = isinstance(config, LanguageModelConfig) and config.data.documents == "line"
    splits = (
        f"{split.chars:,} characters to {purpose}" + (f" ({split.documents:,} lines)" * line)
        for split, purpose in ((data.train, "train"), (data.valid, "validate"), (data.test, "test"))
    )
    read = f" {counts};" if counts else ""
    return f"{config.name}:{read} {', '.join(splits)}; {len(data.vocab)} tokens"


_PURPOSES = {"train": "to train", "valid": "to validate", "test": "to test"}


def _counted(name: str, counts: Mapping[str, int]) -> str:
    """What was counted: `dropped: empty` is `dropped (empty)`."""
    if name in _PURPOSES:
        return _PURPOSES[name]
    if counts[name] == 1 and name in {"files", "lines"}:
        return name[:-1]
    what, colon, why = name.partition(": ")
    return f"{what} ({why})" if colon else name


def train_run(
    config: LanguageModelConfig | EncoderDecoderConfig,
    config_path: Path,
    run_dir: Path,
    *,
    resume: bool,
    say: Say,
    init_from: Path | None = None,
) -> Measured:
    """Train to the end, and measure. Raises Stopped, TrainingError and ConfigError.

    `init_from` wins over the configuration's. To resume takes the prepared data alone; where the
    files are there as well, they must be those.
    """
    base = config_path.resolve().parent
    start = None
    if resume:
        data = open_data(config, run_dir)
        _check_text(config, base, data.sha256, say)
    else:
        start = _starting_point(config, base, init_from)
        data = prepare_data(config, base, run_dir, start)
    say(describe_data(config, data))
    task = open_task(config, data)
    if start is not None:
        start.load_into(task.model)
        say(f"it starts from the weights of {start.name}")
    parent = start.record if start is not None else None
    trainer: Trainer[Any] = Trainer(config, task, run_dir, parent=parent)
    if resume:
        trainer.resume()
    # Only now: a configuration that is not this run's has been refused.
    if config_path.resolve() != (run_dir / CONFIG_FILE).resolve():
        (run_dir / CONFIG_FILE).write_bytes(config_path.read_bytes())
    valid = trainer.run(resumed=resume)
    say(f"best step {trainer.best_step}; {trainer.seconds:.0f} s of training and evaluation")
    say(f"valid: {valid.line}")
    if trainer.step < config.training.steps:
        waited = trainer.evaluations_since_best
        say(
            f"ended after step {trainer.step}: {waited} evaluations without a better one (patience)"
        )
    return _measure(run_dir, data)


def _measure(run_dir: Path, data: Corpus | PairCorpus) -> Measured:
    """Measure a run's best weights and its floors, and write METRICS_FILE."""
    config, step = _best(run_dir)
    found: Measured
    if isinstance(config, EncoderDecoderConfig) and isinstance(data, PairCorpus):
        _, pair_model, _, _, _ = load_best_pairs(run_dir)
        task = EncoderDecoderTask(config, data)
        try:
            found = Measured(step, "", 0, [], measure_pairs(config, task, pair_model))
        finally:
            task.close()
    elif isinstance(config, LanguageModelConfig) and isinstance(data, Corpus):
        _, model, _ = load_best(run_dir)
        name, held_out = held_out_split(data)
        score = evaluate(model, held_out, torch.device("cpu"))
        measurements = [
            measurement(f"{config.name} (PyTorch)", "model", score),
            *measure_baselines(data.train, held_out, len(data.vocab), config.baselines, score),
        ]
        found = Measured(step, name, held_out.chars, measurements, [])
    else:
        raise TypeError(type(data))
    document: dict[str, Any] = {"step": step}
    if found.pairs:
        document["pairs"] = [x.model_dump() for x in found.pairs]
    else:
        document["split"] = found.split
        document["measurements"] = [x.model_dump() for x in found.measurements]
    (run_dir / METRICS_FILE).write_text(json.dumps(document, indent=2) + "\n")
    return found


def export_run(run_dir: Path, models_dir: Path, *, name: str | None = None) -> Path:
    """Write a run's best weights as a bundle, wherever the run was stopped.

    Raises ExportError, and nothing is written.
    """
    config, step = _best(run_dir)
    data = open_data(config, run_dir)
    if not _is_measured(run_dir, step):
        _measure(run_dir, data)
    if isinstance(data, PairCorpus):
        return encoder_decoder.export(run_dir, data, models_dir, name=name)
    return language_model.export(run_dir, data, models_dir, name=name)


def is_pairs(run_dir: Path) -> bool:
    """Whether a run's weights are an encoder-decoder's."""
    return isinstance(_best(run_dir)[0], EncoderDecoderConfig)


def _best(run_dir: Path) -> tuple[LanguageModelConfig | EncoderDecoderConfig, int]:
    record = _best_record(run_dir)
    return parse_config(record["config"]), record["step"]


def _best_record(run_dir: Path) -> dict[str, Any]:
    if not (run_dir / LAST).exists() and not (run_dir / BEST).exists():
        raise ExportError(f"{run_dir}: there is no run in this folder")
    if not (run_dir / BEST).exists():
        raise ExportError(
            f"{run_dir}: stopped before its first evaluation, so there are no weights to use yet; "
            f"go on with `python -m training train {run_dir} --resume`"
        )
    return checkpoint.read_record(run_dir / BEST)


def _is_measured(run_dir: Path, step: int) -> bool:
    """Whether METRICS_FILE is of these weights; a run that was stopped or went on has none."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return False
    document = json.loads(path.read_text())
    return isinstance(document, dict) and document.get("step") == step


def _starting_point(
    config: LanguageModelConfig | EncoderDecoderConfig, base: Path, init_from: Path | None
) -> StartingPoint | None:
    if init_from is None and config.training.init_from is not None:
        init_from = base / Path(config.training.init_from).expanduser()
    if init_from is None:
        return None
    start = open_starting_point(init_from)
    start.check(config)
    return start


def open_task(
    config: LanguageModelConfig | EncoderDecoderConfig, data: Corpus | PairCorpus
) -> Task[Any]:
    """What is trained on the data. Raises TrainingError."""
    if isinstance(config, EncoderDecoderConfig) and isinstance(data, PairCorpus):
        return EncoderDecoderTask(config, data)
    if isinstance(config, LanguageModelConfig) and isinstance(data, Corpus):
        return LanguageModelTask(config, data)
    raise TypeError(type(data))


def _check_text(
    config: LanguageModelConfig | EncoderDecoderConfig, base: Path, sha256: str, say: Say
) -> None:
    """Raise TrainingError where the files are there and are not those that were prepared."""
    try:
        if isinstance(config, LanguageModelConfig):
            found = corpora.input_digest(config.data, base)
        else:
            found = pair_input_digest(config.data, base)
    except ConfigError:
        # Gone, or this is another machine: the prepared data are what counts.
        say("the files are not all there, so they are not compared; the run has its own copy")
        return
    if found != sha256:
        raise TrainingError(
            "data.files: the text has changed since the run began; put the old one back, or train "
            "the new one as a run of its own (--run)"
        )
