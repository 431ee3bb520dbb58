"""What answers are made of: details in columns that look like a list, unknown characters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.decoding.rows import TokenDetails
from service.tasks import scored_tokens as tokens_module
from service.tasks import unknown as unknown_module
from service.tasks.scored_tokens import ScoredToken, scored_tokens
from service.tasks.unknown import MAX_POSITIONS, Unknown

NAMES = [f"<{i}>" for i in range(9)]


def details_of(seed: int, count: int, top: int) -> TokenDetails:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, len(NAMES))).astype(np.float32)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return TokenDetails.of(logprobs, rng.integers(0, len(NAMES), count), top)


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(0, 3), st.integers(1, 5))
def test_details_in_columns_are_a_sequence_of_tokens(
    lengths: list[int], top: int, block: int
) -> None:
    parts = [details_of(i, length, top) for i, length in enumerate(lengths)]
    ids = (np.arange(sum(lengths)) % len(NAMES)).astype(np.uint16)
    first = ScoredToken("first", None, None, None, ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "_BLOCK", block)
        found = scored_tokens(NAMES, ids, parts).after([first])
        listed = list(found)
    assert listed[0] is first
    assert len(found) == len(listed) == 1 + len(ids)
    assert [found[i] for i in range(-len(listed), len(listed))] == listed * 2
    assert found[-3:] == tuple(listed[-3:])
    assert found == tuple(listed)
    for token, id_ in zip(listed[1:], ids.tolist(), strict=True):
        assert (token.token, len(token.top)) == (NAMES[id_], top)
    with pytest.raises(IndexError):
        found[len(listed)]


@given(st.lists(st.integers(3, 5), max_size=40), st.integers(1, 6))
def test_unknown_characters_are_counted_and_the_first_positions_told(
    ids: list[int], most: int
) -> None:
    wanted = [i for i, id_ in enumerate(ids) if id_ == 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unknown_module, "MAX_POSITIONS", most)
        found = Unknown.of(np.array(ids, np.uint16))
        assert found == Unknown.at(wanted) == Unknown(len(wanted), tuple(wanted[:most]))
    assert MAX_POSITIONS == 1024
