"""Tests of texts that have lost something."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.losses import Loss, lost
from training.config import RestoreDataConfig
from training.data.labelled import LabelledSplit
from training.data.restored import (
    SAME,
    allowed_labels,
    input_digest,
    losing,
    pieces,
    prepare_restore,
)
from training.errors import ConfigError

LOSSES: list[list[Loss]] = [["accents"], ["case"], ["accents", "case"]]
TEXTS = st.text() | st.text("aàÁâãäåāǎeéěi\u0131İoøőuůyđĐ ßæ\n", max_size=40)


def restored(text: str, labels: tuple[str, ...]) -> str:
    return "".join(label or x for x, label in zip(text, labels, strict=True))


def texts_of(split: LabelledSplit, names: list[str]) -> list[str]:
    """The texts with their true labels."""
    pairs = zip(split.texts, split.labels, strict=True)
    return [restored(text, tuple(names[i] for i in ids)) for text, ids in pairs]


@given(TEXTS, st.sampled_from(LOSSES))
def test_the_true_labels_give_the_text_back(text: str, loss: list[Loss]) -> None:
    left, labels = losing(text, loss)

    assert left == lost(text, loss)
    assert restored(left, labels) == text


@given(TEXTS, st.sampled_from(LOSSES))
def test_no_allowed_label_changes_a_base_letter(text: str, loss: list[Loss]) -> None:
    left, labels = losing(text, loss)
    tokens, names = sorted({*left}), sorted({SAME, *labels})

    allowed = allowed_labels(tokens, names, loss)

    for token, row in zip(tokens, allowed, strict=True):
        given_labels = [name for name, is_allowed in zip(names, row, strict=True) if is_allowed]
        assert SAME in given_labels
        assert {lost(name or token, loss) for name in given_labels} == {token}
    for character, label in zip(left, labels, strict=True):
        assert allowed[tokens.index(character), names.index(label)]


@given(TEXTS, st.integers(1, 12))
def test_a_long_text_is_cut_at_white_space(text: str, size: int) -> None:
    labelled = losing(text, ["accents"])

    found = pieces(labelled, size)

    assert all(0 < len(left) <= size and len(left) == len(labels) for left, labels in found)
    assert "".join("".join(restored(*x).split()) for x in found) == "".join(text.split())


def test_a_word_is_cut_only_where_it_is_longer_than_a_piece() -> None:
    found = pieces(losing("kůň a  krásná kráva", ["accents"]), 5)

    assert [left for left, _ in found] == ["kun a", "krasn", "a", "krava"]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def config_of(**changes: object) -> RestoreDataConfig:
    values: dict[str, object] = {"train_files": ["train.txt"], "valid_files": ["valid.txt"]}
    return RestoreDataConfig.model_validate(values | changes)


def test_lines_become_texts_without_accents_and_labels(tmp_path: Path) -> None:
    write(tmp_path, train="Été déjà\nété là, déjà\n", valid="là là\n")

    corpus = prepare_restore(config_of(), tmp_path)

    assert corpus.labels.names == [SAME, "à", "é"]
    assert (corpus.labels.outside, corpus.labels.applied) == (SAME, True)
    assert list(corpus.train.texts) == ["Éte deja", "ete la, deja"]  # É once: it stays
    assert texts_of(corpus.train, corpus.labels.names) == ["Été déjà", "été là, déjà"]
    assert texts_of(corpus.valid, corpus.labels.names) == ["là là"]
    assert corpus.counts["kept as they are: rare characters of train"] == 1
    assert corpus.allowed is not None
    ids = {x: i for i, x in enumerate(corpus.tokenizer.tokens)}
    assert np.flatnonzero(corpus.allowed[ids["e"]]).tolist() == [0, 2]
    assert np.flatnonzero(corpus.allowed[ids["d"]]).tolist() == [0]


def test_case_is_restored_too(tmp_path: Path) -> None:
    write(tmp_path, train="Ano, Štěpán\nAno, štěstí Š\n", valid="Ano\n")

    corpus = prepare_restore(config_of(loss=["accents", "case"], min_count=1), tmp_path)

    assert list(corpus.valid.texts) == ["ano"]
    assert texts_of(corpus.train, corpus.labels.names) == ["Ano, Štěpán", "Ano, štěstí Š"]
    ids = {x: i for i, x in enumerate(corpus.tokenizer.tokens)}
    assert corpus.allowed is not None
    allowed = [x for x, y in zip(corpus.labels.names, corpus.allowed[ids["s"]], strict=True) if y]
    assert allowed == [SAME, "Š", "š"]


def test_a_test_set_keeps_what_training_does_not_know(tmp_path: Path) -> None:
    write(tmp_path, train="kůň kůň\n", valid="kůň\n", far="ñandú kůň\n")

    corpus = prepare_restore(config_of(extra_tests={"far": ["far.txt"]}), tmp_path)

    assert list(corpus.tests[0].texts) == ["ñandú kun"]
    assert texts_of(corpus.tests[0], corpus.labels.names) == ["ñandú kůň"]


def test_a_file_is_one_text_that_is_cut(tmp_path: Path) -> None:
    write(tmp_path, train="kůň a\nkráva, kůň", valid="kůň")

    corpus = prepare_restore(config_of(documents="file", max_tokens=6, min_count=1), tmp_path)

    assert list(corpus.train.texts) == ["kun a", "krava,"]  # "kun" is held out
    assert corpus.counts["cut: longer than max_tokens"] == 1


def test_a_text_whose_rest_is_composed_anew_is_dropped(tmp_path: Path) -> None:
    write(tmp_path, train="kůň kůň\ne\u0301\u0304x\n", valid="kůň\n")

    corpus = prepare_restore(config_of(), tmp_path)

    assert list(corpus.train.texts) == ["kun kun"]
    assert corpus.counts["dropped: what is left is normalized otherwise"] == 1


def test_texts_that_lose_nothing_are_no_data(tmp_path: Path) -> None:
    write(tmp_path, train="plain\n", valid="text\n")

    with pytest.raises(ConfigError, match=r"nothing in the training texts is lost by data\.loss"):
        prepare_restore(config_of(), tmp_path)


def test_known_labels_keep_their_ids(tmp_path: Path) -> None:
    write(tmp_path, train="été été là là\n", valid="là\n")

    corpus = prepare_restore(config_of(), tmp_path, known_labels=[SAME, "ů", "é"])

    assert corpus.labels.names == [SAME, "ů", "é", "à"]


def test_the_digest_is_that_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, train="kůň kůň\n", valid="kůň\n")

    assert input_digest(config_of(), tmp_path) == prepare_restore(config_of(), tmp_path).sha256
