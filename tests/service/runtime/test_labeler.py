"""A labeler in onnxruntime: the same bits in any company, and the graphs it refuses."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.arrays import Float32Array, Int64Array
from service.bundle.files import BundleError
from service.bundle.labeler import LabelerBundle, LabelerManifest
from service.bundle.manifest import Precision
from service.bundle.padding import padded_length
from service.bundle.text import BOS_ID, EOS_ID
from service.runtime.golden import GoldenMismatch
from service.runtime.labeler import OnnxLabelerSession
from service.runtime.runs import pad_sources
from tests.labelers import SORTS, Sort, labeler_in_memory, tiny_labeler_files

Change: TypeAlias = Callable[[dict[str, Any]], object]

# Each with a graph of its own; those of the other sorts are like `plain`.
WHOLE: tuple[Sort, ...] = ("text", "several", "plain", "restore")
CELLS = ("rnn", "gru", "lstm")
VOCAB_SIZE = 16  # of `tests.labelers`
both_precisions = pytest.mark.parametrize("precision", ["fp32", "int8"])
texts = st.lists(st.integers(3, VOCAB_SIZE - 1), max_size=45)


@cache
def bundle_of(sort: Sort, cell: str = "lstm") -> LabelerBundle:
    return labeler_in_memory(*tiny_labeler_files(sort, cell=cell))


@cache
def session_of(sort: Sort, cell: str, precision: Precision) -> OnnxLabelerSession:
    return OnnxLabelerSession(bundle_of(sort, cell), precision)


def label_whole(session: OnnxLabelerSession, given: Sequence[Sequence[int]]) -> list[Float32Array]:
    """Each text's own answers: [L], or [S, L] of its own places."""
    rows = [np.array([BOS_ID, *text, EOS_ID]) for text in given]
    lengths = np.array([len(row) for row in rows], np.int32)
    logprobs, states = session.label(pad_sources(list(rows)), lengths)
    assert states == ()
    if not session.labels_places:
        return list(logprobs)
    return [own[:length] for own, length in zip(logprobs, lengths, strict=True)]


@both_precisions
@pytest.mark.parametrize("sort", WHOLE)
@given(given=st.lists(texts, min_size=1, max_size=9), cell=st.sampled_from(CELLS))
@settings(max_examples=12, deadline=None)
def test_a_texts_numbers_are_in_any_batch_what_they_are_alone(
    sort: Sort, precision: Precision, cell: str, given: list[list[int]]
) -> None:
    session = session_of(sort, cell, precision)
    size = padded_length(len(given[0]) + 2)
    together = [text for text in given if padded_length(len(text) + 2) == size]
    for text, found in zip(together, label_whole(session, together), strict=True):
        np.testing.assert_array_equal(found, label_whole(session, [text])[0])


@both_precisions
@given(
    given=st.lists(texts, min_size=1, max_size=5),
    cell=st.sampled_from(CELLS),
    cuts=st.lists(st.integers(1, 20), max_size=8),
)
@settings(max_examples=25, deadline=None)
def test_a_text_that_is_read_forward_has_the_same_numbers_in_any_chunks_and_any_batch(
    precision: Precision, cell: str, given: list[list[int]], cuts: list[int]
) -> None:
    session = session_of("forward", cell, precision)
    rows = [[BOS_ID, *text] for text in given]
    states = session.initial_states(len(rows))
    parts: list[list[Float32Array]] = [[] for _ in rows]
    starts = np.cumsum([0, *cuts, 100])
    for start, end in pairwise(starts):
        # As a scheduler does: a row that has ended leaves the batch.
        live = [i for i, row in enumerate(rows) if len(row) > start]
        if not live:
            break
        chunks = [rows[i][start:end] for i in live]
        lengths = np.array([len(chunk) for chunk in chunks], np.int32)
        tokens = np.zeros((len(live), lengths.max()), np.int64)
        for place, chunk in enumerate(chunks):
            tokens[place, : len(chunk)] = chunk
        logprobs, after = session.label(tokens, lengths, tuple(x[live] for x in states))
        for state, new in zip(states, after, strict=True):
            state[live] = new
        for place, i in enumerate(live):
            parts[i].append(logprobs[place, : lengths[place]])
    for i, row in enumerate(rows):
        whole, after = session.label(
            np.array([row]), np.array([len(row)], np.int32), session.initial_states(1)
        )
        np.testing.assert_array_equal(np.concatenate(parts[i]), whole[0])
        for ours, theirs in zip(states, after, strict=True):
            np.testing.assert_array_equal(ours[i], theirs[0])


@pytest.mark.parametrize("sort", SORTS)
def test_probabilities_add_up_to_one_unless_a_text_has_several_labels(sort: Sort) -> None:
    session = session_of(sort, "gru", "int8")
    tokens: Int64Array = np.array([[BOS_ID, 5, 9, 7, EOS_ID]])
    logprobs, _ = session.label(tokens, np.array([5], np.int32), session.initial_states(1))
    total = np.exp(logprobs).sum(axis=-1)
    assert logprobs.shape == (1, *([5] if session.labels_places else []), session.num_labels)
    assert np.allclose(total, 1.0, atol=1e-5) is (sort != "several")


def test_a_label_that_a_character_cannot_have_has_no_probability() -> None:
    bundle = bundle_of("restore")
    session = session_of("restore", "lstm", "fp32")
    e, b = (bundle.text.tokens.index(x) for x in "eb")
    (found,) = label_whole(session, [[e, b]])
    names = bundle.manifest.labels.names
    assert np.exp(found[1, [names.index("é"), names.index("")]]).sum() == pytest.approx(1.0)
    assert np.exp(found[2]).tolist() == [1.0] + [0.0] * (len(names) - 1)


def changed(sort: Sort, change: Change) -> LabelerBundle:
    """The tiny bundle, its manifest changed."""
    bundle = bundle_of(sort)
    document = bundle.manifest.model_dump()
    change(document)
    manifest = LabelerManifest.model_validate(document)
    return LabelerBundle(manifest, bundle.text, bundle.graphs)


@pytest.mark.parametrize(
    ("sort", "change", "cause"),
    [
        ("text", lambda x: x["labels"]["names"].append("it"), "outputs must be"),
        ("forward", lambda x: x["states"].pop(), "inputs must be"),
        ("plain", lambda x: x["graphs"][1]["inputs"].pop(), "not the manifest's"),
    ],
)
def test_a_graph_that_is_not_the_manifests_is_refused(
    sort: Sort, change: Change, cause: str
) -> None:
    with pytest.raises(BundleError, match=cause):
        OnnxLabelerSession(changed(sort, change), "int8")


@both_precisions
@pytest.mark.parametrize("sort", SORTS)
def test_a_graph_with_other_answers_is_refused(sort: Sort, precision: Precision) -> None:
    def change(document: dict[str, Any]) -> None:
        for vector in document["golden"]:
            vector["logprobs"][-1] -= 0.1

    with pytest.raises(GoldenMismatch, match=f"nats per token in {precision}"):
        OnnxLabelerSession(changed(sort, change), precision)


def test_a_bundle_without_the_precision_is_refused() -> None:
    def change(document: dict[str, Any]) -> None:
        document["precision"] = "fp32"
        document["graphs"] = [x for x in document["graphs"] if x["precision"] == "fp32"]

    with pytest.raises(BundleError, match="tiny-text: no int8 graph; it has fp32"):
        OnnxLabelerSession(changed("text", change), "int8")
