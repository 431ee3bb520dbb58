"""`python -m bench.alternatives`: compare the ways of running a step that were tried.

B batch, T time, H hidden. The first part times one LSTM layer above the first, where most of the
matrix products are. Input and state are quantized as in `training.graphs.quantization`:

* `MatMulInteger` on input and state joined (what the exporter writes), or on each separately,
* `DequantizeLinear` around a `MatMul` (QDQ), which onnxruntime could fuse to integers but does not,
* onnxruntime's own `MatMulIntegerToFloat`, in a custom domain that bundles may not use,
* the fp32 LSTM operator, and the same cell composed of fp32 operators.

The second part times ways to call a step graph: `run`, bound arrays, a Scan of one step, and two
threads inside it.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from bench.engine import interleaved
from bench.models import WORK, ensure, random_model
from bench.report import Row, machine, say, table, write
from service.bundle.store import read_language_model
from service.runtime.language_model import OnnxLanguageModelSession
from training.graphs import language_model as onnx_graph
from training.graphs.builder import Float32Array, GraphBuilder
from training.graphs.quantization import STATE_STEPS, STATE_ZERO, QuantizedMatrix

BATCHES = (1, 16, 64)
_ROUNDS, _SLICE_S = 5, 0.1


def main() -> None:
    """Measure, print and write `alternatives.json`."""
    say(machine())
    rows = []
    for hidden_size in (128, 512):
        for batch in BATCHES:
            rows += _rows(f"cell, H {hidden_size}", batch, _cells(hidden_size, batch), "joined")
        name = ensure(WORK, 2, hidden_size)
        for batch in BATCHES:
            rows += _rows(name, batch, _calls(name, hidden_size, batch), "step graph, bound")
    say(table(rows))
    write("alternatives.json", "the ways to run a step that were tried", rows)


def _rows(
    where: str, batch: int, subjects: Mapping[str, Callable[[], int]], against: str
) -> list[Row]:
    timing = interleaved(subjects, rounds=_ROUNDS, slice_s=_SLICE_S)
    return [
        Row(
            f"{where}, {batch} row{'s' * (batch > 1)}: {label}",
            1e6 * mine.median,
            "us/step",
            against if label != against else None,
            mine.times_faster_than(timing[against]) if label != against else None,
        )
        for label, mine in timing.items()
    ]


def _cells(hidden_size: int, batch: int) -> dict[str, Callable[[], int]]:
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(2 * hidden_size, 4 * hidden_size)) * 0.06).astype(np.float32)
    return {
        form: _runner(_cell(form, weight), hidden_size, batch)
        for form in ("joined", "apart", "QDQ", "MatMulIntegerToFloat", "fp32 composed", "fp32 LSTM")
    }


def _cell(form: str, weight: Float32Array) -> bytes:
    """A graph of one cell: inputs `x`, `h`, `c` [B, H], outputs `h_out`, `c_out` [B, H]."""
    hidden_size = weight.shape[1] // 4
    graph = GraphBuilder()
    graph.constant("bias", np.zeros(4 * hidden_size, np.float32))
    if form == "fp32 LSTM":
        _add_operator(graph, weight, hidden_size)
    else:
        if form == "fp32 composed":
            graph.constant("weight", weight)
            graph.add("Concat", ["x", "h"], "both", axis=-1)
            product = graph.add("MatMul", ["both", "weight"], "product")
        else:
            product = _add_integer_product(graph, form, weight)
        graph.add("Add", [product, "bias"], "total")
        graph.add("Split", ["total"], "i", "f", "g", "o", axis=-1, num_outputs=4)
        for gate in "ifo":
            graph.add("Sigmoid", [gate], f"{gate}_open")
        graph.add("Tanh", ["g"], "candidate")
        graph.add("Mul", ["f_open", "c"], "kept")
        graph.add("Mul", ["i_open", "candidate"], "added")
        graph.add("Add", ["kept", "added"], "c_out")
        graph.add("Tanh", ["c_out"], "squashed")
        graph.add("Mul", ["o_open", "squashed"], "h_out")

    def vectors(names: str) -> list[onnx.ValueInfoProto]:
        shape: list[str | int] = ["B", hidden_size]
        return [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape) for x in names.split()]

    proto = helper.make_model(
        helper.make_graph(
            graph.nodes, "cell", vectors("x h c"), vectors("h_out c_out"), graph.constants
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    data: bytes = proto.SerializeToString()
    return data


def _add_integer_product(graph: GraphBuilder, form: str, weight: Float32Array) -> str:
    hidden_size = weight.shape[1] // 4
    matrix = QuantizedMatrix.of(weight)
    graph.constant("step", np.array(1 / STATE_STEPS, np.float32))
    graph.constant("zero", np.array(STATE_ZERO, np.uint8))
    for name in "xh":
        graph.add("QuantizeLinear", [name, "step", "zero"], f"{name}_steps")
    if form == "apart":
        for name, part in (("x", slice(None, hidden_size)), ("h", slice(hidden_size, None))):
            graph.constant(f"{name}_weight", matrix.values[part])
            graph.add("MatMulInteger", [f"{name}_steps", f"{name}_weight", "zero"], f"{name}_sums")
        sums = graph.add("Add", ["x_sums", "h_sums"], "sums")
    else:
        graph.constant("weight", matrix.values)
        graph.add("Concat", ["x_steps", "h_steps"], "both", axis=-1)
        if form == "QDQ":
            graph.constant("weight_scale", matrix.scale)
            graph.constant("weight_zero", np.zeros(len(matrix.scale), np.int8))
            graph.add("DequantizeLinear", ["both", "step", "zero"], "both_float")
            inputs = ["weight", "weight_scale", "weight_zero"]
            graph.add("DequantizeLinear", inputs, "weight_float", axis=1)
            return graph.add("MatMul", ["both_float", "weight_float"], "product")
        if form == "MatMulIntegerToFloat":
            graph.constant("weight_scale", matrix.scale)
            inputs = ["both", "weight", "step", "weight_scale", "zero"]
            return graph.add(form, inputs, "product", domain="com.microsoft")
        sums = graph.add("MatMulInteger", ["both", "weight", "zero"], "sums")
    graph.constant("scale", matrix.scale / np.float32(STATE_STEPS))
    graph.add("Cast", [sums], "floats", to=TensorProto.FLOAT)
    return graph.add("Mul", ["floats", "scale"], "product")


def _add_operator(graph: GraphBuilder, weight: Float32Array, hidden_size: int) -> None:
    graph.constant("axis_0", np.array([0], np.int64))
    graph.constant("weight_ih", weight[:hidden_size].T[None])
    graph.constant("weight_hh", weight[hidden_size:].T[None])
    for name in "xhc":
        graph.add("Unsqueeze", [name, "axis_0"], f"{name}_time")
    inputs = ["x_time", "weight_ih", "weight_hh", "", "", "h_time", "c_time"]
    graph.add("LSTM", inputs, "all", "h_after", "c_after", hidden_size=hidden_size)
    for name in "hc":
        graph.add("Squeeze", [f"{name}_after", "axis_0"], f"{name}_out")


def _calls(name: str, hidden_size: int, batch: int) -> dict[str, Callable[[], int]]:
    bundle = read_language_model(WORK / "models" / name / name)
    session = OnnxLanguageModelSession(bundle, "int8")
    stepper = session.stepper(batch)
    model = random_model(2, hidden_size)
    one = _runner(onnx_graph.build(model, "int8", "step"), hidden_size, batch)
    two = _runner(onnx_graph.build(model, "int8", "step"), hidden_size, batch, threads=2)
    tokens = np.full((batch, 1), 40, np.int64)
    lengths = np.ones(batch, np.int32)
    states = session.initial_states(batch)

    def bound() -> int:
        stepper.step(batch)
        return 1

    def scan() -> int:
        session.read(tokens, lengths, states)
        return 1

    return {
        "step graph, bound": bound,
        "step graph, run": one,
        "step graph, run, 2 threads inside": two,
        "sequence graph of one step, run": scan,
    }


def _runner(data: bytes, hidden_size: int, batch: int, threads: int = 1) -> Callable[[], int]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        x.name: np.full(batch, 40, np.int64)
        if x.name == "tokens"
        else rng.uniform(-1, 1, (batch, hidden_size)).astype(np.float32)
        for x in session.get_inputs()
    }

    def run() -> int:
        session.run(None, feeds)
        return 1

    return run


if __name__ == "__main__":
    begin = time.perf_counter()
    main()
    say(f"{time.perf_counter() - begin:.0f} s")
