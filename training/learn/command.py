"""`python -m training learn`: look, choose, measure, train, export, say what it is worth."""

import argparse
import glob
import json
import os
import re
import shlex
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.bundle.encoder_decoder import EncoderDecoderManifest
from service.bundle.language_model import LanguageModelManifest
from service.bundle.store import read_bundle
from training.config import (
    NAME_PATTERN,
    ConfigError,
    EncoderDecoderConfig,
    LanguageModelConfig,
    load_config,
    parse_config,
)
from training.data.corpus import Corpus
from training.data.pairs import ALIGNED, PairCorpus
from training.experiments.run import CONFIG_FILE, export_run, open_data, prepare_data, train_run
from training.learn import words
from training.learn.calibrate import Data, Trial, measure, try_out
from training.learn.document import render
from training.learn.recipe import (
    Plan,
    Speed,
    check_enough,
    plan,
    shortened,
    steps_for,
    too_slow,
    trial_steps,
    with_steps,
)
from training.learn.recognize import KINDS, Sight, expand, recognize
from training.loop.checkpoint import LAST
from training.loop.cpus import usable_cpus
from training.loop.trainer import Stopped

_MAX_REPLICAS = 4
_SMALLER_SIZES = 4  # tried where the time is short

Say = Callable[[str], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="or a folder of texts")
    parser.add_argument("--name", help="of the model (default: from the file's name)")
    parser.add_argument(
        "--minutes", type=_minutes, default=10.0, help="to train, about (default: 10)"
    )
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles")
    parser.add_argument("--run", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument(
        "--as", dest="kind", choices=KINDS, help="what the files hold, where that is seen wrongly"
    )
    parser.add_argument(
        "--valid", type=Path, nargs="+", default=[], metavar="FILE", help="to choose weights by"
    )
    parser.add_argument(
        "--test", type=Path, nargs="+", default=[], metavar="FILE", help="to test on"
    )
    parser.add_argument(
        "--split",
        choices=("position",),
        help="hold out the last tenth, as benchmarks do, and nothing to test on",
    )
    parser.add_argument("--steps", type=int, help="exactly so many, whatever time they take")
    parser.add_argument(
        "--dry-run", action="store_true", help="write the configuration and stop; nothing is tried"
    )
    parser.add_argument(
        "--replace", action="store_true", help="train anew in the place of a model of that name"
    )
    parser.add_argument("--serve", action="store_true", help="then serve the folder of models")


def _minutes(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 100_000:
        raise argparse.ArgumentTypeError("a number of minutes above 0")
    return value


def learn(options: argparse.Namespace, say: Say) -> int:
    """From files to a bundle and the request that uses it; the exit status.

    Raises ConfigError and what training and export raise.
    """
    name = _name(options)
    run_dir = options.run = options.run or Path("runs") / name
    bundle = options.models / name
    if bundle.exists() and not (options.dry_run or options.replace):
        raise ConfigError(
            f"{bundle}: there is a model of that name; --replace (REPLACE=1 for make) trains anew "
            "in its place, --name (NAME=) calls the new one otherwise"
        )
    config_path = run_dir / CONFIG_FILE
    again = (run_dir / LAST).exists()
    if again and options.dry_run:
        say(f"{run_dir}: there is a run already; its configuration is {config_path}.")
        return 0
    if again and options.replace:
        shutil.rmtree(run_dir)
        again = False
    if again:
        config = load_config(config_path)
        _check_same_files(config, options, run_dir)
        say(f"{run_dir}: a run with these files; it goes on")
        data = open_data(config, run_dir)
    else:
        config, data, text = _choose(options, name, run_dir, say)
        config_path.write_text(text, encoding="utf-8")
        say(f"The configuration is {config_path}.")
        if options.dry_run:
            say(f"Next: python -m training train {shlex.quote(str(config_path))}")
            return 0
    try:
        train_run(config, config_path, run_dir, resume=again, say=say)
    except Stopped as stopped:
        say(f"Stopped; what was learned is in {run_dir}, and the same command goes on with it.")
        return 128 + stopped.signal_number
    export_run(run_dir, options.models, name=name)
    manifest = read_bundle(bundle).manifest
    serve = [sys.executable, "-m", "service", "--models-dir", str(options.models)]
    say("\n".join(["", *figures(manifest, config), ""]))
    if not options.serve:
        say(f"To serve it: {shlex.join([_short(serve[0]), *serve[1:]])}")
        say("A server that watches the folder, as `make serve` does, has it already. Then ask it:")
    say("\n".join(request(manifest, data)))
    if options.serve:
        os.execv(serve[0], serve)  # noqa: S606  # the same interpreter, with arguments of ours
    return 0


def _short(executable: str) -> str:
    """A path from here where it lies below."""
    path = Path(executable)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _name(options: argparse.Namespace) -> str:
    """The model's name: given, or made of the first file's."""
    if options.name is not None:
        if not re.fullmatch(NAME_PATTERN, options.name):
            raise ConfigError(
                "--name: small letters, digits, `.`, `_` and `-`, with a letter or a digit first"
            )
        return str(options.name)
    stem = options.files[0].expanduser().resolve().stem
    # `names.utf8.txt` is what the hint for other encodings writes.
    plain = (
        unicodedata.normalize("NFKD", stem.removesuffix(".utf8"))
        .encode("ascii", "ignore")
        .decode()
        .lower()
    )
    return re.sub(r"[^a-z0-9._-]+", "-", plain).strip("._-")[:64] or "model"


def _check_same_files(
    config: LanguageModelConfig | EncoderDecoderConfig, options: argparse.Namespace, run_dir: Path
) -> None:
    """Raises ConfigError for a run's folder whose configuration names other files."""
    config_files = {*config.data.files, *config.data.train_files}
    wanted = _patterns(expand(options.files))
    if config_files not in ({*wanted}, {ALIGNED.join(wanted)}):
        raise ConfigError(
            f"{run_dir}: holds a run with other files; name another folder with --run, "
            "or another model with --name"
        )


# --- choosing -----------------------------------------------------------------------------------


def _choose(
    options: argparse.Namespace, name: str, run_dir: Path, say: Say
) -> tuple[LanguageModelConfig | EncoderDecoderConfig, Data, str]:
    """The configuration for what is seen, the prepared data, and the TOML's text."""
    sight = recognize(options.files, options.kind)
    say(words.listing(_title(sight), _seen(sight, options.kind)))
    check_enough(sight)
    run_dir.mkdir(parents=True, exist_ok=True)
    data: Data | None = None
    held_out = 0.0 if options.valid and options.test else 0.1 if options.split else None
    size = 0
    speed: Speed | None = None
    while True:
        chosen = plan(sight, size=size, replicas=_replicas(), held_out=held_out)
        document = _document(options, sight, chosen, name)
        trial = with_steps(chosen, 1000, 1000)
        config = _parsed({**document, "training": trial})
        data = data or prepare_data(config, run_dir, run_dir)
        if options.steps:
            break
        speed = measure(config, data)
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
            # Measured for longer, and so better.
            speed = replace(speed, step_s=best.step_s)
        steps, eval_every = steps_for(chosen, speed, minutes)
        if best is not None and short is not None:
            steps = shortened(steps, short, best.step)
            eval_every = max(1, steps // 20)
    document["training"] = with_steps(chosen, steps, eval_every)
    notes = _notes(chosen, speed, steps, eval_every, size)
    if tried:
        notes.insert(len(chosen.reasons), tried)
    say(words.listing("What is chosen:", notes))
    header = [f"Chosen by `python -m training learn` for {_title(sight)}", *notes]
    return _parsed(document), data, render(header, document)


def _tried(
    document: dict[str, Any], chosen: Plan, data: Data, *, speed: Speed, steps: int, say: Say
) -> tuple[dict[str, Any], Trial, str]:
    """The model's options that do best in so many steps, how well, and what was tried."""
    dropouts = [x for x in chosen.model if x.startswith("dropout") or x == "weight_drop"]
    plain = {x: y for x, y in chosen.model.items() if x not in dropouts}
    models = [chosen.model, *({**plain, **variant} for variant in chosen.variants)]
    training = with_steps(chosen, steps, max(1, steps // 20))
    documents = [{**document, "model": model, "training": training} for model in models]
    about = words.seconds(len(models) * steps * speed.step_s)
    say(f"Trying {len(models)} amounts of dropout, {steps:,} steps each: about {about} or less.")
    trials = []
    for model, each in zip(models, documents, strict=True):
        trials.append(try_out(_parsed(each), data))
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


def _title(sight: Sight) -> str:
    names = [path.name for path in sight.files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _seen(sight: Sight, kind: str | None) -> list[str]:
    what = {"lines": "lines of text", "file": "files", "pairs": "pairs"}[sight.kind]
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
    if sight.hint:
        lines.append(sight.hint)
    elif kind is None and sight.kind != "pairs":
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
        f"{speed.evaluation_s:.1f} s an evaluation, so about {words.seconds(total_s)}"
    )
    return notes


def _document(options: argparse.Namespace, sight: Sight, chosen: Plan, name: str) -> dict[str, Any]:
    """The configuration, but for training."""
    data: dict[str, Any] = {}
    held_out = {"valid_files": _patterns(options.valid), "test_files": _patterns(options.test)}
    held_out = {option: patterns for option, patterns in held_out.items() if patterns}
    files = [ALIGNED.join(_patterns(sight.files))] if sight.aligned else _patterns(sight.files)
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
        data |= {"split_by": "position", "valid_fraction": 0.1, "test_fraction": 0.0}
    data["title"] = _title(sight)
    document: dict[str, Any] = {"name": name}
    if sight.kind == "pairs":
        document = {"task": chosen.task, **document}
    return {**document, "data": {**data, **chosen.sides}, "model": chosen.model}


def _patterns(paths: Sequence[Path]) -> list[str]:
    return [glob.escape(str(path.expanduser().resolve())) for path in paths]


def _parsed(document: dict[str, Any]) -> LanguageModelConfig | EncoderDecoderConfig:
    return parse_config(json.loads(json.dumps(document)))


# --- what it is worth, and how it is used ---------------------------------------------------------


def figures(
    manifest: LanguageModelManifest | EncoderDecoderManifest,
    config: LanguageModelConfig | EncoderDecoderConfig,
) -> list[str]:
    """What the model is worth on held-out data, in words."""
    if isinstance(manifest, EncoderDecoderManifest):
        return words.pair_figures(manifest)
    lines = isinstance(config, LanguageModelConfig) and config.data.documents == "line"
    return words.language_model_figures(manifest, "lines" if lines else "text")


def request(manifest: LanguageModelManifest | EncoderDecoderManifest, data: Data) -> list[str]:
    """The requests that use the model, with an example from its held-out data."""
    name = manifest.name
    if isinstance(data, PairCorpus):
        return [words.curl("/translate", {"model": name, "source": _middle_source(data)})]
    text = _held_out_text(data)
    prompt = text[: _prompt_length(text)]
    body = {"model": name, "prompt": prompt, "max_tokens": 100, "n": 3, "temperature": 0.7}
    return [
        words.curl("/score", {"model": name, "text": text}),
        words.curl("/generate", body),
    ]


def _held_out_text(corpus: Corpus) -> str:
    """The first line of held-out text that has a few words, or is a whole short text."""
    split = corpus.test if corpus.test.chars else corpus.valid
    tokens = corpus.vocab.tokens
    text = "".join(tokens[i] if i > 3 else "" for i in split.ids[int(split.starts[0]) :][:400])
    first = [tokens[i] for i in split.ids[1 : int(split.starts[1]) - 1][:400]]
    lines = [line.strip() for line in "".join(first).split("\n")]
    # The first one can have begun before the held-out part.
    whole = [line for line in lines[1:] if len(line) >= 20] or [line for line in lines if line]
    return whole[0][:80] if whole else text[:80]


def _prompt_length(text: str) -> int:
    """A beginning: some words of a sentence, a letter or two of a name."""
    blank = text.find(" ", 8)
    return blank + 1 if 0 < blank < len(text) - 1 else max(1, len(text) // 3)


def _middle_source(corpus: PairCorpus) -> str:
    sources = sorted(corpus.held_out[0].references, key=len)
    return sources[len(sources) // 2]
