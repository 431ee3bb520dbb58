"""Tests of date phrases whose characters have labels."""

from datetime import date
from itertools import groupby
from pathlib import Path

import pytest

from training.datasets import date_parts
from training.datasets.date_parts import LOCALES, labelled, phrases
from training.datasets.table import DATASETS


@pytest.mark.parametrize(
    ("pattern", "locale", "text", "labels"),
    [
        ("EEEE d MMMM y", "fr", "mercredi 6 août 2003", "WWWWWWWWODOMMMMOYYYY"),
        ("d. M. y", "cs", "6. 8. 2003", "DOOMOOYYYY"),
        ("d 'de' MMMM", "es", "6 de agosto", "DOOOOMMMMMM"),
    ],
)
def test_each_character_has_the_label_of_its_part(
    pattern: str, locale: str, text: str, labels: str
) -> None:
    assert labelled(date(2003, 8, 6), pattern, locale) == (text, labels)


def test_a_phrase_has_each_part_at_most_once() -> None:
    found = list(phrases([date(2001, 2, 3), date(1999, 12, 31)]))

    assert len(found) == 2 * len(LOCALES)
    for text, labels in found:
        assert len(text) == len(labels)
        parts = [label for label, _ in groupby(labels) if label != "O"]
        assert sorted(set(parts)) == sorted(parts)
        assert {"D", "M", "Y"} <= {*parts}


def test_no_date_is_in_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(date_parts, "DATES", 20)
    monkeypatch.setattr(date_parts, "TEST_DATES", 5)

    DATASETS["date-parts"](tmp_path)

    found = {
        name: {line.split("\t")[0] for line in (tmp_path / name).read_text().splitlines()}
        for name in ("train.tsv", "test.tsv")
    }
    assert found["train.tsv"]
    assert found["test.tsv"]
    assert not {x for x in found["train.tsv"] if len(x) > 10} & found["test.tsv"]
