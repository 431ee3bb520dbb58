"""`python -m training learn`: look, choose, measure, train, export, report."""

import argparse
import os
import re
import shlex
import shutil
import sys
import unicodedata
from pathlib import Path

from service.bundle.store import read_bundle
from training.config import NAME_PATTERN, AnyConfig, ConfigError, load_config
from training.data.pairs import ALIGNED
from training.experiments.kinds import experiment_of
from training.experiments.run import CONFIG_FILE, Say, export_run, train_run
from training.learn import words
from training.learn.choose import choose, patterns
from training.learn.recognize import expand
from training.learn.sight import KINDS
from training.loop.checkpoint import LAST
from training.loop.trainer import Stopped


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="or a folder of texts")
    parser.add_argument("--name", help="of the model (default: from the file's name)")
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=10.0,
        help="to train, about (default: 10); the export comes on top",
    )
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of bundles")
    parser.add_argument("--run", type=Path, help="the run's folder (default: runs/NAME)")
    parser.add_argument(
        "--as", dest="kind", choices=KINDS, help="what the files hold, where the guess is wrong"
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
        help="hold out the last tenth, as benchmarks do, without a test split",
    )
    parser.add_argument("--steps", type=int, help="exactly so many, however long they take")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write the configuration and stop; nothing is trained",
    )
    parser.add_argument("--replace", action="store_true", help="replace a model of that name")
    parser.add_argument("--serve", action="store_true", help="then serve the folder of models")


def _minutes(text: str) -> float:
    value = float(text)
    if not 0.0 < value <= 100_000:
        raise argparse.ArgumentTypeError("a number of minutes above 0")
    return value


def learn(options: argparse.Namespace, say: Say) -> int:
    """From files to a bundle and the request that uses it. Returns the exit status.

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
        data = experiment_of(config).open(run_dir)
    else:
        chosen = choose(options, name, run_dir, say)
        config, data = chosen.config, chosen.data
        config_path.write_text(chosen.text, encoding="utf-8")
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
    experiment = experiment_of(config)
    say("\n".join(["", *experiment.figures(manifest), ""]))
    if not options.serve:
        say(
            "A server that watches this folder, as `make serve` does, has the model within seconds."
        )
        say("Otherwise serve it from a second terminal:")
        say(f"  {shlex.join([_short(serve[0]), *serve[1:]])}")
        say("Then ask it:")
    say("\n".join(words.curl(*request) for request in experiment.requests(manifest, data)))
    if options.serve:
        os.execv(serve[0], serve)  # noqa: S606  # the same interpreter, with arguments of ours
    return 0


def _short(executable: str) -> str:
    """A path relative to the working folder, if it is below it."""
    path = Path(executable)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _name(options: argparse.Namespace) -> str:
    """The model's name: as given, or made from the first file's name."""
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


def _check_same_files(config: AnyConfig, options: argparse.Namespace, run_dir: Path) -> None:
    """Raises ConfigError where the run in the folder has other files."""
    config_files = {*config.data.files, *config.data.train_files}
    wanted = patterns(expand(options.files))
    folders = patterns(options.files)  # that hold a folder for each label
    if config_files not in ({*wanted}, {ALIGNED.join(wanted)}, {*folders}):
        raise ConfigError(
            f"{run_dir}: holds a run with other files; name another folder with --run, "
            "or another model with --name"
        )
