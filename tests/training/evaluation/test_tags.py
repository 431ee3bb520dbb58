"""Labels of characters as tags."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.labeler import Labels
from service.tasks.tag_spans import TagScheme
from training.evaluation.tags import tagged_text, tags

PLAIN = Labels(names=["O", "x", "y"], scope="character", several=False, outside="O")
WHOLE = Labels(names=["O", "x", "y"], scope="character", several=False)
BIO = Labels(
    names=["O", "B-x", "I-x", "B-y", "I-y"],
    scope="character",
    several=False,
    scheme="bio",
    outside="O",
)
ACCENTS = Labels(names=["", "é"], scope="character", several=False, outside="", applied=True)


@pytest.mark.parametrize(
    ("labels", "ids", "found"),
    [
        (PLAIN, [], []),
        (PLAIN, [0, 0], []),
        (PLAIN, [1, 1, 2, 0, 1], [(0, 2, "x"), (2, 3, "y"), (4, 5, "x")]),
        (WHOLE, [0, 1, 1], [(0, 1, "O"), (1, 3, "x")]),  # nothing is outside
        (BIO, [0, 1, 2, 2, 0], [(1, 4, "x")]),
        (BIO, [1, 1, 2], [(0, 1, "x"), (1, 3, "x")]),
        (BIO, [1, 4, 4], [(0, 1, "x"), (1, 3, "y")]),  # I-y continues no x
        (BIO, [2, 2, 0, 4], [(0, 2, "x"), (3, 4, "y")]),  # it continues nothing: it begins one
    ],
)
def test_runs_of_labels_are_tags(
    labels: Labels, ids: list[int], found: list[tuple[int, int, str]]
) -> None:
    assert tags(ids, labels) == found


@pytest.mark.parametrize(
    ("labels", "text", "ids", "shown"),
    [
        (PLAIN, "abcd", [0, 1, 1, 0], "a[bc](x)d"),
        (PLAIN, "ab", [1, 2], "[a](x)[b](y)"),
        (ACCENTS, "ete", [1, 0, 1], "été"),
    ],
)
def test_a_tagged_text_is_shown_with_its_tags_or_with_its_labels_applied(
    labels: Labels, text: str, ids: list[int], shown: str
) -> None:
    assert tagged_text(text, ids, labels) == shown


@pytest.mark.parametrize("labels", [PLAIN, WHOLE, BIO])
@given(data=st.data())
def test_the_service_finds_the_same_tags(labels: Labels, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(labels.names) - 1), max_size=8))
    scheme = TagScheme.of(labels)
    spans = scheme.spans(np.array(ids, np.uint16))
    found = [(start, end, scheme.names[kind]) for start, end, kind in spans]
    assert tags(ids, labels) == found
