"""`python -m training`: train, evaluate, use, export; learn does it all."""

import os

# Before torch is imported: spinning threads slow a shared machine down 10 to 45 times.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Before onnxruntime is imported: it reports to its makers what it runs.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import argparse
import ctypes
import math
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from service.bundle.files import BundleError
from service.bundle.store import read_bundle
from training import sweep_command
from training.config import NAME_PATTERN, ConfigError, load_config
from training.config_changes import read_single_changes
from training.errors import ExportError
from training.experiments.company import check_divides, follow_run
from training.experiments.confidence import add_confidence, draw_bundles
from training.experiments.encoder_decoder import TranslateOptions
from training.experiments.infill import DEFAULT_BLANK, InfillOptions
from training.experiments.kinds import experiment_of, trained_experiment_of
from training.experiments.labels import LabelOptions
from training.experiments.run import CONFIG_FILE, export_run, holds_run, open_run, train_run
from training.experiments.text import SampleOptions
from training.learn.command import add_options, learn
from training.loop import processes
from training.loop.checkpoint import LAST, CheckpointError
from training.loop.processes import Job, LostContact, Order
from training.loop.task import TrainingError
from training.loop.trainer import Stopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 when done, 1 on an error, 2 on bad usage, 128 + n on signal n."""
    options = _parser().parse_args(arguments)
    if processes.launched() and options.command is not _train:
        sys.stderr.write("error: torchrun starts several processes, which only `train` can use\n")
        return 2
    # One line for people, without the place in the code.
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    keep_freed_memory()
    try:
        return int(options.command(options) or 0)
    except KeyboardInterrupt:  # not while training, which saves first
        sys.stderr.write("stopped\n")
        return 128 + signal.SIGINT
    except Stopped as stopped:
        _say(
            f"stopped by {stopped}; to continue: python -m training train {options.run} --resume; "
            f"`export {options.run}` takes the best weights so far"
        )
        return 128 + stopped.signal_number
    except BrokenPipeError:
        # Whoever read the lines wants no more; nothing may be flushed at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (
        ConfigError,
        CheckpointError,
        TrainingError,
        ExportError,
        BundleError,
        OSError,  # a file that cannot be read, a full disk
    ) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, because every step frees and allocates the same large blocks.

    To return them to the kernel and fault them in again takes a sixth of a step with 512 units
    (12,500 characters a second instead of 15,400). Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_program(), description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    learning = commands.add_parser("learn", help="turn your files into a model that can be served")
    add_options(learning)
    learning.set_defaults(command=_learn)

    train = commands.add_parser("train", help="train the model of a configuration")
    train.add_argument(
        "config", type=Path, metavar="CONFIG.toml", help="or a run's folder, with --resume"
    )
    train.add_argument("--run", type=Path, help="the run's folder (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    train.add_argument(
        "--init-from", type=Path, metavar="FOLDER", help="start from a run's or a bundle's weights"
    )
    train.add_argument("--device", choices=("cpu", "cuda"), help="instead of training.device")
    train.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=sweep_command.SET_HELP
    )
    train.set_defaults(command=_train)

    sweeping = commands.add_parser("sweep", help="train every combination of given values")
    sweep_command.add_options(sweeping)
    sweeping.set_defaults(command=_sweep)

    evaluating = commands.add_parser("evaluate", help="score a split with a run's best weights")
    evaluating.add_argument("run", type=Path, metavar="RUN")
    evaluating.add_argument("--split", help="default: test, else valid")
    evaluating.set_defaults(command=_evaluate)

    _add_answering(commands)
    _add_confidence(commands)

    exporting = commands.add_parser("export", help="write a run's best weights as a bundle")
    exporting.add_argument("run", type=Path, metavar="RUN")
    exporting.add_argument(
        "others",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="runs to mix in, trained on the same text",
    )
    exporting.add_argument("--models", type=Path, default=Path("models"))
    exporting.add_argument("--name", type=_name, help="default: the configuration's")
    exporting.set_defaults(command=_export)

    baselines = commands.add_parser("baselines", help="measure the floors below a configuration")
    baselines.add_argument("config", type=Path, metavar="CONFIG.toml")
    baselines.add_argument("--run", type=Path, help="the run's folder (default: runs/NAME)")
    baselines.set_defaults(command=_baselines)
    return parser


def _add_answering(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands that use a run's weights, one for each kind of model."""
    sampling = commands.add_parser("sample", help="write text with a run's best weights")
    sampling.add_argument("run", type=Path, metavar="RUN")
    sampling.add_argument("--prompt", default="")
    sampling.add_argument("--max-tokens", type=_natural, default=400)
    sampling.add_argument("--temperature", type=_temperature, default=0.8, help="0 is greedy")
    sampling.add_argument("--seed", type=_natural, default=1)
    sampling.add_argument("--n", type=_positive, default=1, help="texts, each with the next seed")
    sampling.set_defaults(command=_sample)

    translating = commands.add_parser("translate", help="translate with a run's best weights")
    translating.add_argument("run", type=Path, metavar="RUN")
    translating.add_argument("source", nargs="+", metavar="TEXT")
    translating.add_argument("--beam-size", type=_positive, help="default: the configuration's")
    translating.set_defaults(command=_translate)

    filling = commands.add_parser("infill", help="fill blanks with a run's best weights")
    filling.add_argument("run", type=Path, metavar="RUN")
    filling.add_argument("text", nargs="+", metavar="TEXT")
    filling.add_argument("--blank", default=DEFAULT_BLANK, help="marks a blank (default: ___)")
    filling.add_argument("--beam-size", type=_positive, help="default: the configuration's")
    filling.set_defaults(command=_infill)

    classifying = commands.add_parser("classify", help="label texts with a run's best weights")
    classifying.add_argument("run", type=Path, metavar="RUN")
    classifying.add_argument("text", nargs="+", metavar="TEXT")
    classifying.add_argument(
        "--top", type=_positive, default=3, help="most labels for each text (default: 3)"
    )
    classifying.set_defaults(command=_classify)

    tagging = commands.add_parser("tag", help="label characters with a run's best weights")
    tagging.add_argument("run", type=Path, metavar="RUN")
    tagging.add_argument("text", nargs="+", metavar="TEXT")
    tagging.set_defaults(command=_tag)


