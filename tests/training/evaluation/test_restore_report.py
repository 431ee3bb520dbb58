"""Tests of how good restored texts are, and of what needs no network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.losses import lost
from training.config import RestoreDataConfig
from training.data.labelled import LabelledCorpus
from training.data.restored import prepare_restore
from training.evaluation.labeler import Judged, judged, label_metrics
from training.evaluation.restore_report import (
    WordTable,
    floors_of,
    restore_metrics,
    restored,
    split_values,
)


def values(text: str, truth: str, answer: str) -> tuple[float, float, float]:
    found = restore_metrics([text], [truth], [answer])
    return found["word_error_rate"], found["character_error_rate"], found["base_errors"]


@pytest.mark.parametrize(
    ("text", "truth", "answer", "expected"),
    [
        ("a la", "à la", "à la", (0.0, 0.0, 0.0)),
        ("a la", "à la", "a là", (1.0, 0.5, 0.0)),
        ("l'ete, deja", "l'été, déjà", "l'été, deja", (1 / 3, 2 / 11, 0.0)),
        ("12 a", "12 à", "13 à", (0.0, 0.25, 1.0)),  # numbers are no words
        ("ab", "ab", "xb", (1.0, 0.5, 1.0)),
        ("", "", "", (0.0, 0.0, 0.0)),
    ],
)
def test_errors_are_counted_by_words_characters_and_base_letters(
    text: str, truth: str, answer: str, expected: tuple[float, float, float]
) -> None:
    assert values(text, truth, answer) == expected


TABLE_TEXTS = ["Kůň a kůň, kun", "ÉTÉ", "přes přes pres"]


def table_of(texts: Sequence[str]) -> WordTable:
    return WordTable([lost(text, ["accents"]) for text in texts], texts)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("kun pres", "kůň přes"),  # the commonest spelling
        ("KUN", "KŮŇ"),  # in the case that is there
        ("Ete ete ETE", "Été été ÉTÉ"),
        ("pult kun-kun", "pult kůň-kůň"),  # what is unknown stays
    ],
)
def test_the_table_knows_the_commonest_spelling(text: str, answer: str) -> None:
    assert table_of(TABLE_TEXTS).restore(text) == answer


def test_of_two_spellings_as_common_the_choice_does_not_depend_on_their_order() -> None:
    assert table_of(["la là"]).restore("la") == table_of(["là la"]).restore("la") == "la"


@given(
    st.lists(st.text("aáàbßIİi\u0131 -", max_size=12), max_size=4), st.text("aàbiIß ", max_size=12)
)
def test_the_table_changes_no_base_letter(texts: list[str], text: str) -> None:
    answer = table_of(texts).restore(lost(text, ["accents"]))

    assert lost(answer, ["accents", "case"]) == lost(text, ["accents", "case"])


@pytest.fixture
def corpus(tmp_path: Path) -> LabelledCorpus:
    (tmp_path / "train.txt").write_text("déjà là\ndéjà été là\nla la la\n", encoding="utf-8")
    (tmp_path / "valid.txt").write_text("là déjà neuf\n", encoding="utf-8")
    files = {"train_files": ["train.txt"], "valid_files": ["valid.txt"]}
    return prepare_restore(RestoreDataConfig.model_validate(files), tmp_path)


def test_the_floors_are_the_text_as_it_is_and_the_table(corpus: LabelledCorpus) -> None:
    found = {x.name: x for x in floors_of(corpus).measure(corpus.valid)}

    assert [*found] == ["copy", "word table"]
    assert {x.kind for x in found.values()} == {"baseline"}
    assert found["copy"].values["word_error_rate"] == pytest.approx(2 / 3)
    # Three times "la", twice "là".
    assert found["word table"].values["word_error_rate"] == pytest.approx(1 / 3)
    assert found["word table"].values["character_error_rate"] == pytest.approx(1 / 12)
    assert found["word table"].values["accuracy"] == pytest.approx(11 / 12)


def answers(corpus: LabelledCorpus, ids: Sequence[int]) -> list[Judged]:
    """Of the validation text, with these labels as the likeliest."""
    logprobs = np.log(np.full((len(ids), len(corpus.labels.names)), 0.1))
    logprobs[np.arange(len(ids)), ids] = np.log(0.7)
    return judged(corpus.labels, [logprobs], corpus.valid.labels)


def test_the_metrics_of_a_split_are_those_of_labels_and_of_texts(corpus: LabelledCorpus) -> None:
    right = corpus.valid.labels[0].tolist()
    nothing = [0] * len(right)

    found = split_values(answers(corpus, nothing), corpus.valid, corpus.labels)

    assert found.items() >= label_metrics(answers(corpus, nothing), corpus.labels).items()
    assert found["word_error_rate"] == pytest.approx(2 / 3)
    assert found["base_errors"] == 0.0
    assert split_values(answers(corpus, right), corpus.valid, corpus.labels)[
        "word_error_rate"
    ] == pytest.approx(0.0)
    assert restored(corpus.valid.texts[0], right, corpus.labels) == "là déjà neuf"
