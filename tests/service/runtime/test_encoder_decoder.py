"""An encoder-decoder in onnxruntime: the same bits in any company, and the graphs it refuses."""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest

from service.bundle.arrays import Float32Array, Ids
from service.bundle.encoder_decoder import EncoderDecoderBundle, EncoderDecoderManifest
from service.bundle.files import BundleError
from service.bundle.manifest import Precision
from service.bundle.text import BOS_ID, EOS_ID
from service.decoding.search import Search
from service.runtime.encoder_decoder import Encoded, OnnxEncoderDecoderSession, Step
from service.runtime.golden import GoldenMismatch
from service.runtime.graphs import open_graph
from service.runtime.runs import pad_sources
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from service.settings import Settings
from service.tasks.kinds import open_session
from tests.bundles import HIDDEN, POOL_STRIDE, encoder_decoder_in_memory, tiny_encoder_decoder_files
from tests.service.search_reference import found, source_of
from training.export.manifest_parts import describe_graph

ENCODER, DECODER = "encoder.fp32.onnx", "decoder.fp32.onnx"
Change: TypeAlias = Callable[[dict[str, Any]], object]

KINDS = [
    {"cell": cell, "attention": attention, "encoder": encoder, "input_feeding": feeding}
    for (cell, attention, encoder), feeding in zip(
        itertools.product(
            ("rnn", "gru", "lstm"), ("none", "dot", "general", "additive"), ("recurrent", "crnn")
        ),
        # A period of three against products of two and four: with and without for each of them.
        itertools.cycle([False, True, True]),
        strict=False,
    )
]
every_kind = pytest.mark.parametrize(
    "kind",
    KINDS,
    ids=lambda x: f"{x['cell']}-{x['attention']}-{x['encoder']}" + "-fed" * x["input_feeding"],
)
both_precisions = pytest.mark.parametrize("precision", ["fp32", "int8"])


def bundle_of(kind: dict[str, Any]) -> EncoderDecoderBundle:
    """The tiny bundle of a kind, exported once."""
    return _bundle(tuple(kind.items()))


@cache
def _bundle(kind: tuple[tuple[str, Any], ...]) -> EncoderDecoderBundle:
    return encoder_decoder_in_memory(*tiny_encoder_decoder_files(**dict(kind)))


def sources_like(rng: np.random.Generator, size: int, count: int, longest: int) -> list[Ids]:
    """Sources of one padded length."""
    lengths = rng.integers(longest - 14, longest + 1, count)
    return [source_of(rng.integers(4, size, length - 1).tolist()) for length in lengths]


def encode(session: OnnxEncoderDecoderSession, sources: list[Ids]) -> Encoded:
    lengths = np.array([len(source) for source in sources], np.int32)
    return session.encode(pad_sources(list(sources)), lengths)


def tensors(step: Step) -> list[Float32Array]:
    return [step.logprobs, *step.states, *([] if step.attention is None else [step.attention])]


@every_kind
@both_precisions
def test_a_sources_rows_are_in_company_what_they_are_alone(
    kind: dict[str, Any], precision: Precision
) -> None:
    bundle = bundle_of(kind)
    session = OnnxEncoderDecoderSession(bundle, precision)
    rng = np.random.default_rng(1)
    for longest, width in ((16, 1), (16, 5), (48, 3)):
        sources = sources_like(rng, len(bundle.source), 7, longest)
        tokens = rng.integers(0, session.vocab_size, (6, 7 * width))
        together = encode(session, sources)
        states = tuple(np.repeat(state, width, axis=0) for state in together.states)
        steps = []
        for step_tokens in tokens:
            step = session.step(step_tokens, states, together.memory, attention=True)
            states = step.states
            steps.append(step)
        for place, source in enumerate(sources):
            rows = slice(place * width, (place + 1) * width)
            alone = encode(session, [source])
            for ours, theirs in zip(alone.memory, together.memory, strict=True):
                np.testing.assert_array_equal(ours[0], theirs[place])
            states = tuple(np.repeat(state, width, axis=0) for state in alone.states)
            for step_tokens, beside in zip(tokens, steps, strict=True):
                own = session.step(step_tokens[rows], states, alone.memory, attention=True)
                states = own.states
                for ours, theirs in zip(tensors(own), tensors(beside), strict=True):
                    np.testing.assert_array_equal(ours, theirs[rows])


