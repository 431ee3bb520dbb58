"""onnxruntime behind the protocol: what it computes, and the graphs that it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from service.bundle.files import BundleError
from service.bundle.language_model import LanguageModelBundle, LanguageModelManifest
from service.bundle.manifest import Precision, Tensor
from service.bundle.text import BOS_ID
from service.runtime.golden import GoldenMismatch
from service.runtime.language_model import OnnxLanguageModelSession
from service.settings import Settings
from service.tasks.kinds import open_session
from tests.bundles import ALPHABET, HIDDEN, in_memory, tiny_files
from training.export.manifest_parts import describe_graph

SEQUENCE = "sequence.fp32.onnx"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def bundle() -> LanguageModelBundle:
    return in_memory(*tiny_files("gru"))


def with_manifest(bundle: LanguageModelBundle, change: Change) -> LanguageModelBundle:
    """The same files under another manifest."""
    document = bundle.manifest.model_dump()
    change(document)
    return LanguageModelBundle(
        LanguageModelManifest.model_validate(document), bundle.vocab, bundle.graphs
    )


def with_graph(
    bundle: LanguageModelBundle, change: Callable[[onnx.ModelProto], object]
) -> LanguageModelBundle:
    """Another graph under the same manifest."""
    proto = onnx.load_model_from_string(bundle.graphs[SEQUENCE])
    change(proto)
    graphs = {**bundle.graphs, SEQUENCE: proto.SerializeToString()}
    return LanguageModelBundle(bundle.manifest, bundle.vocab, graphs)


def with_graph_as_described(
    bundle: LanguageModelBundle, change: Callable[[onnx.ModelProto], object]
) -> LanguageModelBundle:
    """Another graph, and a manifest that tells the truth about it."""
    changed = with_graph(bundle, change)
    described = describe_graph("fp32", "sequence", changed.graphs[SEQUENCE])

    def tell(document: dict[str, Any]) -> None:
        others = [x for x in document["graphs"] if x["file"] != SEQUENCE]
        document["graphs"] = [described.model_dump(), *others]

    return with_manifest(changed, tell)


def refusal(bundle: LanguageModelBundle) -> str:
    """The line of cause."""
    with pytest.raises(BundleError) as refused:
        OnnxLanguageModelSession(bundle, "fp32")
    message = str(refused.value)
    assert message.isprintable()
    assert message.startswith("tiny-gru: ")
    return message


def test_a_graph_that_fails_on_its_golden_vectors_is_one_line(bundle: LanguageModelBundle) -> None:
    def look_too_far(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.output[:] = ["sound" if x == "target_logprobs" else x for x in node.output]
        proto.graph.initializer.append(helper.make_tensor("far", TensorProto.INT64, [1], [10**6]))
        proto.graph.node.append(helper.make_node("Gather", ["sound", "far"], ["there"], axis=1))
        proto.graph.node.append(helper.make_node("Add", ["sound", "there"], ["target_logprobs"]))

    message = refusal(with_graph_as_described(bundle, look_too_far))
    assert message.startswith("tiny-gru: its golden vectors cannot be run: ")


@pytest.mark.parametrize(("cell", "tensors"), [("rnn", 2), ("gru", 2), ("lstm", 4)])
def test_a_session_has_the_bundles_states_and_vocabulary(cell: str, tensors: int) -> None:
    bundle = in_memory(*tiny_files(cell))
    session = OnnxLanguageModelSession(bundle, "fp32")
    assert session.vocab_size == len(bundle.vocab)
    states = session.initial_states(3)
    assert [state.shape for state in states] == [(3, HIDDEN)] * tensors
    assert all(state.dtype == np.float32 and not state.any() for state in states)


def test_picking_is_reading_at_the_targets(bundle: LanguageModelBundle) -> None:
    session = OnnxLanguageModelSession(bundle, "fp32")
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, session.vocab_size, (4, 9))
    targets = rng.integers(0, session.vocab_size, (4, 9))
    lengths = np.full(4, 9, np.int32)
    picked, after_pick = session.pick(tokens, lengths, targets, session.initial_states(4))
    logprobs, after_read = session.read(tokens, lengths, session.initial_states(4))
    np.testing.assert_array_equal(
        picked, np.take_along_axis(logprobs, targets[..., None], axis=2)[..., 0]
    )
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=2), 1.0, atol=1e-5)
    for one, other in zip(after_pick, after_read, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_rows_states_are_those_after_its_own_length(bundle: LanguageModelBundle) -> None:
    session = OnnxLanguageModelSession(bundle, "fp32")
    tokens = np.array([[BOS_ID, 4, 5, 6, 7], [BOS_ID, 8, 9, 0, 0]])
    _, together = session.read(tokens, np.array([5, 3], np.int32), session.initial_states(2))
    _, alone = session.read(tokens[1:, :3], np.array([3], np.int32), session.initial_states(1))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one[1:], other)


@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"\x08\x09", b"\x00" * 64])
def test_bytes_that_are_no_graph_are_refused(bundle: LanguageModelBundle, data: bytes) -> None:
    broken = LanguageModelBundle(bundle.manifest, bundle.vocab, {"sequence.fp32.onnx": data})
    assert "sequence.fp32.onnx: not a usable graph: " in refusal(broken)


def test_a_graph_that_is_cut_off_is_refused(bundle: LanguageModelBundle) -> None:
    data = bundle.graphs["sequence.fp32.onnx"]
    cut = LanguageModelBundle(
        bundle.manifest, bundle.vocab, {"sequence.fp32.onnx": data[: len(data) // 2]}
    )
    assert "not a usable graph" in refusal(cut)


@pytest.mark.parametrize("up", ["", "../" * 30])
def test_external_data_is_not_opened(
    bundle: LanguageModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, up: str
) -> None:
    """Not even a file that the working folder leads to, and that holds the right weights."""
    monkeypatch.chdir(tmp_path)
    location = f"{up}{str(tmp_path)[1:]}/weights.bin" if up else "weights.bin"

    def move_out(proto: onnx.ModelProto) -> None:
        weights = next(x for x in proto.graph.initializer if x.name == "output_weight")
        (tmp_path / "weights.bin").write_bytes(weights.raw_data)
        onnx.external_data_helper.set_external_data(weights, location)
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL

    assert "not a usable graph" in refusal(with_graph(bundle, move_out))


def test_an_operator_that_the_runtime_does_not_know_is_refused(bundle: LanguageModelBundle) -> None:
    def foreign(proto: onnx.ModelProto) -> None:
        node = next(x for x in proto.graph.node if x.op_type == "LogSoftmax")
        node.op_type = "MakeItUp"

    assert "not a usable graph" in refusal(with_graph(bundle, foreign))


def rename_input(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.input[:] = ["ids" if name == "tokens" else name for name in node.input]
    proto.graph.input[0].name = "ids"


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", ["logprobs"], ["scores"]))
    proto.graph.output[1].name = "scores"


def add_output(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Identity", ["tokens"], ["more"]))
    proto.graph.output.append(helper.make_tensor_value_info("more", TensorProto.INT64, ["B", "T"]))


def drop_output(proto: onnx.ModelProto) -> None:
    del proto.graph.output[-1]


def narrow_tokens(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("tokens", TensorProto.INT32, ["B", "T"])
    )


def double_logprobs(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(
        helper.make_node("Cast", ["logprobs"], ["exact"], to=TensorProto.DOUBLE)
    )
    proto.graph.output[1].CopyFrom(
        helper.make_tensor_value_info("exact", TensorProto.DOUBLE, ["B", "T", len(ALPHABET) + 4])
    )


def fix_batch(proto: onnx.ModelProto) -> None:
    """The batch size of a trace, left in."""
    proto.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "T"])
    )


GRAPH_CHANGES = [
    rename_input,
    rename_output,
    add_output,
    drop_output,
    narrow_tokens,
    double_logprobs,
    fix_batch,
]


@pytest.mark.parametrize("change", GRAPH_CHANGES)
def test_a_graph_that_is_not_the_manifests_is_refused(
    bundle: LanguageModelBundle, change: Callable[[onnx.ModelProto], None]
) -> None:
    message = refusal(with_graph(bundle, change))
    assert "not the manifest's" in message or "not a usable graph" in message


@pytest.mark.parametrize("change", [rename_input, rename_output, add_output, drop_output])
def test_a_graph_that_this_service_does_not_feed_is_refused_although_its_manifest_is_true(
    bundle: LanguageModelBundle, change: Callable[[onnx.ModelProto], None]
) -> None:
    message = refusal(with_graph_as_described(bundle, change))
    assert "puts must be {" in message


def declare(kind: str, which: str, **changes: Any) -> Change:
    """Change what the manifest says of a tensor."""

    def change(document: dict[str, Any]) -> None:
        tensor = next(x for x in document["graphs"][0][kind] if x["name"] == which)
        tensor.update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (declare("inputs", "tokens", name="ids"), "inputs are not the manifest's"),
        (declare("inputs", "tokens", dtype="int32"), "inputs are not the manifest's"),
        (declare("inputs", "tokens", shape=["B"]), "inputs are not the manifest's"),
        (declare("inputs", "h1", shape=["B", HIDDEN + 1]), "inputs are not the manifest's"),
        (declare("outputs", "logprobs", shape=["B", "T", 5]), "outputs are not the manifest's"),
        (declare("outputs", "h1_out", dtype="int64"), "outputs are not the manifest's"),
        (lambda x: x["states"].pop(), "inputs must be {"),
        (lambda x: x["states"][0].update(shape=[HIDDEN + 1]), "inputs must be {"),
        (lambda x: x["states"][0].update(name="h7"), "inputs must be {"),
        (lambda x: x["vocab"].update(size=x["vocab"]["size"] + 1), "outputs must be {"),
    ],
)
def test_a_manifest_that_is_not_the_graphs_is_refused(
    bundle: LanguageModelBundle, change: Change, cause: str
) -> None:
    assert cause in refusal(with_manifest(bundle, change))


def test_inputs_may_stand_in_any_order(bundle: LanguageModelBundle) -> None:
    OnnxLanguageModelSession(
        with_manifest(bundle, lambda x: x["graphs"][0]["inputs"].reverse()), "fp32"
    )


def test_a_golden_vector_that_this_machine_does_not_give_is_refused(
    bundle: LanguageModelBundle,
) -> None:
    tolerance = bundle.manifest.golden[1].tolerance

    def shift(document: dict[str, Any]) -> None:
        vector = document["golden"][1]
        vector["logprobs"] = [x + 3 * tolerance for x in vector["logprobs"]]

    message = refusal(with_manifest(bundle, shift))
    assert "golden vector 1: this machine differs by 3.0" in message
    assert f"at most {tolerance}" in message


def test_a_golden_vector_within_its_tolerance_is_good(bundle: LanguageModelBundle) -> None:
    def loosen(document: dict[str, Any]) -> None:
        vector = document["golden"][1]
        vector["logprobs"] = [x + 0.01 for x in vector["logprobs"]]
        vector["tolerance"] = 0.02

    OnnxLanguageModelSession(with_manifest(bundle, loosen), "fp32")


def test_a_graph_that_gives_nan_is_refused(bundle: LanguageModelBundle) -> None:
    def poison(proto: onnx.ModelProto) -> None:
        bias = next(x for x in proto.graph.initializer if x.name == "output_bias")
        values = onnx.numpy_helper.to_array(bias).copy()
        values[-1] = np.nan
        bias.raw_data = values.tobytes()

    assert "golden vector 0: this machine differs by nan" in refusal(with_graph(bundle, poison))


def without_int8(document: dict[str, Any]) -> None:
    document["graphs"] = [x for x in document["graphs"] if x["precision"] == "fp32"]
    document["precision"] = "fp32"


def test_a_precision_that_the_bundle_does_not_have_is_refused(bundle: LanguageModelBundle) -> None:
    with pytest.raises(BundleError, match="tiny-gru: no int8 graph; it has fp32"):
        OnnxLanguageModelSession(with_manifest(bundle, without_int8), "int8")


def test_the_tensor_order_of_the_manifest_is_the_graphs(bundle: LanguageModelBundle) -> None:
    described = bundle.manifest.graphs[0]
    names = [tensor.name for tensor in described.inputs]
    assert names == ["tokens", "lengths", "targets", "h0", "h1"]
    assert described.outputs[0] == Tensor(name="target_logprobs", dtype="float32", shape=["B", "T"])


# --- two precisions -------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_stepping_gives_what_reading_gives_whatever_the_rows(
    cell: str, precision: Precision
) -> None:
    bundle = in_memory(*tiny_files(cell))
    session = OnnxLanguageModelSession(bundle, precision)
    assert session.precision == precision
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, session.vocab_size, (7, 12))
    stepper = session.stepper(7)
    states = session.initial_states(7)
    for t, rows in enumerate([7, 7, 3, 3, 1, 1, 1, 3, 3, 2, 2, 1]):
        # Fewer rows step than there are: the others stay behind.
        lengths = np.ones(rows, np.int32)
        before = tuple(state[:rows].copy() for state in stepper.states)
        logprobs, states = session.read(tokens[:rows, t : t + 1], lengths, before)
        stepper.tokens[:rows] = tokens[:rows, t]
        stepper.step(rows)
        assert stepper.logprobs[:rows].tobytes() == logprobs[:, 0].tobytes()
        for state, wanted in zip(stepper.states, states, strict=True):
            assert state[:rows].tobytes() == wanted.tobytes()


def with_step_of(bundle: LanguageModelBundle, other: LanguageModelBundle) -> LanguageModelBundle:
    """The step graph of other weights, truthfully described."""
    step = next(x for x in other.manifest.graphs if x.role == "step")
    graphs = {**bundle.graphs, step.file: other.graphs[step.file]}

    def tell(document: dict[str, Any]) -> None:
        others = [x for x in document["graphs"] if x["role"] != "step"]
        document["graphs"] = [*others, step.model_dump()]

    changed = with_manifest(bundle, tell)
    return LanguageModelBundle(changed.manifest, changed.vocab, graphs)


def test_a_step_graph_that_is_not_the_sequence_graphs_is_refused(
    bundle: LanguageModelBundle,
) -> None:
    loud = in_memory(*tiny_files("gru", scale=3.0))
    with pytest.raises(GoldenMismatch, match="the step graph does not give what the sequence"):
        OnnxLanguageModelSession(with_step_of(bundle, loud), "int8")


def test_a_step_graph_with_another_interface_is_refused(bundle: LanguageModelBundle) -> None:
    lstm = in_memory(*tiny_files("lstm"))
    with pytest.raises(BundleError, match=r"step\.int8\.onnx: inputs must be"):
        OnnxLanguageModelSession(with_step_of(bundle, lstm), "int8")


def spoiled(bundle: LanguageModelBundle, precision: Precision) -> LanguageModelBundle:
    """Golden vectors of a precision that no machine reproduces."""

    def spoil(document: dict[str, Any]) -> None:
        for vector in document["golden"]:
            if vector["precision"] == precision:
                vector["logprobs"] = [x - 0.1 for x in vector["logprobs"]]

    return with_manifest(bundle, spoil)


@pytest.mark.parametrize("wanted", ["auto", "int8"])
def test_a_machine_that_fails_the_int8_vectors_serves_fp32_and_says_so(
    bundle: LanguageModelBundle, wanted: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings.model_validate({"precision": wanted})
    session = open_session(spoiled(bundle, "int8"), settings, OnnxLanguageModelSession)
    assert session.precision == "fp32"
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "in int8, at most" in record.getMessage()
    assert record.getMessage().endswith("it is served in fp32 instead")


@pytest.mark.parametrize("wanted", ["auto", "int8", "fp32"])
def test_a_machine_that_fails_the_fp32_vectors_does_not_serve(
    bundle: LanguageModelBundle, wanted: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = spoiled(spoiled(bundle, "int8"), "fp32")
    with pytest.raises(GoldenMismatch, match="in fp32, at most"):
        open_session(bad, Settings.model_validate({"precision": wanted}), OnnxLanguageModelSession)
    # Only where something else was wanted is there anything to tell.
    assert len(caplog.records) == (wanted != "fp32")


@pytest.mark.parametrize(
    ("setting", "chosen", "served"),
    [
        ("auto", "int8", "int8"),
        ("auto", "fp32", "fp32"),
        ("fp32", "int8", "fp32"),
        ("int8", "fp32", "int8"),
    ],
)
def test_a_setting_goes_before_what_the_export_chose(
    bundle: LanguageModelBundle, setting: str, chosen: str, served: str
) -> None:
    changed = with_manifest(bundle, lambda x: x.update(precision=chosen))
    settings = Settings.model_validate({"precision": setting})
    assert open_session(changed, settings, OnnxLanguageModelSession).precision == served


@pytest.mark.parametrize("name", ["output_bias", "output_weight", "table", "recurrent1_scale"])
def test_a_step_graph_that_differs_anywhere_is_refused(
    bundle: LanguageModelBundle, name: str
) -> None:
    """Also where its states are right and only what it says of them is not."""
    proto = onnx.load_model_from_string(bundle.graphs["step.int8.onnx"])
    (constant,) = (x for x in proto.graph.initializer if x.name == name)
    values = onnx.numpy_helper.to_array(constant).copy()
    values.reshape(-1)[-1] += 0.01
    constant.CopyFrom(onnx.numpy_helper.from_array(values, name))
    graphs = {**bundle.graphs, "step.int8.onnx": proto.SerializeToString()}
    changed = LanguageModelBundle(bundle.manifest, bundle.vocab, graphs)
    with pytest.raises(GoldenMismatch, match="the step graph does not give what the sequence"):
        OnnxLanguageModelSession(changed, "int8")
    assert OnnxLanguageModelSession(changed, "fp32").precision == "fp32"
