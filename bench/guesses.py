"""`python -m bench.guesses BUNDLE RUN [--most N]`: do a model's guess numbers hold?

BUNDLE is a model of lines, such as `models/names`, and RUN the folder that it was trained in. Lists
the model's likeliest texts with the graph that is served, all down to about the N-th, so that the
true place of each held-out text among them is known. Beside it stands what the bundle's curve says,
which comes from samples. Prints the share of the held-out lines that so many guesses find, by the
curve and by the list, how many true places lie in the curve's intervals, and the typical line.

B rows, V vocabulary.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.report import machine, say
from service.bundle.guesses import GuessCurve, Guesses
from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID, EOS_ID, UNK_ID
from service.runtime.language_model import (
    LanguageModelSession,
    OnnxLanguageModelSession,
    States,
)
from training.data import corpus as corpora
from training.data.corpus import Split

Floats = npt.NDArray[np.float64]
Block = tuple[npt.NDArray[np.int64], Floats, States]  # last tokens [B], log p so far [B], states

_ROWS = 2048


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--most", type=int, default=100_000, help="texts to list")
    options = parser.parse_args()
    bundle = read_language_model(options.bundle)
    manifest = bundle.manifest
    curve = manifest.guesses
    if curve is None:
        parser.error(f"{options.bundle}: it has no guess numbers")
    session = OnnxLanguageModelSession(bundle, manifest.precision)
    corpus = corpora.load(options.run / "corpus")
    held_out = [ids for ids in _documents(corpus.held_out) if UNK_ID not in ids]
    began = time.perf_counter()
    listed = listed_logprobs(session, _logprob_at(curve, options.most))
    seconds = time.perf_counter() - began
    say(machine())
    say(f"{manifest.name}, {manifest.precision}: {len(listed):,} texts listed in {seconds:.0f} s")
    logprobs = [logprob_of(session, ids) for ids in held_out]
    told = [curve.of(x, len(ids) - 2) for x, ids in zip(logprobs, held_out, strict=True)]
    # The list rises, so that its end is the likeliest text.
    places = [1 + len(listed) - int(np.searchsorted(listed, x + 1e-6)) for x in logprobs]
    known = [i for i, x in enumerate(logprobs) if x > listed[0]]
    _report(told, places, known, options.most)
    return 0


def _report(
    told: Sequence[Guesses], places: Sequence[int], known: Sequence[int], most: int
) -> None:
    """Print the figures; `places` are true for the texts in `known`."""
    count = len(told)
    say(f"{count:,} held-out lines; found within   by the curve   by listing all texts")
    estimates = np.array([math.inf if x.guesses is None else x.guesses for x in told])
    true = np.full(count, math.inf)
    true[list(known)] = [places[i] for i in known]
    for power in range(2, 13):
        guesses = 10**power
        curve = f"{100 * np.mean(estimates <= guesses):5.1f} %"
        own = f"{100 * np.mean(true <= guesses):5.1f} %" if guesses <= most else ""
        say(f"{guesses:>30,}   {curve:>12}   {own}")
    pairs = [(told[i], places[i]) for i in known]
    inside = [x.low <= place <= x.high for x, place in pairs if x.low and x.high]
    off = [abs(x.guesses / place - 1.0) for x, place in pairs if x.guesses is not None]
    say(f"true places inside their interval: {100 * np.mean(inside):.1f} % of {len(inside):,}")
    say(f"off by {100 * np.median(off):.1f} % (median), {100 * max(off):.1f} % (most)")
    beyond = 100 * np.mean(~np.isfinite(estimates))
    say(f"typical line: {np.median(estimates):,.0f} guesses; {beyond:.1f} % are beyond the curve")


def _documents(split: Split) -> Iterator[npt.NDArray[np.uint16]]:
    for start, end in zip(split.starts[:-1], split.starts[1:], strict=True):
        yield split.ids[start:end]


def _logprob_at(curve: GuessCurve, guesses: int) -> float:
    """The log-probability at about so many guesses."""
    return float(np.interp(math.log1p(guesses), np.log1p(curve.guesses), curve.logprobs))


def listed_logprobs(session: LanguageModelSession, least: float) -> Floats:
    """Log p of every text, with its end, that is at least so likely (nats), rising.

    No text is likelier than what it begins with, so rarer beginnings need not be continued.
    """
    found: list[Floats] = []
    stack: list[Block] = [(np.array([BOS_ID]), np.zeros(1), session.initial_states(1))]
    while stack:
        tokens, before, states = stack.pop()
        lengths = np.ones(len(tokens), np.int32)
        logprobs, after = session.read(tokens[:, None], lengths, states)
        sums = before[:, None] + logprobs[:, 0].astype(np.float64)  # [B, V]
        found.append(sums[sums[:, EOS_ID] >= least, EOS_ID])
        rows, letters = np.nonzero(sums[:, UNK_ID + 1 :] >= least)
        letters += UNK_ID + 1
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            own = tuple(state[rows[part]] for state in after)
            stack.append((letters[part], sums[rows[part], letters[part]], own))
    return np.sort(np.concatenate(found))


def logprob_of(session: LanguageModelSession, ids: npt.NDArray[np.uint16]) -> float:
    """Log p of a whole text, given with its bos and eos."""
    read, targets = ids[None, :-1].astype(np.int64), ids[None, 1:].astype(np.int64)
    lengths = np.array([len(ids) - 1], np.int32)
    picked, _ = session.pick(read, lengths, targets, session.initial_states(1))
    return float(picked[0].sum(dtype=np.float64))


if __name__ == "__main__":
    sys.exit(main())
