"""What translations are worth: against naive references and against sacrebleu itself."""

from functools import cache
from typing import Any

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance.Levenshtein import distance as edit_distance

from training.evaluation.metrics import ERRORS, measure, rank_of

texts = st.text("abc", max_size=7)


def naive_distance(one: str, other: str) -> int:
    """Levenshtein's recursion, as it is defined."""

    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        substituted = distance(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, substituted)

    return distance(len(one), len(other))


# --- edit distance ------------------------------------------------------------------------------


@given(texts, texts)
def test_edit_distance_is_the_recursion_of_its_definition(one: str, other: str) -> None:
    assert edit_distance(one, other) == naive_distance(one, other)


@given(texts, texts, texts)
def test_edit_distance_is_a_metric(one: str, other: str, third: str) -> None:
    assert (edit_distance(one, other) == 0) == (one == other)
    assert edit_distance(one, other) == edit_distance(other, one)
    assert edit_distance(one, third) <= edit_distance(one, other) + edit_distance(other, third)


def test_edits_are_of_symbols() -> None:
    assert edit_distance(["AH0", "T"], ["AH1", "T", "S"]) == 2


# --- measure ------------------------------------------------------------------------------------


def test_a_hypothesis_is_right_if_it_is_any_of_the_targets() -> None:
    found = measure(["a", "b", "c", "d"], [["x", "a"], ["b"], ["d"], ["c", "e"]], split=list)
    assert found["exact_match"] == pytest.approx(0.5)
    assert found["word_error_rate"] == pytest.approx(0.5)


def test_symbol_errors_are_counted_to_the_nearest_target_over_its_length() -> None:
    references = [["A B C D", "A X"], ["T"]]
    found = measure(["A B", "T S"], references, split=str.split, corpus_metrics=False)
    # A substitution to "A X", two symbols; one deletion to "T", one symbol.
    assert found["symbol_error_rate"] == pytest.approx(2 / 3)


def test_of_equally_near_targets_the_shorter_one_counts() -> None:
    found = measure(["ab"], [["abc", "a"]], split=list, corpus_metrics=False)
    assert found["symbol_error_rate"] == pytest.approx(1.0)


def test_an_empty_hypothesis_misses_every_symbol() -> None:
    found = measure(["", "abc"], [["abc"], ["abc"]], split=list)
    assert found["symbol_error_rate"] == pytest.approx(0.5)
    assert found["exact_match"] == pytest.approx(0.5)


def test_more_edits_than_symbols_are_more_than_one() -> None:
    found = measure(["abcd"], [["x"]], split=list, corpus_metrics=False)
    assert found["symbol_error_rate"] == pytest.approx(4.0)


def test_perfect_translations_have_the_best_value_of_every_metric() -> None:
    wanted = [["the cat sat on the mat"], ["a dog barked at the old tree"]]
    found = measure([x[0] for x in wanted], wanted, split=list)
    assert found == pytest.approx(
        {
            "exact_match": 1.0,
            "word_error_rate": 0.0,
            "symbol_error_rate": 0.0,
            "bleu": 100.0,
            "chrf": 100.0,
        }
    )


def test_without_corpus_metrics_there_are_no_bleu_and_chrf() -> None:
    found = measure(["a"], [["a"]], split=list, corpus_metrics=False)
    assert set(found) == {"exact_match", "word_error_rate", "symbol_error_rate"}


def test_bleu_is_left_out_where_no_target_has_four_words() -> None:
    found = measure(["a b c d e"], [["MDCVI", "one two three"]], split=list)
    assert "chrf" in found
    assert "bleu" not in found
    # A translation too short for it is another matter.
    assert measure(["one"], [["one", "one two three four"]], split=list)["bleu"] == 0.0


def test_hypotheses_and_references_are_of_one_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        measure(["a", "b"], [["a"]], split=list)


# --- sacrebleu ----------------------------------------------------------------------------------

HYPOTHESES = [
    "the cat sat on the mat today",
    "there is a small house beside the river",
    "he went home early",
]
REFERENCES = [
    ["the cat sat on a mat today", "today the cat was sitting on the mat"],
    ["there is a little house beside the river", "a small house stands beside the river"],
    ["he went home early in the evening", "he left early"],
]


@pytest.mark.parametrize("count", [1, 2])
def test_bleu_and_chrf_are_what_sacrebleu_says(count: int) -> None:
    wanted = [x[:count] for x in REFERENCES]
    found = measure(HYPOTHESES, wanted, split=list)
    lists = [[x[i] for x in wanted] for i in range(count)]
    assert found["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, lists).score
    assert found["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, lists).score
    assert 5.0 < found["bleu"] < 95.0


def test_sources_may_have_different_numbers_of_targets() -> None:
    wanted = [REFERENCES[0][:1], REFERENCES[1], REFERENCES[2][:1]]
    found = measure(HYPOTHESES, wanted, split=list)
    # What is not there is as good as a copy of what is.
    filled = [[x[0] for x in wanted], [x[-1] for x in wanted]]
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(HYPOTHESES, filled).score)
    lists: list[Any] = [[x[0] for x in wanted], [None, wanted[1][1], None]]
    assert found["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, lists).score
    alone = measure(HYPOTHESES, [x[:1] for x in wanted], split=list)
    assert found["bleu"] != alone["bleu"]


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["loss", "word_error_rate", "symbol_error_rate"])
def test_of_errors_less_is_better(metric: Any) -> None:
    assert metric in ERRORS
    assert rank_of(metric, {metric: 0.1}) < rank_of(metric, {metric: 0.2})


@pytest.mark.parametrize("metric", ["exact_match", "bleu", "chrf"])
def test_of_the_others_more_is_better(metric: Any) -> None:
    assert metric not in ERRORS
    assert rank_of(metric, {metric: 0.2}) < rank_of(metric, {metric: 0.1})
