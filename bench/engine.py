"""`python -m bench.engine`: measure the engine and the HTTP path, and compare them with limits.

The machine is shared, so the two sides of every ratio take turns within one run. A ratio is the
median of the ratios of the rounds.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench.http import http_rows
from bench.models import SHAPES, WORK, ensure
from bench.report import RESULTS, Row, machine, say, table, write
from service.bundle.manifest import Precision
from service.bundle.store import read_language_model
from service.bundle.text import BOS_ID
from service.decoding.rows import ReadRow, WriteRow
from service.decoding.sampling import SamplingParams
from service.observe.metrics import EngineMetrics, Metrics
from service.runtime.language_model import OnnxLanguageModelSession
from service.scheduling.admission import QueueBounds
from service.scheduling.language_model import LanguageModelRunner, TextWork
from service.scheduling.scheduler import Job, Scheduler

BATCHES = (1, 16, 64)
_TOKENS = 256  # steps a row in each slice: one answer of the longest length in the mix
_TOKENS_OF_LARGE = 64  # the same for 1,024 units and more, where a step takes long
_BARE_STEPS = 32


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per unit of work, one number for each round."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Timing") -> float:
        """The median of the ratios of the rounds."""
        pairs = zip(other.seconds, self.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


def interleaved(
    subjects: Mapping[str, Callable[[], int]], *, rounds: int, slice_s: float
) -> dict[str, Timing]:
    """Time each subject in every round; a call does some work and returns its number of units."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for subject in subjects.values():
        subject()
    for _ in range(rounds):
        for name, subject in subjects.items():
            units = 0
            begin = time.perf_counter()
            while (spent := time.perf_counter() - begin) < slice_s or not units:
                units += subject()
            seconds[name].append(spent / units)
    return {name: Timing(values) for name, values in seconds.items()}


class EngineUnderLoad:
    """A scheduler with its worker, which writes one long answer for each row."""

    def __init__(self, session: OnnxLanguageModelSession) -> None:
        self._left = 0
        self._done = threading.Event()
        self.scheduler = Scheduler(
            LanguageModelRunner(session, max(BATCHES), name="bench"),
            self._deliver,
            name="bench",
            max_rows=max(BATCHES),
            bounds=QueueBounds(requests=1_000_000, rows=1_000_000, tokens=1_000_000_000),
            metrics=EngineMetrics(Metrics(), "fake"),
        )
        self.scheduler.start()

    def generate(self, rows: int, tokens: int) -> int:
        """Write `tokens` tokens in each of `rows` rows, stepped together; return their number."""
        prompt = np.array([BOS_ID, 40], np.uint16)
        self._done.clear()
        self._left = rows
        for seed in range(rows):
            write = WriteRow(params=SamplingParams(), seed=seed, choice=0, max_tokens=tokens)
            read = ReadRow(prompt, np.zeros_like(prompt), wants_continuation=True)
            self.scheduler.submit(Job([TextWork(read, [write])]))
        self._done.wait()
        return rows * tokens

    def _deliver(self, jobs: list[Job[TextWork]]) -> None:
        for job in jobs:
            if job.error is not None:
                raise job.error
        self._left -= len(jobs)
        if not self._left:
            self._done.set()


def bare_loop(session: OnnxLanguageModelSession, rows: int) -> Callable[[], int]:
    """The step graph alone: no sampling, and no rows that join or leave."""
    stepper = session.stepper(rows)
    stepper.tokens[:] = np.random.default_rng(0).integers(4, session.vocab_size, rows)

    def run() -> int:
        for _ in range(_BARE_STEPS):
            stepper.step(rows)
        return rows * _BARE_STEPS

    return run


