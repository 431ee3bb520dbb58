"""The session that adapts: rows alone or together, in any pieces, read or stepped, bit for bit."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.arrays import Float32Array, Int64Array
from service.bundle.files import BundleError
from service.bundle.language_model import LanguageModelBundle, LanguageModelManifest
from service.bundle.manifest import Precision
from service.runtime.adapting import AdaptingSession, language_model_sessions
from service.runtime.golden import GoldenMismatch
from service.runtime.language_model import OnnxLanguageModelSession, States
from service.settings import Settings
from service.tasks.kinds import open_session
from tests.adapting_bundles import adapting_bundle
from tests.bundles import in_memory, tiny_files

Kind: TypeAlias = tuple[str, Precision, int | None]  # cell, precision, rank

KINDS: list[Kind] = [
    ("lstm", "fp32", None),
    ("lstm", "int8", 5),
    ("gru", "fp32", 5),
    ("rnn", "int8", None),
]


def session_of(bundle: LanguageModelBundle, precision: Precision) -> AdaptingSession:
    _, adapting = language_model_sessions(bundle, precision)
    assert adapting is not None
    return adapting


_SESSIONS: dict[Kind, AdaptingSession] = {}


def kind_of(cell: str, precision: Precision, rank: int | None) -> AdaptingSession:
    """One session for all examples."""
    key = cell, precision, rank
    if key not in _SESSIONS:
        _SESSIONS[key] = session_of(adapting_bundle(cell, rank=rank, decay=0.001), precision)
    return _SESSIONS[key]


def read_alone(session: AdaptingSession, tokens: Int64Array) -> tuple[Float32Array, States]:
    """One row in one call: log p [T, V], and the states after."""
    lengths = np.array([len(tokens)], np.int32)
    logprobs, states = session.read(tokens[None], lengths, session.initial_states(1))
    return logprobs[0], states


def assert_same(one: States, other: States) -> None:
    # 0.0 equals -0.0: an empty slot may have either, and no number that follows depends on it.
    assert all(map(np.array_equal, one, other))


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_reads_changes_what_it_says(kind: Kind) -> None:
    cell, precision, rank = kind
    base, adapting = language_model_sessions(adapting_bundle(cell, rank=rank), precision)
    assert adapting is not None
    tokens = np.array([4, 5, 6, 4, 5, 6, 4, 5], np.int64)
    lengths = np.array([8], np.int32)
    plain, _ = base.read(tokens[None], lengths, base.initial_states(1))
    adapted, _ = read_alone(adapting, tokens)
    # Nothing is learned before the second token has come.
    assert np.abs(adapted[0] - plain[0, 0]).max() < 1e-5
    assert np.abs(adapted[1:] - plain[0, 1:]).max(axis=1).min() > 1e-4
    assert np.abs(np.exp(adapted).sum(axis=1) - 1).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(data=st.data())
def test_rows_beside_each_other_in_pieces_are_rows_alone(kind: Kind, data: st.DataObject) -> None:
    session = kind_of(*kind)
    ids = st.lists(st.integers(1, session.vocab_size - 1), min_size=1, max_size=40)
    rows = [np.array(x, np.int64) for x in data.draw(st.lists(ids, min_size=1, max_size=5))]
    alone = [read_alone(session, row) for row in rows]
    # Rows join and leave between runs, and every run reads another number of tokens.
    states = [session.initial_states(1) for _ in rows]
    places = [0] * len(rows)
    found: list[list[Float32Array]] = [[] for _ in rows]
    while any(place < len(row) for place, row in zip(places, rows, strict=True)):
        waiting = [i for i, row in enumerate(rows) if places[i] < len(row)]
        running = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        longest = data.draw(st.integers(1, 20))
        counts = [min(longest, len(rows[i]) - places[i]) for i in running]
        tokens = np.zeros((len(running), max(counts)), np.int64)
        for k, i in enumerate(running):
            tokens[k, : counts[k]] = rows[i][places[i] : places[i] + counts[k]]
        before = tuple(np.concatenate(x) for x in zip(*(states[i] for i in running), strict=True))
        logprobs, after = session.read(tokens, np.array(counts, np.int32), before)
        for k, i in enumerate(running):
            found[i].append(logprobs[k, : counts[k]])
            states[i] = tuple(state[k : k + 1].copy() for state in after)
            places[i] += counts[k]
    for i, (logprobs, wanted) in enumerate(alone):
        assert np.concatenate(found[i]).tobytes() == logprobs.tobytes()
        assert_same(states[i], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_picking_is_reading_at_the_targets(kind: Kind) -> None:
    session = kind_of(*kind)
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(1, session.vocab_size, (2, 3, 25))
    lengths = np.array([25, 7, 18], np.int32)
    logprobs, after = session.read(tokens, lengths, session.initial_states(3))
    picked, states = session.pick(tokens, lengths, targets, session.initial_states(3))
    wanted = np.take_along_axis(logprobs, targets[..., None], axis=2)[..., 0]
    for row, length in enumerate(lengths):
        assert picked[row, :length].tobytes() == wanted[row, :length].tobytes()
    assert_same(states, after)


@pytest.mark.parametrize("kind", KINDS)
def test_stepping_gives_what_reading_gives_whatever_the_rows(
    kind: Kind,
) -> None:
    session = kind_of(*kind)
    rng = np.random.default_rng(1)
    tokens = rng.integers(4, session.vocab_size, (7, 60))
    stepper = session.stepper(7)
    for t in range(60):
        rows = int(rng.integers(1, 8))
        before = tuple(state[:rows].copy() for state in stepper.states)
        lengths = np.ones(rows, np.int32)
        logprobs, states = session.read(tokens[:rows, t : t + 1], lengths, before)
        stepper.tokens[:rows] = tokens[:rows, t]
        stepper.step(rows)
        assert stepper.logprobs[:rows].tobytes() == logprobs[:, 0].tobytes()
        assert_same(tuple(state[:rows] for state in stepper.states), states)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_who_does_not_adapt_gets_the_numbers_of_a_model_that_cannot(precision: Precision) -> None:
    can, _ = language_model_sessions(adapting_bundle("lstm"), precision)
    cannot = OnnxLanguageModelSession(in_memory(*tiny_files("lstm")), precision)
    tokens = np.random.default_rng(3).integers(1, can.vocab_size, (3, 20))
    lengths = np.full(3, 20, np.int32)
    one, other = (x.read(tokens, lengths, x.initial_states(3)) for x in (can, cannot))
    assert one[0].tobytes() == other[0].tobytes()
    assert_same(one[1], other[1])


def test_a_bundle_that_cannot_adapt_has_no_such_session() -> None:
    _, adapting = language_model_sessions(in_memory(*tiny_files("gru")), "fp32")
    assert adapting is None


def test_a_second_graph_that_raises_moves_no_state() -> None:
    session = kind_of(*KINDS[0])
    stepper = session.stepper(2)
    stepper.tokens[:] = 4, 5
    stepper.step(2)
    before = [state.copy() for state in stepper.states]
    stepper.tokens[:] = 6, session.vocab_size + 1  # no such token
    with pytest.raises(Exception, match=r"out of (data )?bounds"):
        stepper.step(2)
    assert_same(stepper.states, tuple(before))


# --- what is refused ------------------------------------------------------------------------------


def with_manifest(bundle: LanguageModelBundle, **changes: Any) -> LanguageModelBundle:
    manifest = LanguageModelManifest.model_validate(bundle.manifest.model_dump() | changes)
    return LanguageModelBundle(manifest, bundle.vocab, bundle.graphs)


def spoiled(bundle: LanguageModelBundle, precision: Precision) -> LanguageModelBundle:
    """Golden vectors that adapt and that no machine reproduces."""
    golden = [x.model_dump() for x in bundle.manifest.golden]
    for vector in golden:
        if vector["adapt"] and vector["precision"] == precision:
            vector["logprobs"] = [x - 0.3 for x in vector["logprobs"]]
    return with_manifest(bundle, golden=golden)


def test_a_machine_that_fails_the_vectors_that_adapt_serves_fp32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = with_manifest(adapting_bundle("gru"), precision="int8")
    wanted = Settings()
    assert open_session(bundle, wanted, language_model_sessions)[0].precision == "int8"
    base, adapting = open_session(spoiled(bundle, "int8"), wanted, language_model_sessions)
    assert (base.precision, adapting is None) == ("fp32", False)
    assert "in int8, at most" in caplog.text
    with pytest.raises(GoldenMismatch, match="in fp32, at most"):
        language_model_sessions(spoiled(bundle, "fp32"), "fp32")


@pytest.mark.parametrize("role", ["sequence", "step", "adapt_step"])
def test_a_graph_that_lacks_what_passes_between_the_two_is_refused(role: str) -> None:
    bundle = adapting_bundle("lstm")
    graphs = [x.model_dump() for x in bundle.manifest.graphs]
    for graph in graphs:
        if graph["role"] == role:
            for kind in ("inputs", "outputs"):
                graph[kind] = [x for x in graph[kind] if x["name"] != "logits0"]
    changed = with_manifest(bundle, graphs=graphs)
    with pytest.raises(BundleError, match=rf"{role}\.\w+\.onnx: its (in|out)puts are not"):
        language_model_sessions(changed, "int8")


@pytest.mark.parametrize("role", ["adapt", "adapt_step"])
def test_a_graph_of_another_model_is_refused(role: str) -> None:
    """Each is true to its own manifest."""
    one, other = adapting_bundle("lstm"), adapting_bundle("lstm", rank=3)
    mixed = [(other if x.role == role else one, x.file) for x in one.manifest.graphs]
    described = [x.model_dump() for of, file in mixed for x in of.manifest.graphs if x.file == file]
    manifest = with_manifest(one, graphs=described).manifest
    files = {file: of.graphs[file] for of, file in mixed}
    with pytest.raises(BundleError, match=rf"{role}\.fp32\.onnx: inputs must be"):
        language_model_sessions(LanguageModelBundle(manifest, one.vocab, files), "int8")


def with_parts(document: dict[str, Any], weights: list[float]) -> None:
    """A mixture of networks in which `weights` are the parts', adapting or not."""
    document["parts"] = [
        {"name": f"part {i}", "model": document["model"], "weight": weight, "temperature": 1.0}
        for i, weight in enumerate(weights)
    ]
    document["adapt"] |= {"weights": weights, "temperatures": [1.0] * len(weights)}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda x: x["parts"][0].update(weight=0.5), "parts: weights add up to 0.8, not to 1"),
        (lambda x: x["adapt"].update(weights=[0.9, 0.2]), "adapt.weights: weights add up to 1.1"),
        (lambda x: x["adapt"].update(weights=[1.5, -0.5]), "less than or equal to 1"),
        (lambda x: x["adapt"].update(temperatures=[0.0, 1.0]), "greater than 0"),
        (lambda x: x["adapt"].update(weights=[1.0]), "one weight and one temperature"),
        (lambda x: x["adapt"]["states"][0].update(shape=[2**20]), "at most 1048576 are allowed"),
        (lambda x: x.update(adapt=None), "graphs and golden vectors that adapt need it"),
    ],
)
def test_a_manifest_whose_adapting_does_not_hold_is_refused(
    change: Callable[[dict[str, Any]], object], cause: str
) -> None:
    document = adapting_bundle("gru").manifest.model_dump()
    with_parts(document, [0.7, 0.3])
    LanguageModelManifest.model_validate(document)
    change(document)
    with pytest.raises(ValidationError, match=cause):
        LanguageModelManifest.model_validate(document)
