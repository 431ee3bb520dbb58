"""The configuration for a person's files: what is seen, chosen, measured and tried."""

import argparse
import glob
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.config import DEFAULT_TASK, AnyConfig, ConfigError, parse_config
from training.data.pairs import ALIGNED
from training.experiments.experiment import TrainedExperiment
from training.experiments.kinds import trained_experiment_of
from training.experiments.run import Say
from training.learn import words
from training.learn.calibrate import Trial, measure, try_out
from training.learn.document import render
from training.learn.plan import (
    Plan,
    Speed,
    shortened,
    steps_for,
    too_slow,
    trial_steps,
    with_steps,
)
from training.learn.recipe import check_enough, plan
from training.learn.recognize import recognize
from training.learn.sight import Kind, Sight
from training.loop.cpus import usable_cpus

_MAX_REPLICAS = 4
_SMALLER_SIZES = 4  # tried where the time is short


@dataclass(frozen=True, slots=True)
class Chosen:
    """A configuration, and the data that it is for."""

    config: AnyConfig
    data: Any  # as the configuration's experiment has prepared it
    text: str  # the configuration as TOML, with the reasons as comments


def choose(options: argparse.Namespace, name: str, run_dir: Path, say: Say) -> Chosen:
    """Look at the files of `options`, prepare them in `run_dir` and choose for them.

    Raises ConfigError for files that cannot be read, or hold too little.
    """
    sight = recognize(options.files, options.kind)
    say(words.listing(_title(sight), _seen(sight, options.kind)))
    check_enough(sight)
    run_dir.mkdir(parents=True, exist_ok=True)
    data: Any = None
    held_out = 0.0 if options.valid and options.test else 0.1 if options.split else None
    size = 0
    speed: Speed | None = None
    while True:
        chosen = plan(sight, size=size, replicas=_replicas(), held_out=held_out)
        document = _document(options, sight, chosen, name)
        experiment = _experiment({**document, "training": with_steps(chosen, 1000, 1000)})
        if data is None:
            data = experiment.prepare(run_dir, run_dir)
        if options.steps:
            break
        speed = measure(experiment, data)
        if size == _SMALLER_SIZES or not too_slow(chosen, speed, options.minutes):
            break
        size += 1
    minutes, tried = options.minutes, ""
    if speed is None:
        steps, eval_every = options.steps, max(10, options.steps // 20)
    else:
        started = time.monotonic()
        short = None if options.dry_run else trial_steps(chosen, speed, minutes)
        best = None
        if short is not None:
            document["model"], best, tried = _tried(
                document, chosen, data, speed=speed, steps=short, say=say
            )
            minutes = max(minutes - (time.monotonic() - started) / 60, 0.3 * minutes)
            # From many more steps, so more exact.
            speed = replace(speed, step_s=best.step_s)
        steps, eval_every = steps_for(chosen, speed, minutes)
        if best is not None and short is not None:
            steps = shortened(steps, short, best.step)
            eval_every = max(1, steps // 20)
    document |= {"training": with_steps(chosen, steps, eval_every), **chosen.added}
    notes = _notes(chosen, speed, steps, eval_every, size)
    if tried:
        notes.insert(len(chosen.reasons), tried)
    say(words.listing("What is chosen:", notes))
    header = [f"Chosen by `python -m training learn` for {_title(sight)}", *notes]
    return Chosen(_experiment(document).config, data, render(header, document))


def _tried(
    document: dict[str, Any], chosen: Plan, data: Any, *, speed: Speed, steps: int, say: Say
) -> tuple[dict[str, Any], Trial, str]:
    """The model options that do best in so many steps, their result, and what was tried."""
    dropouts = [x for x in chosen.model if x.startswith("dropout") or x == "weight_drop"]
    plain = {x: y for x, y in chosen.model.items() if x not in dropouts}
    models = [chosen.model, *({**plain, **variant} for variant in chosen.variants)]
    training = with_steps(chosen, steps, max(1, steps // 20))
    documents = [{**document, "model": model, "training": training} for model in models]
    about = words.seconds(len(models) * steps * speed.step_s)
    say(f"Trying {len(models)} amounts of dropout, {steps:,} steps each: about {about} or less.")
    trials = []
    for model, each in zip(models, documents, strict=True):
        trials.append(try_out(_experiment(each), data))
        say(f"  {model['dropout_output']}: loss {trials[-1].loss:.3f} at step {trials[-1].step:,}")
    best = min(range(len(trials)), key=lambda i: trials[i].loss)
    found = ", ".join(
        f"{model['dropout_output']} gave {trial.loss:.3f} at step {trial.step:,}"
        for model, trial in zip(models, trials, strict=True)
    )
    said = f"dropouts were tried for {steps:,} steps, and their losses compared: {found}"
    return models[best], trials[best], said


def _replicas() -> int:
    return max(x for x in (1, 2, _MAX_REPLICAS) if x <= usable_cpus())


_TEXTS: Mapping[Kind, str] = {
    "lines": "lines of text",
    "file": "files",
    "pairs": "pairs",
    "labels": "labelled texts",
    "tags": "labelled texts",
    "accents": "texts",
}


def _title(sight: Sight) -> str:
    names = [path.name for path in sight.files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _seen(sight: Sight, kind: str | None) -> list[str]:
    what = _TEXTS[sight.kind]
    if sight.kind == "file" and len(sight.files) == 1:
        what = "file"
    lines = [
        f"{sight.texts:,} {what}, {sight.chars:,} characters, {sight.characters:,} different ones",
        sight.reason,
    ]
    for label, side in (("source", sight.source), ("target", sight.target)):
        if side is not None:
            kinds = {"character": "characters", "whitespace": "symbols", "bpe": "subwords"}
            lines.append(f"{label}: {kinds[side.tokenization]} ({side.reason})")
    if sight.hint and kind is None:
        lines.append(sight.hint)
    elif kind is None and sight.kind in {"lines", "file"}:
        other = "file" if sight.kind == "lines" else "lines"
        lines.append(f"if that is wrong, say --as {other}")
    return lines


def _notes(chosen: Plan, speed: Speed | None, steps: int, eval_every: int, size: int) -> list[str]:
    notes = list(chosen.reasons)
    if size:
        notes.append("a smaller model than the text is worth, since the time is short")
    if speed is None:
        notes.append(f"{steps:,} steps, as you said")
        return notes
    total_s = steps * speed.step_s + (steps // eval_every + 1) * speed.evaluation_s
    notes.append(
        f"{steps:,} steps: this machine takes {1000 * speed.step_s:.0f} ms a step and "
        f"{speed.evaluation_s:.1f} s an evaluation, so about {words.seconds(total_s)} of training; "
        "baselines and export come on top"
    )
    return notes


def _document(options: argparse.Namespace, sight: Sight, chosen: Plan, name: str) -> dict[str, Any]:
    """The configuration, but for training."""
    data: dict[str, Any] = {}
    held_out = {"valid_files": patterns(options.valid), "test_files": patterns(options.test)}
    held_out = {option: patterns for option, patterns in held_out.items() if patterns}
    files = [ALIGNED.join(patterns(sight.files))] if sight.aligned else patterns(sight.files)
    # What no file was named for is held out of the others.
    data["train_files" if len(held_out) == 2 else "files"] = files
    data |= held_out
    fractions = {f"{split}_fraction" for split in ("valid", "test") if f"{split}_files" in held_out}
    for option, value in chosen.data.items():
        if option not in fractions:
            data[option] = value
        elif len(held_out) == 1:
            data[option] = 0.0
    if options.split == "position":
        if sight.kind not in {"lines", "file"}:
            raise ConfigError("--split: only text is cut by position; name files with --test")
        data |= {"split_by": "position", "valid_fraction": 0.1, "test_fraction": 0.0}
    data["title"] = _title(sight)
    document: dict[str, Any] = {"name": name}
    if chosen.task != DEFAULT_TASK:
        document = {"task": chosen.task, **document}
    return {**document, "data": {**data, **chosen.sides}, "model": chosen.model}


def patterns(paths: Sequence[Path]) -> list[str]:
    """The paths as a configuration names files, whatever characters are in them."""
    return [glob.escape(str(path.expanduser().resolve())) for path in paths]


def _experiment(document: dict[str, Any]) -> TrainedExperiment[Any]:
    return trained_experiment_of(parse_config(json.loads(json.dumps(document))))