def _add_confidence(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands about the confidence of translations."""
    fitting = commands.add_parser(
        "confidence", help="fit the confidence of translations, and write it into the bundle"
    )
    fitting.add_argument("bundle", type=Path, metavar="BUNDLE")
    fitting.add_argument(
        "config",
        nargs="?",
        type=Path,
        metavar="CONFIG.toml",
        help="the configuration it was trained with",
    )
    fitting.add_argument(
        "--pairs", nargs="+", type=Path, default=[], metavar="FILE", help="pairs of your own"
    )
    fitting.set_defaults(command=_confidence)

    drawing = commands.add_parser("reliability", help="plot how reliable confidences are")
    drawing.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    drawing.add_argument("--to", type=Path, default=Path("reliability.png"), metavar="FILE.png")
    drawing.set_defaults(command=_reliability)


def _program() -> str:
    """The name that the command was called by: the module's, or that of the script `unroll.py`."""
    return "unroll" if Path(sys.argv[0]).stem == "unroll" else "python -m training"


def _natural(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError("a whole number from 0 to 2^63 - 1")
    return value


def _positive(text: str) -> int:
    if _natural(text) == 0:
        raise argparse.ArgumentTypeError("a whole number from 1 up")
    return int(text)


def _temperature(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError("a number from 0 up")
    return value


def _name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise argparse.ArgumentTypeError(f"it must match {NAME_PATTERN}")
    return text


def _learn(options: argparse.Namespace) -> int:
    return learn(options, _say)


def _train(options: argparse.Namespace) -> int:
    if not processes.launched():
        _lead(options, None)
        return 0
    with processes.joined() as job:
        if processes.rank():
            return _follow()
        try:
            _lead(options, job)
        except Stopped as stopped:
            processes.exchange(Order.END, stopped.signal_number)
            raise
        processes.exchange(Order.END, None)
        return 0


def _follow() -> int:
    """Train on another rank; only rank 0 reports how the run ends."""
    try:
        return follow_run()
    except LostContact:
        return 1


def _lead(options: argparse.Namespace, job: Job | None) -> None:
    """Train; with a `job` of torchrun, as its rank 0."""
    config_path = options.config
    if config_path.is_dir():
        if not options.resume:
            raise ConfigError(f"{config_path}: a folder; to continue the run in it, add --resume")
        options.run = options.run or config_path
        config_path = config_path / CONFIG_FILE
    changes = read_single_changes(options.set)
    config = load_config(config_path, changes)
    if options.device:
        trained = trained_experiment_of(config).config
        changed = trained.training.model_copy(update={"device": options.device})
        config = trained.model_copy(update={"training": changed})
    run_dir = options.run = options.run or Path("runs") / config.name
    check_divides(config)
    if job is not None and job.has_begun():
        # torchrun has restarted the processes.
        options.resume = (run_dir / LAST).exists()
    elif holds_run(run_dir) and not options.resume:
        resumable = "add --resume, or " if (run_dir / LAST).exists() else ""
        raise ConfigError(f"{run_dir}: holds a run; {resumable}name another folder with --run")
    elif options.resume and not holds_run(run_dir):
        raise ConfigError(f"{run_dir}: there is no run to continue; leave out --resume")
    if job is not None:
        job.begin()
    measured = train_run(
        config,
        config_path,
        run_dir,
        resume=options.resume,
        say=_say,
        init_from=options.init_from,
        changes=changes,
    )
    _say(measured.table)
    _say(f"the run is {run_dir}; next: {_program()} export {shlex.quote(str(run_dir))}")


def _sweep(options: argparse.Namespace) -> int:
    return sweep_command.run(options, _say)


def _evaluate(options: argparse.Namespace) -> None:
    _say(open_run(options.run).evaluate(options.run, options.split))


def _sample(options: argparse.Namespace) -> None:
    _answer(
        "sample",
        options.run,
        SampleOptions(
            prompt=options.prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=options.seed,
            n=options.n,
        ),
    )


def _translate(options: argparse.Namespace) -> None:
    asked = TranslateOptions(sources=options.source, beam_size=options.beam_size)
    _answer("translate", options.run, asked)


def _infill(options: argparse.Namespace) -> None:
    asked = InfillOptions(texts=options.text, blank=options.blank, beam_size=options.beam_size)
    _answer("infill", options.run, asked)


def _classify(options: argparse.Namespace) -> None:
    _answer("classify", options.run, LabelOptions(texts=options.text, top=options.top))


def _tag(options: argparse.Namespace) -> None:
    _answer("tag", options.run, LabelOptions(texts=options.text))


def _answer(command: str, run_dir: Path, options: object) -> None:
    """Print what a run's weights write. Raises ConfigError where they are of another kind."""
    experiment = open_run(run_dir)
    if experiment.command != command:
        raise ConfigError(f"{run_dir}: {experiment.noun}; `{experiment.command}` is its command")
    for line in experiment.answer(run_dir, options):
        _say(line)


def _export(options: argparse.Namespace) -> None:
    path = export_run(options.run, options.models, name=options.name, others=options.others)
    size = sum(file.stat().st_size for file in path.iterdir())
    _say(f"{path}: {size:,} bytes")
    _say(open_run(options.run).table(read_bundle(path).manifest))


def _confidence(options: argparse.Namespace) -> None:
    _say(add_confidence(options.bundle, options.config, options.pairs))


def _reliability(options: argparse.Namespace) -> None:
    draw_bundles(options.bundles, options.to)
    _say(str(options.to))


def _baselines(options: argparse.Namespace) -> None:
    config = load_config(options.config)
    experiment = experiment_of(config)
    run_dir = options.run or Path("runs") / config.name
    data = experiment.prepare(options.config.resolve().parent, run_dir)
    _say(experiment.describe(data))
    _say(experiment.floors(data))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
