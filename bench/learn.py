"""`python -m bench.learn PART…`: measure what `training learn` reaches.

Each part runs `learn` on a file as a person would, and prints the model's figures with those of its
parts and the baselines:

- `shakespeare`: tiny Shakespeare in ten minutes, 90/10 by position (nats a character);
- `sigmorphon`: the eight languages of SIGMORPHON 2020 task 1 on the official splits, four minutes
  each (word error rate in percent), beside the official baseline;
- `names`: 2,000 lines of `--file`, such as names; `few`: its first 50 lines;
- `alice`: Alice's Adventures in Wonderland in three minutes.

Needs ../shared/data for the first two.
"""

import argparse
import sys
import time
from pathlib import Path

from bench.g2p import BASELINE, DATA
from bench.report import machine, say
from bench.server import ROOT
from service.bundle.encoder_decoder import EncoderDecoderManifest
from service.bundle.language_model import LanguageModelManifest
from service.bundle.store import Manifest, read_bundle
from training.__main__ import main as training

WORK = ROOT / "bench" / ".work" / "learn"
SHAKESPEARE = ROOT / ".." / "shared" / "data" / "tinyshakespeare.txt"
ALICE = ROOT / "training" / "data" / "alice" / "alice.txt"


def main() -> int:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--file", type=Path, help="lines for `names` and `few`")
    parser.add_argument("--languages", nargs="+", choices=BASELINE, default=list(BASELINE))
    parser.add_argument("--minutes", type=float, help="instead of each part's own time")
    options = parser.parse_args()
    if {"names", "few"} & {*options.parts} and not options.file:
        parser.error("names and few need --file")
    say(machine())
    for part in options.parts:
        PARTS[part](options)
    return 0


def _shakespeare(options: argparse.Namespace) -> None:
    found = _learn("shakespeare", [SHAKESPEARE], options.minutes or 10, "--split", "position")
    _print_text(found)


def _sigmorphon(options: argparse.Namespace) -> None:
    data = (ROOT / ".." / "shared" / DATA).resolve()
    rates = {}
    for language in options.languages:
        train, dev, test = (data / f"{language}_{x}.tsv" for x in ("train", "dev", "test"))
        held_out = ("--valid", dev, "--test", test)
        found = _learn(f"sigmorphon-{language}", [train], options.minutes or 4, *held_out)
        if not isinstance(found, EncoderDecoderManifest):
            raise TypeError(found.task)
        models = [x.values for x in found.metrics[0].measurements if "word_error_rate" in x.values]
        # The first is greedy, the second the beam; the others are baselines.
        rates[language] = 100 * models[1]["word_error_rate"]
        say(f"{language}: {rates[language]:.2f} % of words, baseline {BASELINE[language]:.2f}")
    baseline = sum(BASELINE[x] for x in rates) / len(rates)
    say(f"mean: {sum(rates.values()) / len(rates):.2f} %, baseline {baseline:.2f}")


def _names(options: argparse.Namespace) -> None:
    _print_text(_learn("names", [_head(options.file, 2000)], options.minutes or 10))


def _few(options: argparse.Namespace) -> None:
    _print_text(_learn("few", [_head(options.file, 50)], options.minutes or 2))


def _alice(options: argparse.Namespace) -> None:
    _print_text(_learn("alice", [ALICE], options.minutes or 3))


def _head(path: Path, count: int) -> Path:
    """The first lines of a file, in a file of their own."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    WORK.mkdir(parents=True, exist_ok=True)
    head = WORK / f"{path.stem}-{count}.txt"
    head.write_text("".join(lines), encoding="utf-8")
    return head


def _learn(name: str, files: list[Path], minutes: float, *more: str | Path) -> Manifest:
    """Run `learn` in a new folder; return the manifest of the bundle."""
    folder = WORK / f"{name}-{int(time.time())}"
    started = time.monotonic()
    arguments = ["learn", "--name", name, "--minutes", minutes, "--models", folder / "models"]
    arguments += ["--run", folder / "run", *more, "--", *files]
    if training([str(x) for x in arguments]) != 0:
        raise RuntimeError(f"{name}: learn failed; see above")
    say(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes in total, {folder}")
    return read_bundle(folder / "models" / name).manifest


def _print_text(manifest: Manifest) -> None:
    if not isinstance(manifest, LanguageModelManifest):
        raise TypeError(manifest.task)
    metrics = manifest.metrics
    say(f"{manifest.name}, {metrics.split}, {metrics.chars:,} characters")
    for x in sorted(metrics.measurements, key=lambda x: -x.loss):
        name = x.name if x.kind != "adapting" else f"{x.name}, adapting"
        say(f"  {name:<32}{x.loss:8.4f} nats a token{x.bits_per_char:8.4f} bits a character")


PARTS = {
    "shakespeare": _shakespeare,
    "sigmorphon": _sigmorphon,
    "names": _names,
    "few": _few,
    "alice": _alice,
}


if __name__ == "__main__":
    sys.exit(main())