@every_kind
@both_precisions
def test_pads_are_zeros_and_change_nothing_of_a_source(
    kind: dict[str, Any], precision: Precision
) -> None:
    """What the session makes of sources is what the graph makes of them whole, but for pads."""
    bundle = bundle_of(kind)
    session = OnnxEncoderDecoderSession(bundle, precision)
    graph = bundle.graph(precision, "encoder")
    assert graph is not None
    whole = open_graph("whole", *graph)
    states = [f"{state.name}_out" for state in bundle.manifest.states]
    memory = {x.name: x.shape.index("M") for x in bundle.manifest.memory}
    stride = bundle.manifest.memory_stride
    for longest in (16, 48):
        sources = sources_like(np.random.default_rng(4), len(bundle.source), 9, longest)
        found = encode(session, sources)
        lengths = np.array([len(source) for source in sources], np.int32)
        feeds = {"tokens": pad_sources(list(sources)), "lengths": lengths}
        expected = whole.run([*states, *memory], feeds)
        for ours, theirs in zip(found.states, expected, strict=False):
            np.testing.assert_array_equal(ours, theirs)
        for ours, theirs, axis in zip(
            found.memory, expected[len(states) :], memory.values(), strict=True
        ):
            assert ours.shape == theirs.shape
            for row, other, length in zip(ours, theirs, lengths, strict=True):
                inside = slice(-(-int(length) // stride))
                mine, its = (np.moveaxis(x, axis, 0) for x in (row, other))
                np.testing.assert_array_equal(mine[inside], its[inside])
                if kind["encoder"] == "recurrent":
                    assert not mine[-(-int(length) // 4) * 4 :].any()


@every_kind
def test_a_search_finds_in_company_what_it_finds_alone(kind: dict[str, Any]) -> None:
    bundle = bundle_of(kind)
    session = OnnxEncoderDecoderSession(bundle, bundle.manifest.precision)
    rng = np.random.default_rng(2)

    def searches() -> list[Search]:
        return [
            Search(source, width, 20, num_hypotheses=width, wants_attention=place % 2 == 0)
            for place, (source, width) in enumerate(zip(sources, widths, strict=True))
        ]

    sources = sources_like(rng, len(bundle.source), 8, 16)
    sources += sources_like(rng, len(bundle.source), 4, 32)
    widths = [1, 4] * 6
    together, alone = searches(), searches()
    runner = EncoderDecoderRunner(session, name="all")
    for place in range(0, 12, 3):
        runner.admit(together[place : place + 3])
        runner.run()
    while not runner.free:
        runner.run()
    for one in alone:
        runner.admit([one])
        while not runner.free:
            runner.run()
    assert [found(x) for x in together] == [found(x) for x in alone]
    assert all(x.hypotheses for x in together)


@every_kind
def test_a_step_gives_a_distribution_and_weights_over_the_source(kind: dict[str, Any]) -> None:
    bundle = bundle_of(kind)
    session = OnnxEncoderDecoderSession(bundle, "fp32")
    sources = [source_of([4, 5, 6, 7, 8]), source_of([])]
    encoded = encode(session, sources)
    tokens = np.full(2, BOS_ID)
    step = session.step(tokens, encoded.states, encoded.memory, attention=True)
    assert step.logprobs.shape == (2, session.vocab_size) == (2, len(bundle.target))
    np.testing.assert_allclose(np.exp(step.logprobs).sum(axis=1), 1.0, atol=1e-5)
    assert all(state.shape == (2, HIDDEN) for state in step.states)
    if kind["attention"] == "none":
        assert step.attention is None
        assert encoded.memory == ()
        return
    stride = POOL_STRIDE if kind["encoder"] == "crnn" else 1
    assert step.attention is not None
    assert step.attention.shape == (2, 16 // stride)
    np.testing.assert_allclose(step.attention.sum(axis=1), 1.0, atol=1e-6)
    for weights, source in zip(step.attention, sources, strict=True):
        assert not weights[-(-len(source) // stride) :].any()
    plain = session.step(tokens, encoded.states, encoded.memory, attention=False)
    assert plain.attention is None
    np.testing.assert_array_equal(plain.logprobs, step.logprobs)


def test_what_stands_in_the_pads_does_not_matter() -> None:
    """Only their number does, and that follows from the source's own length."""
    for kind in KINDS:
        session = OnnxEncoderDecoderSession(bundle_of(kind), "fp32")
        padded = pad_sources([source_of([4, 5, 6])])
        other = padded.copy()
        other[0, 4:] = 7
        lengths = np.array([4], np.int32)
        expected, changed = (session.encode(x, lengths) for x in (padded, other))
        token = np.array([BOS_ID])
        steps = [
            session.step(token, x.states, x.memory, attention=True) for x in (expected, changed)
        ]
        for ours, theirs in zip(tensors(steps[0]), tensors(steps[1]), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("tokens", "positions"), [(1, 16), (16, 16), (17, 32), (64, 64), (129, 160)]
)
def test_a_source_is_padded_to_what_follows_from_its_own_length(
    tokens: int, positions: int
) -> None:
    padded = pad_sources([source_of([4] * (tokens - 1))])
    assert padded.shape == (1, positions)
    assert padded[0, tokens - 1] == EOS_ID
    assert not padded[0, tokens:].any()


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle() -> EncoderDecoderBundle:
    return encoder_decoder_in_memory(*tiny_encoder_decoder_files("gru", attention="general"))


def with_manifest(bundle: EncoderDecoderBundle, change: Change) -> EncoderDecoderBundle:
    """The same files under another manifest."""
    document = bundle.manifest.model_dump()
    change(document)
    manifest = EncoderDecoderManifest.model_validate(document)
    return EncoderDecoderBundle(manifest, bundle.source, bundle.target, bundle.graphs)


def with_graph(
    bundle: EncoderDecoderBundle, file: str, change: Callable[[onnx.ModelProto], object]
) -> EncoderDecoderBundle:
    """Another graph under the same manifest."""
    proto = onnx.load_model_from_string(bundle.graphs[file])
    change(proto)
    graphs = {**bundle.graphs, file: proto.SerializeToString()}
    return EncoderDecoderBundle(bundle.manifest, bundle.source, bundle.target, graphs)


def as_described(bundle: EncoderDecoderBundle, file: str) -> EncoderDecoderBundle:
    """Its manifest tells the truth about a graph."""

    def tell(document: dict[str, Any]) -> None:
        (place,) = (i for i, x in enumerate(document["graphs"]) if x["file"] == file)
        graph = document["graphs"][place]
        told = describe_graph(graph["precision"], graph["role"], bundle.graphs[file])
        document["graphs"][place] = told.model_dump()

    return with_manifest(bundle, tell)


def refusal(bundle: EncoderDecoderBundle, precision: Precision = "fp32") -> str:
    """The line of cause."""
    with pytest.raises(BundleError) as refused:
        OnnxEncoderDecoderSession(bundle, precision)
    message = str(refused.value)
    assert message.isprintable()
    assert message.startswith("tiny-pairs: ")
    return message


@pytest.mark.parametrize("file", [ENCODER, DECODER])
@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"\x08\x09"])
def test_bytes_that_are_no_graph_are_refused(
    bundle: EncoderDecoderBundle, file: str, data: bytes
) -> None:
    graphs = {**bundle.graphs, file: data}
    broken = EncoderDecoderBundle(bundle.manifest, bundle.source, bundle.target, graphs)
    assert f"{file}: not a usable graph: " in refusal(broken)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x["graphs"][0]["inputs"][1].update(dtype="int64"), f"{ENCODER}: its inputs are"),
        (lambda x: x["graphs"][1]["inputs"].pop(), f"{DECODER}: its inputs are not"),
        (lambda x: x["graphs"][1]["outputs"].pop(), f"{DECODER}: its outputs are not"),
        (lambda x: x["states"][0].update(shape=[HIDDEN + 1]), f"{ENCODER}: outputs must be"),
        (lambda x: x["states"].pop(), f"{ENCODER}: outputs must be"),
        (lambda x: x["memory"][1].update(shape=["M", HIDDEN + 1]), f"{ENCODER}: outputs must be"),
        (lambda x: x["memory"][0].update(name="locks"), f"{ENCODER}: outputs must be"),
        (lambda x: x.update(memory=[]), f"{ENCODER}: outputs must be"),
        (lambda x: x["target"]["vocab"].update(size=99), f"{DECODER}: outputs must be"),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(
    bundle: EncoderDecoderBundle, change: Change, cause: str
) -> None:
    assert cause in refusal(with_manifest(bundle, change))


def rename_output(proto: onnx.ModelProto, old: str, new: str) -> None:
    for node in proto.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]
    for value in proto.graph.output:
        value.name = new if value.name == old else value.name


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [(ENCODER, "keys", "locks"), (DECODER, "logprobs", "logits"), (DECODER, "h0_out", "h9_out")],
)
def test_a_graph_that_this_code_cannot_feed_is_refused(
    bundle: EncoderDecoderBundle, file: str, old: str, new: str
) -> None:
    """Also where the manifest tells the truth about it."""
    if (file, old) == (DECODER, "logprobs"):
        new = "likelihoods"
    changed = with_graph(bundle, file, lambda proto: rename_output(proto, old, new))
    assert f"{file}: its outputs are not the manifest's" in refusal(changed)
    assert f"{file}: outputs must be" in refusal(as_described(changed, file))


def nudge(proto: onnx.ModelProto, name: str) -> None:
    (constant,) = (x for x in proto.graph.initializer if x.name == name)
    values = onnx.numpy_helper.to_array(constant).copy()
    values.reshape(-1)[-1] += 0.5
    constant.CopyFrom(onnx.numpy_helper.from_array(values, name))


@pytest.mark.parametrize(
    ("file", "name"), [(ENCODER, "embedding_columns"), (DECODER, "output_bias")]
)
def test_graphs_with_other_numbers_are_refused(
    bundle: EncoderDecoderBundle, file: str, name: str
) -> None:
    changed = with_graph(bundle, file, lambda proto: nudge(proto, name))
    with pytest.raises(
        GoldenMismatch, match=r"tiny-pairs: golden vector \d+: this machine differs"
    ):
        OnnxEncoderDecoderSession(changed, "fp32")


def test_a_golden_vector_of_nan_is_refused(bundle: EncoderDecoderBundle) -> None:
    def poison(proto: onnx.ModelProto) -> None:
        (constant,) = (x for x in proto.graph.initializer if x.name == "output_bias")
        values = np.full_like(onnx.numpy_helper.to_array(constant), np.nan)
        constant.CopyFrom(onnx.numpy_helper.from_array(values, "output_bias"))

    with pytest.raises(GoldenMismatch, match="differs by nan"):
        OnnxEncoderDecoderSession(with_graph(bundle, DECODER, poison), "fp32")


def test_a_bundle_whose_int8_differs_here_is_served_in_fp32(
    bundle: EncoderDecoderBundle, caplog: pytest.LogCaptureFixture
) -> None:
    changed = with_graph(bundle, "decoder.int8.onnx", lambda proto: nudge(proto, "output_bias"))
    assert open_session(changed, Settings(), OnnxEncoderDecoderSession).precision == "fp32"
    assert "it is served in fp32 instead" in caplog.text


def test_a_precision_that_is_not_there_is_refused(bundle: EncoderDecoderBundle) -> None:
    def leave_out(document: dict[str, Any]) -> None:
        document["graphs"] = [x for x in document["graphs"] if x["precision"] == "fp32"]
        document["golden"] = [x for x in document["golden"] if x["precision"] == "fp32"]
        document["precision"] = "fp32"

    message = refusal(with_manifest(bundle, leave_out), "int8")
    assert message == "tiny-pairs: no int8 encoder; it has fp32"