def integer_products(num_layers: int, hidden_size: int, rows: int) -> Callable[[], int]:
    """The integer matrix products of one LSTM step alone."""
    rng = np.random.default_rng(0)
    nodes, constants, inputs, outputs = [], [], [], []
    constants.append(numpy_helper.from_array(np.array(64, np.uint8), "zero"))
    for i in range(num_layers):
        depth = hidden_size * (2 if i else 1)
        weight = rng.integers(-127, 128, (depth, 4 * hidden_size)).astype(np.int8)
        constants.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("MatMulInteger", [f"x{i}", f"w{i}", "zero"], [f"y{i}"]))
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.UINT8, ["B", depth]))
        shape: list[str | int] = ["B", 4 * hidden_size]
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.INT32, shape))
    graph = helper.make_graph(nodes, "products", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {
        x.name: rng.integers(1, 128, (rows, x.type.tensor_type.shape.dim[1].dim_value)).astype(
            np.uint8
        )
        for x in inputs
    }

    def run() -> int:
        for _ in range(_BARE_STEPS):
            session.run(None, feeds)
        return rows * _BARE_STEPS

    return run


def reading(session: OnnxLanguageModelSession, rows: int) -> Callable[[], int]:
    """Score texts with the sequence graph, in chunks of the scheduler's size."""
    time_steps = 64
    tokens = np.random.default_rng(0).integers(4, session.vocab_size, (rows, time_steps))
    lengths = np.full(rows, time_steps, np.int32)
    states = session.initial_states(rows)

    def run() -> int:
        session.pick(tokens, lengths, tokens, states)
        return rows * time_steps

    return run


def engine_rows(name: str, shape: tuple[int, int], *, rounds: int, slice_s: float) -> list[Row]:
    """Measure one model: the steps, the products, the engine, and int8 against fp32."""
    bundle = read_language_model(WORK / "models" / name / name)
    precisions: tuple[Precision, ...] = ("int8", "fp32")
    sessions = {x: OnnxLanguageModelSession(bundle, x) for x in precisions}
    engines = {x: EngineUnderLoad(sessions[x]) for x in precisions}
    rows = []
    steps = _TOKENS if shape[1] < 1024 else _TOKENS_OF_LARGE
    for batch in BATCHES:
        subjects: dict[str, Callable[[], int]] = {
            "products": integer_products(*shape, batch),
            **{f"bare {x}": bare_loop(sessions[x], batch) for x in precisions},
            **{f"engine {x}": partial(engines[x].generate, batch, steps) for x in precisions},
        }
        timing = interleaved(subjects, rounds=rounds, slice_s=slice_s)
        where = f"{name}, {batch} row{'s' * (batch > 1)}"
        bare, engine = timing["bare int8"], timing["engine int8"]
        products = timing["products"]

        def tokens(label: str, of: Timing, against: str, other: Timing, at: str = where) -> Row:
            ratio = of.times_faster_than(other)
            return Row(f"{at}: {label}", 1 / of.median, "tokens/s", against, ratio)

        rows += [
            tokens("engine, int8", engine, "bare step loop, int8", bare),
            tokens("engine, int8", engine, "integer products alone", products),
            tokens("bare step loop, int8", bare, "integer products alone", products),
            tokens("bare step loop, int8", bare, "bare step loop, fp32", timing["bare fp32"]),
            tokens("engine, int8", engine, "engine, fp32", timing["engine fp32"]),
        ]
    for batch in (1, 64):
        timing = interleaved(
            {x: reading(sessions[x], batch) for x in precisions}, rounds=rounds, slice_s=slice_s
        )
        rows.append(
            Row(
                f"{name}, {batch} row{'s' * (batch > 1)}: reading, int8",
                1 / timing["int8"].median,
                "chars/s",
                "reading, fp32",
                timing["int8"].times_faster_than(timing["fp32"]),
            )
        )
    for engine_ in engines.values():
        engine_.scheduler.stop()
    return rows


def main() -> None:
    """Measure, print and write `engine.json` and the plots."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two models and fewer rounds")
    options = parser.parse_args()
    say(f"{machine()}; ratios are medians of rounds taken in turns")
    shapes = [(2, 128), (2, 512)] if options.quick else list(SHAPES)
    rounds, slice_s = (3, 0.1) if options.quick else (5, 0.15)
    rows = []
    for num_layers, hidden_size in shapes:
        name = ensure(WORK, num_layers, hidden_size)
        found = engine_rows(name, (num_layers, hidden_size), rounds=rounds, slice_s=slice_s)
        say(table(found))
        rows += found
    found = http_rows(WORK, quick=options.quick)
    say(table(found))
    write("engine.json", "the engine and the HTTP path", [*rows, *found])
    say(f"written: {RESULTS / 'engine.json'}")


if __name__ == "__main__":
    main()
