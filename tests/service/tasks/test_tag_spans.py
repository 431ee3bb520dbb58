"""From labels to tags, by each scheme."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.labeler import Labels
from service.tasks.tag_spans import TagScheme

BIO = ["O", "B-x", "I-x", "B-y", "I-y"]
CHARACTER: dict[str, Any] = {"scope": "character", "several": False, "outside": "O"}
SCHEMES: dict[str, Labels] = {
    "plain": Labels.model_validate({"names": ["O", "x", "y"], **CHARACTER}),
    "bio": Labels.model_validate({"names": BIO, "scheme": "bio", **CHARACTER}),
    "applied": Labels.model_validate(
        {"names": ["", "\xe9", "\xe0"], **CHARACTER, "outside": "", "applied": True}
    ),
    "all": Labels.model_validate({"names": ["x", "y"], "scope": "character", "several": False}),
}


def tags(name: str, labels: list[str]) -> list[tuple[int, int, str]]:
    names = SCHEMES[name].names
    scheme = TagScheme.of(SCHEMES[name])
    ids = np.array([names.index(label) for label in labels], np.uint16)
    return [(start, end, scheme.names[kind]) for start, end, kind in scheme.spans(ids)]


@pytest.mark.parametrize(
    ("name", "labels", "wanted"),
    [
        ("plain", "O x x O y", [(1, 3, "x"), (4, 5, "y")]),
        ("plain", "x y y", [(0, 1, "x"), (1, 3, "y")]),
        ("plain", "O O", []),
        ("all", "x x y", [(0, 2, "x"), (2, 3, "y")]),
        ("bio", "B-x I-x O I-x I-x", [(0, 2, "x"), (3, 5, "x")]),
        ("bio", "B-x B-x I-x", [(0, 1, "x"), (1, 3, "x")]),
        ("bio", "I-x I-y B-y O", [(0, 1, "x"), (1, 2, "y"), (2, 3, "y")]),
        ("applied", "\xe9 \xe9", [(0, 1, "\xe9"), (1, 2, "\xe9")]),
    ],
)
def test_labels_become_tags(name: str, labels: str, wanted: list[tuple[int, int, str]]) -> None:
    assert tags(name, labels.split()) == wanted
    assert tags(name, []) == []


def test_the_empty_label_leaves_a_character_alone() -> None:
    assert tags("applied", ["", "\xe0", ""]) == [(1, 2, "\xe0")]


@given(labels=st.lists(st.sampled_from(BIO), max_size=12))
def test_bio_is_read_as_conlleval_reads_it(labels: list[str]) -> None:
    """One character after another: a tag goes on only with I- of its own kind."""
    wanted: list[list[Any]] = []
    for i, (before, label) in enumerate(itertools.pairwise(["O", *labels])):
        if label == "O":
            continue
        if label[0] == "B" or before[2:] != label[2:]:
            wanted.append([i, i + 1, label[2:]])
        else:
            wanted[-1][1] = i + 1
    assert tags("bio", labels) == [tuple(x) for x in wanted]
