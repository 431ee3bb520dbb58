"""Answers of labelers beside the labels in the data, and the metrics of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.labeler import FORBIDDEN, LabelMetric, Labels
from tests.training.labelled import CLASSES, RUNS, UPPER, VOWELS, tiny_labeler_trainer
from training.evaluation.labeler import (
    Judged,
    found_labels,
    judge_network,
    judge_split,
    judged,
    label_metrics,
    network_reader,
    rank_of,
    read_texts,
)
from training.evaluation.linear_chain import Chain

CPU = torch.device("cpu")
THREE = Labels(names=["a", "b", "c"], scope="text", several=False)
ANY = Labels(names=["a", "b", "c"], scope="text", several=True)
TAGS = Labels(names=["O", "x"], scope="character", several=False, outside="O")


def logs(*rows: Sequence[float]) -> list[Any]:
    with np.errstate(divide="ignore"):
        return [np.log(np.array(row)) for row in rows]


def ids(*rows: Sequence[int]) -> list[Any]:
    return [np.array(row, np.int32) for row in rows]


# --- one label each -----------------------------------------------------------------------------


def test_the_metrics_of_one_label_each_are_those_by_hand() -> None:
    rows = logs([0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1])
    values = label_metrics(judged(THREE, rows, ids([0], [1], [1], [1])), THREE)
    assert values["loss"] == pytest.approx(-np.log([0.7, 0.3, 0.3, 0.8]).mean())
    assert values["accuracy"] == 0.5
    # a: given twice, once rightly; b: wanted three times, given once; c is not in the data.
    assert values["macro_f1"] == pytest.approx((2 / 3 + 2 / 4) / 2)
    # Every answer is a bin of its own.
    assert values["ece"] == pytest.approx(np.mean([0.3, 0.6, 0.5, 0.2]))
    assert values.keys() == {"loss", "accuracy", "macro_f1", "ece"}


def test_a_label_that_was_ruled_out_costs_much_but_not_all() -> None:
    (found,) = judged(THREE, logs([0.0, 1.0, 0.0]), ids([0]))
    assert found.nats == -FORBIDDEN


# --- several ------------------------------------------------------------------------------------


def test_the_metrics_of_several_labels_are_those_by_hand() -> None:
    rows = logs([0.9, 0.2, 0.6], [0.4, 0.3, 0.1], [0.1, 0.8, 0.7])
    found = judged(ANY, rows, ids([2, 0], [], [1]))
    assert [x.found.tolist() for x in found] == [[0, 2], [], [1, 2]]
    assert [x.right.tolist() for x in found] == [[True], [False], [True]]
    values = label_metrics(found, ANY)
    right = [0.9, 0.8, 0.6, 0.6, 0.7, 0.9, 0.9, 0.8, 0.3]
    assert values["loss"] == pytest.approx(-np.log(right).mean())
    assert values["accuracy"] == pytest.approx(2 / 3)  # of texts, all labels
    assert values["macro_f1"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert values["micro_f1"] == pytest.approx(2 * 3 / (4 + 3))


def test_a_certain_answer_for_several_labels_has_a_finite_loss() -> None:
    (found,) = judged(ANY, logs([1.0, 1.0, 0.0]), ids([0]))
    assert found.nats == -FORBIDDEN


# --- characters ---------------------------------------------------------------------------------


def test_the_metrics_of_tags_are_those_by_hand() -> None:
    rows = [np.log([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.log([[0.3, 0.7], [0.6, 0.4]])]
    found = judged(TAGS, rows, ids([0, 1, 1], [0, 0]))
    values = label_metrics(found, TAGS)
    assert values["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.6, 0.3, 0.6]).mean())
    assert values["accuracy"] == 0.8
    assert values["exact_match"] == 0.5
    assert values["span_f1"] == pytest.approx(2 * 1 / (2 + 1))  # one tag too many
    assert values["macro_f1"] == pytest.approx((2 * 2 / (3 + 2) + 2 * 2 / (3 + 2)) / 2)
    assert "micro_f1" not in values


def test_labels_that_are_applied_have_no_spans() -> None:
    rows = [np.log(np.full((2, 3), 1 / 3))]
    assert "span_f1" not in label_metrics(judged(UPPER, rows, ids([0, 1])), UPPER)


@given(seed=st.integers(0, 2**32 - 1), labels=st.integers(1, 4))
def test_a_chain_without_transitions_is_no_chain(seed: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    tags = Labels(names=list("abcd"[:labels]), scope="character", several=False)
    logits = [rng.normal(size=(n, labels)) for n in (3, 1, 5)]
    rows = [x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in logits]
    wanted = [rng.integers(0, labels, len(x)).astype(np.int32) for x in rows]
    nothing = Chain(np.zeros((labels, labels)), np.zeros(labels), np.zeros(labels))
    # The exponents of a chain need not be normalized.
    for plain, chained in zip(
        judged(tags, rows, wanted), judged(tags, logits, wanted, nothing), strict=True
    ):
        assert plain.found.tolist() == chained.found.tolist()
        assert chained.nats == pytest.approx(plain.nats, abs=1e-9)
        assert chained.confidences == pytest.approx(plain.confidences, abs=1e-9)


def test_a_chain_answers_with_its_likeliest_path() -> None:
    # Each character alone would be x; but x never follows O, and O is certain at first.
    chain = Chain(np.array([[0.0, -50.0], [0.0, 0.0]]), np.array([0.0, -50.0]), np.zeros(2))
    rows = [np.log([[0.5, 0.5], [0.4, 0.6]])]
    assert [x.tolist() for x in found_labels(TAGS, rows, chain)] == [[0, 0]]
    (found,) = judged(TAGS, rows, ids([0, 0]), chain)
    assert found.nats == pytest.approx(0.0, abs=1e-9)
    assert found.confidences == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("metric", "rank"), [("loss", 0.3), ("ece", 0.3), ("accuracy", -0.3), ("macro_f1", -0.3)]
)
def test_of_errors_the_least_ranks_first_and_of_the_others_the_most(
    metric: LabelMetric, rank: float
) -> None:
    assert rank_of(metric, {metric: 0.3}) == rank


# --- reading a split ----------------------------------------------------------------------------


def same(first: Judged, second: Judged) -> bool:
    return first.found.tolist() == second.found.tolist() and abs(first.nats - second.nats) < 1e-5


@pytest.mark.parametrize("sort", ["attention", "forward", "several", "chain", "masked"])
def test_a_split_is_judged_in_order_as_each_text_by_itself(tmp_path: Any, sort: str) -> None:
    run = tiny_labeler_trainer(tmp_path, sort)
    corpus = run.task.corpus  # type: ignore[attr-defined]
    split, labels = corpus.valid, corpus.labels
    together = judge_network(run.model, split, labels, CPU)
    assert [x.wanted.tolist() for x in together] == [x.tolist() for x in split.labels]
    forward = run.model.head.direction == "forward"
    read = network_reader(run.model, labels, CPU)
    chain = None
    if run.model.chain is not None:
        chain = Chain(np.zeros((2, 2)), np.zeros(2), np.zeros(2))  # as it starts
    for i in range(len(split)):
        one = type(split)(
            "one", split.texts[i : i + 1], split.tokens[i : i + 1], split.labels[i : i + 1]
        )
        (alone,) = judge_split(read, one, labels, forward=forward, chain=chain)
        assert same(alone, together[i])


def test_a_text_that_is_read_forward_has_the_answer_of_its_end() -> None:
    def read(tokens: Any, lengths: Any) -> Any:
        assert tokens.shape[1] == max(lengths)
        return np.broadcast_to(np.arange(tokens.shape[1])[None, :, None], (*tokens.shape, 3))

    tokens = [np.array([5] * n, np.uint16) for n in (3, 1)]
    found = {
        index: x
        for indices, logprobs in read_texts(read, tokens, CLASSES, forward=True)
        for index, x in zip(indices, logprobs, strict=True)
    }
    assert {i: x.tolist() for i, x in found.items()} == {0: [3] * 3, 1: [1] * 3}


@pytest.mark.parametrize("labels", [RUNS, VOWELS])
def test_batches_are_bounded(labels: Labels) -> None:
    sizes: list[int] = []

    def read(tokens: Any, _: Any) -> Any:
        sizes.append(len(tokens))
        shape = tokens.shape if labels.scope == "character" else tokens.shape[:1]
        return np.zeros((*shape, len(labels.names)))

    tokens = [np.array([5] * (n % 7 + 1), np.uint16) for n in range(600)]
    found = [i for indices, _ in read_texts(read, tokens, labels, forward=False) for i in indices]
    assert sorted(found) == list(range(600))
    assert max(sizes) == 256
