"""Labelers' graphs: the same bits at any shape, also where operators work in blocks of 16."""

from functools import cache

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from service.bundle.manifest import Precision
from service.bundle.text import PAD_ID
from training.config import LabelerNetworkConfig
from training.export.sessions import open_session
from training.graphs.labeler import build_labeler
from training.networks.labeler import Head, Labeler

VOCAB_SIZE, LABELS = 60, 37
HEADS = {
    "max": Head(num_labels=LABELS, pooling="max"),
    "last": Head(num_labels=LABELS, pooling="last"),
    "attention": Head(num_labels=LABELS, pooling="attention"),
    "places": Head(num_labels=LABELS),
    "forward max": Head(num_labels=LABELS, pooling="max", direction="forward"),
    "forward last": Head(num_labels=LABELS, pooling="last", direction="forward"),
}
CASES = [
    ("max", "lstm", False),
    ("max", "rnn", True),
    ("last", "gru", True),
    ("attention", "gru", False),
    ("places", "rnn", False),
    ("places", "lstm", True),
    ("forward max", "lstm", True),
    ("forward last", "rnn", False),
]


@cache
def made(head: str, cell: str) -> Labeler:
    config = LabelerNetworkConfig.model_validate(
        {"cell": cell, "num_layers": 2, "hidden_size": 40, "embedding_dim": 24}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Labeler(config, HEADS[head], VOCAB_SIZE).eval()


@cache
def session_of(
    head: str, cell: str, precision: Precision, *, several: bool
) -> onnxruntime.InferenceSession:
    return open_session(build_labeler(made(head, cell), precision, several=several))


def read(
    session: onnxruntime.InferenceSession,
    model: Labeler,
    texts: list[npt.NDArray[np.int64]],
    places: int,
) -> list[npt.NDArray[np.float32]]:
    """Each text's answers, [L] or those of its own places, in a batch of this length."""
    tokens = np.full((len(texts), places), PAD_ID, np.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = text
    lengths = np.array([len(text) for text in texts], np.int32)
    states = zip(model.state_names, model.initial_states(len(texts)), strict=True)
    feeds = {"tokens": tokens, "lengths": lengths, **{x: y.numpy() for x, y in states}}
    (found,) = session.run(["logprobs"], feeds)
    if not model.labels_places:
        return list(found)
    return [own[:n] for own, n in zip(found, lengths, strict=True)]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("head", "cell", "several"), CASES)
@given(
    seed=st.integers(0, 99),
    lengths=st.lists(st.integers(2, 33), min_size=1, max_size=20),
    more=st.integers(0, 20),
)
@settings(max_examples=10)
def test_a_text_has_the_same_bits_in_any_batch_and_at_any_padding(
    precision: Precision,
    head: str,
    cell: str,
    *,
    several: bool,
    seed: int,
    lengths: list[int],
    more: int,
) -> None:
    model = made(head, cell)
    session = session_of(head, cell, precision, several=several)
    rng = np.random.default_rng(seed)
    texts = [rng.integers(3, VOCAB_SIZE, n) for n in lengths]
    places = max(lengths) + more
    for text, found in zip(texts, read(session, model, texts, places), strict=True):
        # Attention adds up over places, so their number is the same.
        alone = read(session, model, [text], places if head == "attention" else len(text))[0]
        np.testing.assert_array_equal(found, alone)


def test_a_probability_of_each_label_is_right_however_large_its_logit() -> None:
    model = made("max", "lstm")
    wanted = torch.linspace(-90.0, 90.0, LABELS)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(wanted)
    session = open_session(build_labeler(model, "fp32", several=True))
    made.cache_clear()
    (found,) = read(session, model, [np.array([5, 6, 7])], 3)
    exact = functional.logsigmoid(wanted.double()).numpy()
    np.testing.assert_allclose(found, exact, atol=1e-7, rtol=1e-6)


def test_eight_bits_hold_the_factors_of_a_table_that_would_be_larger() -> None:
    graph = onnx.load_model_from_string(build_labeler(made("max", "lstm"), "int8"))
    names = {x.name for x in graph.graph.initializer}
    assert "embedding_columns_stored" in names
    assert "forward0_table" not in names
