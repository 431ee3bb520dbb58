"""`python -m bench.adapt_speed BUNDLE`: what adapting costs, texts side by side in the engine.

Reads and writes the same number of texts with `adapt` and without, in turns, on one thread. A ratio
is the median of the ratios of the rounds.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np

from bench.engine import interleaved
from bench.report import machine, say
from service.bundle.manifest import Precision
from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID, EOS_ID
from service.decoding.rows import ReadRow, WriteRow
from service.decoding.sampling import SamplingParams
from service.runtime.adapting import language_model_sessions
from service.scheduling.language_model import LanguageModelRunner, TextWork

_CHARS = 512  # of each text
_NO_END = SamplingParams(logit_bias=((EOS_ID, -1000.0),))


def texts(rows: int, vocab_size: int, *, writes: bool, adapt: bool) -> list[TextWork]:
    """Texts to score, or to write."""
    work = []
    for seed in range(rows):
        ids = np.random.default_rng(seed).integers(4, vocab_size, _CHARS)
        tokens = np.array([BOS_ID, *ids], np.uint16)
        if writes:
            read = ReadRow(tokens[:1], np.zeros(1, np.uint16), wants_continuation=True)
            row = WriteRow(params=_NO_END, seed=seed, choice=0, max_tokens=_CHARS)
            work.append(TextWork(read, [row], adapt=adapt))
        else:
            work.append(TextWork(ReadRow(tokens[:-1], tokens[1:]), adapt=adapt))
    return work


def running(
    runner: LanguageModelRunner, rows: int, vocab_size: int, *, writes: bool, adapt: bool
) -> Callable[[], int]:
    """A call that runs so many texts to their ends; returns their characters."""

    def run() -> int:
        runner.admit(texts(rows, vocab_size, writes=writes, adapt=adapt))
        while not runner.free:
            for _, error in runner.run():
                if error is not None:
                    raise error
        return rows * _CHARS

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.adapt_speed", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of a language model that adapts")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    bundle = read_language_model(options.bundle)
    say(f"{machine()}; {bundle.manifest.name}, texts of {_CHARS} characters")
    for precision in get_args(Precision):
        if precision not in bundle.precisions:
            continue
        plain, adapting = language_model_sessions(bundle, precision)
        runner = LanguageModelRunner(plain, max(options.rows), name="bench", adapting=adapting)
        for rows in options.rows:
            for writes in (False, True):
                subjects = {
                    str(adapt): running(runner, rows, plain.vocab_size, writes=writes, adapt=adapt)
                    for adapt in (False, True)
                }
                timing = interleaved(subjects, rounds=options.rounds, slice_s=0.2)
                rates = [1 / timing[name].median for name in subjects]
                ratio = timing["False"].times_faster_than(timing["True"])
                say(
                    f"{precision}, {rows} texts, {'writing' if writes else 'reading'}: "
                    f"{rates[0]:,.0f} chars/s, adapting {rates[1]:,.0f}: {ratio:.2f} times slower"
                )


if __name__ == "__main__":
    main()
