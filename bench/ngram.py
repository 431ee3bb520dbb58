"""`python -m bench.ngram`: measure the graphs of n-grams and mixtures beside an LSTM's.

Fits n-grams of several orders on Alice's Adventures in Wonderland and prints the seconds to fit and
to build, the size of the graphs, and the time of a step on one thread, alone and mixed with an
LSTM, beside that of the LSTM of training/configs/alice-lstm.toml (weights as drawn: they do not
change the time). All are timed in turn, and of each the fastest round counts, since other work on
the machine only adds to it.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.report import say
from training.config import LanguageModelConfig, load_config
from training.data.corpus import prepare
from training.evaluation.ngram import fit
from training.evaluation.ngram_network import network
from training.export.sessions import open_session
from training.graphs.language_model import build
from training.networks.language_model import LanguageModel
from training.networks.mixture import AnyLanguageModel, Mixture

CONFIG = Path("training/configs/alice-lstm.toml")
WORK = Path(__file__).parent / ".work" / "ngram"
ROWS = (1, 16, 64)
STEPS = 50  # of one round
WEIGHTS, EXPONENT = (0.7, 0.3), 1.2  # about those that an export fits


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, nargs="+", default=[6, 7, 8])
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    config = load_config(CONFIG)
    if not isinstance(config, LanguageModelConfig):
        raise TypeError(CONFIG)
    corpus = prepare(config.data, CONFIG.resolve().parent, WORK)
    ids = np.asarray(corpus.train.ids)
    torch.manual_seed(0)
    lstm = LanguageModel(config.model, len(corpus.vocab))
    steps = {
        "lstm fp32": _step(lstm, build(lstm), ids),
        "lstm int8": _step(lstm, build(lstm, "int8", "step"), ids),
    }
    for order in options.orders:
        began = time.perf_counter()
        model = fit(ids, corpus.train.starts, len(corpus.vocab), order)[-1]
        fitted = time.perf_counter()
        module = network(model)
        graphs = [build(module, "fp32", role) for role in ("sequence", "step")]
        built = time.perf_counter()
        sizes = " + ".join(f"{len(graph) / 1e6:.2f}" for graph in graphs)
        say(
            f"{order}-gram: {module.trie.grams} n-grams, {fitted - began:.2f} s to fit, "
            f"{built - fitted:.2f} s to build, {sizes} MB"
        )
        steps[f"{order}-gram"] = _step(module, graphs[1], ids)
        mixture = Mixture([lstm], module, WEIGHTS, EXPONENT)
        steps[f"int8 with the {order}-gram"] = _step(mixture, build(mixture, "int8", "step"), ids)
    for rows in ROWS:
        runs = {name: step(rows) for name, step in steps.items()}
        micros = dict.fromkeys(runs, float("inf"))
        for _ in range(options.rounds):
            for name, run in runs.items():
                micros[name] = min(micros[name], _round(run))
        say(f"{rows} rows, us a step: " + ", ".join(f"{x} {t:.0f}" for x, t in micros.items()))
    return 0


def _step(
    model: AnyLanguageModel, graph: bytes, text: np.ndarray[Any, Any]
) -> Callable[[int], Callable[[], Any]]:
    """From a number of rows to a call that runs a step at random places of the text."""
    session = open_session(graph)
    wanted = ["logprobs", *(f"{name}_out" for name in model.state_names)]
    inputs = {x.name: len(x.shape) for x in session.get_inputs()}

    def prepared(rows: int) -> Callable[[], Any]:
        rng = np.random.default_rng(0)
        states = model.random_states(rows, rng)
        tokens = rng.choice(text, rows).astype(np.int64)
        values: dict[str, Any] = {
            "tokens": tokens,
            "targets": tokens,
            "lengths": np.ones(rows, np.int32),
        }
        values |= {name: x.numpy() for name, x in zip(model.state_names, states, strict=True)}
        found = {name: values[name] for name in inputs}
        for name in ("tokens", "targets"):
            if inputs.get(name) == 2:  # a sequence of one token
                found[name] = values[name][:, None]
        return lambda: session.run(wanted, found)

    return prepared


def _round(run: Callable[[], Any]) -> float:
    """Microseconds of a run."""
    begin = time.perf_counter()
    for _ in range(STEPS):
        run()
    return (time.perf_counter() - begin) / STEPS * 1e6


if __name__ == "__main__":
    raise SystemExit(main())
