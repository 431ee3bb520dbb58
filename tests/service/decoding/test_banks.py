"""Beam searches whose targets must contain words: rows are shared out by what is still missing."""

import itertools
from typing import Any

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import EOS_ID, PAD_ID, SPECIAL_TOKENS
from service.decoding.banks import shared_out
from service.decoding.constraints import MustContain, compile_rule
from service.decoding.search import Search
from service.decoding.spelling import Writing
from service.scheduling.encoder_decoder import EncoderDecoderRunner
from service.settings import Settings
from tests.fakes import FakeEncoderDecoderSession
from tests.service.search_reference import alone, source_of

LETTERS = "abcdef"
NEVER = -np.inf


def test_each_stage_has_its_turn_and_ends_compete_in_the_last() -> None:
    scores = np.full((3, 5), NEVER)
    scores[0, 3:] = [-1.0, -2.0]  # nothing of the word yet, or its first token
    scores[1, 3:] = [-1.5, -9.0]  # the same, and two tokens
    scores[2, EOS_ID:] = [-20.0, -21.0, -30.0]  # the word is there
    missing = np.array([[9, 9, 9, 2, 1], [9, 9, 9, 2, 0], [9, 9, 0, 0, 0]], np.int32)
    end = 2 * 5 + EOS_ID  # the second of the last stage
    assert shared_out(scores, missing).tolist() == [end, 3, 4, 9, PAD_ID, PAD_ID]
    scores[2, 3:] = [-10.0, -11.0]  # now it is the fourth, and there are three rows
    assert end not in shared_out(scores, missing)


def test_with_more_stages_than_rows_those_go_on_whose_tokens_cost_least() -> None:
    scores = np.full((2, 6), NEVER)
    scores[0, 3:] = [-1.0, -7.0, -3.0]
    missing = np.array([[9, 9, 9, 3, 2, 1], [9] * 6], np.int32)
    assert shared_out(scores, missing).tolist()[:2] == [3, 5]


def test_where_nothing_can_go_on_nothing_is_chosen() -> None:
    places = shared_out(np.full((2, 5), NEVER), np.full((2, 5), 9, np.int32))
    assert places.tolist() == [PAD_ID] * 4


def test_a_word_is_put_where_the_model_likes_it() -> None:
    """Compared with all targets; by likelihood alone, the word waits until it has to come."""
    writing = Writing.of_characters((*SPECIAL_TOKENS, *LETTERS))
    rule = compile_rule(MustContain(("cad",)), writing, Settings())
    word, longest = (6, 4, 7), 5
    texts = [x for n in range(longest + 1) for x in itertools.product(range(4, 10), repeat=n)]
    wanted = [x for x in texts if any(x[i : i + 3] == word for i in range(len(x)))]
    session = FakeEncoderDecoderSession()
    found = masked = 0
    for source in (source_of([i, j]) for i in range(4, 10) for j in (4, 5)):

        def search(width: int, source: Ids = source, **options: Any) -> Search:
            return Search(source, width, longest + 1, length_penalty=0.0, **options)

        best = alone(session, search(len(wanted)), wanted)[0].tokens
        masked += alone(session, search(6), wanted)[0].tokens == best
        shared = search(6, constraint=rule)
        runner = EncoderDecoderRunner(session, name="fake")
        runner.admit([shared])
        while not runner.free:
            runner.run()
        found += shared.best()[0].tokens == best
    assert (masked, found) == (7, 11)  # of 12
