"""The comparison of language detectors: which texts, and what is averaged."""

from pathlib import Path

import pytest

from bench.languages import Answer, Text, accuracy_rows, drawn, macro_accuracy, speed_rows


def texts_of(language: str, count: int, text: str = "abcdef") -> list[Text]:
    return [Text(text, language) for _ in range(count)]


def test_every_language_counts_the_same_and_rare_ones_not_at_all() -> None:
    texts = [*texts_of("de", 30), *texts_of("mt", 10), *texts_of("is", 9)]
    found = ["de"] * 30 + ["it"] * 10 + [None] * 9

    assert macro_accuracy(texts, found) == (0.5, 2)
    assert macro_accuracy(texts, found, only=["de"]) == (1.0, 1)


def test_only_texts_of_the_measured_lengths_are_drawn_and_as_many_as_asked(tmp_path: Path) -> None:
    lines = [f"{'x' * length}\tde" for length in range(1, 60)] + ["fünf!\tfr"]
    path = tmp_path / "x.tsv"
    path.write_text("\n".join(lines), encoding="utf-8")

    found = drawn(path, 10)

    assert [x.language for x in found] == ["de"] * 10 + ["fr"]
    assert all(5 <= len(x.text) <= 40 for x in found)
    assert drawn(path, 10) == found


def test_a_row_for_each_length_and_one_of_the_languages_that_a_detector_knows() -> None:
    texts = [
        *texts_of("de", 10, "kurz."),
        *texts_of("de", 10, "mittellang ."),
        *texts_of("eo", 10, "x" * 30),
    ]
    rows = accuracy_rows("a", "test", texts, Answer(["de"] * 30, 1.0, ["de"]))

    assert {row.name: row.value for row in rows} == {
        "test, 5 to 40 characters: a": 50.0,
        "test, 5 to 10 characters: a": 100.0,
        "test, 11 to 20 characters: a": 100.0,
        "test, 21 to 40 characters: a": 0.0,
        "test, languages it knows: a": 100.0,
    }


def test_speeds_are_compared_round_by_round() -> None:
    ours, theirs = speed_rows({"Unroll": [100.0, 50.0, 80.0], "a": [10.0, 10.0, 10.0]})

    assert ours.ratio is None
    assert theirs.value == 10.0
    assert theirs.ratio == pytest.approx(8.0)
