"""The list of a model's likeliest texts, against every text of a small vocabulary."""

import itertools

import numpy as np
import pytest

from bench.guesses import listed_logprobs, logprob_of
from service.bundle.text import BOS_ID, EOS_ID, UNK_ID
from service.runtime.language_model import OnnxLanguageModelSession
from tests.bundles import in_memory, tiny_files

LONGEST = 5


def test_the_likeliest_texts_are_listed_each_once() -> None:
    files = tiny_files("gru", characters="abc")
    session = OnnxLanguageModelSession(in_memory(*files, "abc"), "fp32")

    def of_length(length: int, *end: int) -> list[float]:
        every = itertools.product(range(UNK_ID + 1, UNK_ID + 4), repeat=length)
        return [logprob_of(session, np.array([BOS_ID, *x, *end], np.uint16)) for x in every]

    wholes = [x for length in range(LONGEST + 1) for x in of_length(length, EOS_ID)]
    # No longer text is as likely as this, since its beginning is not.
    least = max(of_length(LONGEST + 1)) + 1e-3
    expected = sorted(x for x in wholes if x >= least)
    assert len(expected) > 10
    assert listed_logprobs(session, least).tolist() == pytest.approx(expected, abs=1e-5)
