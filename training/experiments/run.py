"""A run: trained, measured and exported from its folder alone.

The folder holds the configuration, the prepared data, the checkpoints, the log and the figures, so
it can be moved to another machine, and the text that it was made from can be deleted.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.config import AnyConfig, ConfigError, parse_config, read_document
from training.config_changes import NO_CHANGES, Changes, as_word, changed, render
from training.errors import ExportError
from training.experiments.company import offer
from training.experiments.experiment import NOTHING_KNOWN, Data, Experiment, Measured
from training.experiments.kinds import experiment_of
from training.experiments.starting_point import StartingPoint, open_starting_point
from training.loop import checkpoint
from training.loop.checkpoint import BEST, LAST
from training.loop.task import TrainingError

CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.json"

Say = Callable[[str], None]


def train_run(
    config: AnyConfig,
    config_path: Path,
    run_dir: Path,
    *,
    resume: bool,
    say: Say,
    init_from: Path | None = None,
    changes: Changes = NO_CHANGES,
) -> Measured:
    """Train to the end, and measure. Raises Stopped, TrainingError and ConfigError.

    `init_from` overrides the configuration's; `changes` are those that were made to the file's
    configuration. Resuming needs only the prepared data; the files, if they are still there, must
    be the same.
    """
    experiment = experiment_of(config)
    base = config_path.resolve().parent
    start = None
    if resume:
        data = experiment.open(run_dir)
        _check_files(experiment, base, data.sha256, say)
    else:
        start = _starting_point(experiment, base, init_from)
        data = experiment.prepare(
            base, run_dir, start.known if start is not None else NOTHING_KNOWN
        )
    say(experiment.describe(data))
    offer(experiment, run_dir, resume=resume)
    training = experiment.training(run_dir, data, start=start, resume=resume)
    if start is not None:
        say(f"it starts from the weights of {start.name}")
    # Only now: a configuration that is not this run's has been refused.
    _keep_configuration(config_path, run_dir / CONFIG_FILE, changes)
    for line in training.run():
        say(line)
    return _measure(experiment, run_dir, data)


def _keep_configuration(path: Path, copy: Path, changes: Changes) -> None:
    if changes:
        words = (f"--set {as_word(key, value)}" for key, value in changes.items())
        note = f"{path} {' '.join(words)}"
        copy.write_text(render(note, changed(read_document(path), changes)), encoding="utf-8")
    elif path.resolve() != copy.resolve():
        copy.write_bytes(path.read_bytes())


def holds_run(run_dir: Path) -> bool:
    """Whether a run was begun in the folder."""
    return (run_dir / LAST).exists() or (run_dir / BEST).exists()


def export_run(
    run_dir: Path, models_dir: Path, *, name: str | None = None, others: Sequence[Path] = ()
) -> Path:
    """Write a run's best weights as a bundle, mixed with those of `others`.

    It does not matter where the runs were stopped. Raises ExportError, and nothing is written.
    """
    experiment = open_run(run_dir)
    for other in others:
        noun = open_run(other).noun
        if noun != experiment.noun:
            raise ExportError(f"{other}: {noun}, which cannot be mixed with {experiment.noun}")
    data = experiment.open(run_dir)
    if not _is_measured(run_dir):
        _measure(experiment, run_dir, data)
    return experiment.export(run_dir, data, models_dir, name=name, others=others)


def open_run(run_dir: Path) -> Experiment[Any]:
    """The experiment that a run's best weights come from. Raises ExportError where it has none."""
    return experiment_of(parse_config(_best_record(run_dir)["config"]))


def _measure(experiment: Experiment[Data], run_dir: Path, data: Data) -> Measured:
    """Measure a run's best weights and its floors, and write METRICS_FILE."""
    measured = experiment.measure(run_dir, data)
    document = {"step": _best_record(run_dir)["step"], **measured.document}
    (run_dir / METRICS_FILE).write_text(json.dumps(document, indent=2) + "\n")
    return measured


def _is_measured(run_dir: Path) -> bool:
    """Whether METRICS_FILE belongs to the best weights, which a stopped or resumed run may lack."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return False
    document = json.loads(path.read_text())
    step = _best_record(run_dir)["step"]
    return isinstance(document, dict) and document.get("step") == step


def _best_record(run_dir: Path) -> dict[str, Any]:
    if not holds_run(run_dir):
        raise ExportError(f"{run_dir}: there is no run in this folder")
    if not (run_dir / BEST).exists():
        raise ExportError(
            f"{run_dir}: stopped before its first evaluation, so there are no weights to use yet; "
            f"continue with `python -m training train {run_dir} --resume`"
        )
    return checkpoint.read_record(run_dir / BEST)


def _starting_point(
    experiment: Experiment[Any], base: Path, init_from: Path | None
) -> StartingPoint | None:
    own = experiment.init_from()
    if init_from is None and own is not None:
        init_from = base / Path(own).expanduser()
    if init_from is None:
        return None
    start = open_starting_point(init_from)
    start.check(experiment.config)
    return start


def _check_files(experiment: Experiment[Any], base: Path, sha256: str, say: Say) -> None:
    """Raise TrainingError where the files exist and are not those that were prepared."""
    try:
        found = experiment.input_digest(base)
    except ConfigError:
        # They are gone, or this is another machine: the prepared data count.
        say("the files are not all there, so they are not compared; the run has its own copy")
        return
    if found != sha256:
        raise TrainingError(
            "data.files: the text has changed since the run began; put the old one back, or train "
            "the new one as a run of its own (--run)"
        )
