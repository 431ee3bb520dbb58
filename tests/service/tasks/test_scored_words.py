"""Scores by word: where words begin and end, and that their log-probabilities add up exactly."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.rows import TokenDetails
from service.tasks.scored_words import ScoredWord, ScoredWords, exact_shares

LOGPROB = st.floats(-120.0, 0.0, width=32)


def details(logprobs: list[float]) -> list[TokenDetails]:
    """As a row keeps them: a part for each run."""
    count = len(logprobs)
    whole = TokenDetails(
        logprob=np.array(logprobs, np.float32),
        entropy=np.zeros(count),
        rank=np.ones(count, np.int64),
        top_ids=np.zeros((count, 0), np.int64),
        top_logprobs=np.zeros((count, 0), np.float32),
    )
    cut = count // 3
    parts = [slice(0, cut), slice(cut, count)]
    return [TokenDetails(*(column[part] for column in whole.columns)) for part in parts]


def words_of(
    text: str, logprobs: list[float], *, uncounted: int = 0, eos: bool = False
) -> list[ScoredWord]:
    return list(ScoredWords(text, details(logprobs), uncounted=uncounted, eos=eos))


@pytest.mark.parametrize(
    ("text", "words", "of_eos"),
    [
        ("", [], [""]),
        ("a", ["a"], ["a"]),
        ("a b", ["a ", "b"], ["a ", "b"]),
        ("so, it  goes.\n", ["so, ", "it  ", "goes.\n"], ["so, ", "it  ", "goes.\n", ""]),
        ("\t a\r\nb", ["\t ", "a\r\n", "b"], ["\t ", "a\r\n", "b"]),
        (" ", [" "], [" ", ""]),
        ("a\u00a0b\u2028c\u200bd", ["a\u00a0", "b\u2028", "c\u200bd"], None),
    ],
)
def test_a_blank_belongs_to_the_word_that_it_ends(
    text: str, words: list[str], of_eos: list[str] | None
) -> None:
    assert [x.text for x in words_of(text, [-1.0] * len(text))] == words
    ended = words_of(text, [-1.0] * len(text) + [-0.5], eos=True)
    assert [x.text for x in ended] == (words if of_eos is None else of_eos)
    assert ended[-1].logprob == -0.5 - len(ended[-1].text)


@given(
    data=st.data(), text=st.text(st.sampled_from("ab ,\n\u00e9"), max_size=40), eos=st.booleans()
)
def test_words_add_up_to_the_text_in_any_order(data: st.DataObject, text: str, eos: bool) -> None:
    count = len(text) + eos
    logprobs = data.draw(st.lists(LOGPROB, min_size=count, max_size=count))
    words = words_of(text, logprobs, eos=eos)
    assert "".join(x.text for x in words) == text
    assert [text[x.start : x.end] for x in words] == [x.text for x in words]
    total = 0.0
    for logprob in logprobs:
        total += logprob
    shares = [x.logprob for x in words]
    assert sum(shares) == total
    random.Random(1).shuffle(shares)
    assert sum(shares) == total == math.fsum(shares)
    assert sum(x.chars for x in words) == len(text)
    for word in words:
        own = logprobs[word.start : word.end + (word is words[-1] and eos)]
        assert word.logprob <= 0.0
        assert word.logprob == pytest.approx(math.fsum(own), rel=0, abs=len(text) * math.ulp(total))
        assert word.bits == -word.logprob / math.log(2)


@given(st.lists(st.floats(-1e3, 0.0), max_size=30))
def test_shares_of_any_falling_sums_add_up_exactly(steps: list[float]) -> None:
    sums = np.add.accumulate(np.array(steps, np.float64))
    shares = exact_shares(sums)
    assert len(shares) == len(sums)
    if len(sums):
        assert sum(shares.tolist()) == sums[-1]
        assert sum(shares[::-1].tolist()) == sums[-1]
        assert np.abs(np.add.accumulate(shares) - sums).max() <= np.spacing(abs(sums[-1]))


def test_plain_differences_would_not_add_up() -> None:
    rng = np.random.default_rng(3)
    missed = 0
    for _ in range(200):
        sums = np.add.accumulate(-rng.exponential(3.0, 12))
        missed += sum(np.diff(sums, prepend=0.0)[::-1].tolist()) != sums[-1]
        assert sum(exact_shares(sums)[::-1].tolist()) == sums[-1]
    assert missed > 20


def test_a_first_character_without_anything_before_it_is_in_its_word_but_not_counted() -> None:
    first, second = words_of("ab c", [-1.0, -2.0, -4.0], uncounted=1)
    assert (first.text, first.chars, first.logprob) == ("ab ", 2, -3.0)
    assert (second.text, second.chars, second.logprob) == ("c", 1, -4.0)
    (only,) = words_of("a", [], uncounted=1)
    assert (only.text, only.chars, only.logprob, only.bits) == ("a", 0, 0.0, 0.0)
    assert math.copysign(1.0, only.bits) == 1.0
