"""Texts whose characters have labels: aligned strings and columns of words, kept in step."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.bundle.text import SideNormalization, normalize
from training.config import ConfigError, TaggerDataConfig
from training.data.labelled import LabelledCorpus
from training.data.stored_labels import load_labelled, store_labelled
from training.data.tagged import aligned_text, prepare_tagger

# Digits are N, the rest is O.
ALIGNED = "".join(f"no. {i:03} of all\tOOOONNNOOOOOOO\n" for i in range(200))
COLUMNS = "".join(f"Mr X B-PER\nSmith Y I-PER\nof O\nRome{i} Z B-LOC\n\n" for i in range(100))
FRACTIONS = {"valid_fraction": 0.2, "test_fraction": 0.2}


def config_of(**options: Any) -> TaggerDataConfig:
    return TaggerDataConfig.model_validate({**FRACTIONS, "files": ["a.tsv"], **options})


def prepared(folder: Path, **options: Any) -> LabelledCorpus:
    return prepare_tagger(config_of(**options), folder)


def written(folder: Path, text: str, name: str = "a.tsv") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder


def tagged(corpus: LabelledCorpus) -> dict[str, list[str]]:
    names = corpus.labels.names
    return {
        text: [names[i] for i in labels]
        for split in (corpus.train, corpus.valid, *corpus.tests)
        for text, labels in zip(split.texts, split.labels, strict=True)
    }


def runs(text: str, labels: list[str]) -> list[tuple[str, str]]:
    """Runs of characters with one label."""
    found: list[tuple[str, str]] = []
    for character, label in zip(text, labels, strict=True):
        if found and found[-1][1] == label:
            found[-1] = found[-1][0] + character, label
        else:
            found.append((character, label))
    return found


def only(folder: Path, columns: str, **options: Any) -> list[tuple[str, str]]:
    """The runs of the first text of columns, when the others are those of COLUMNS."""
    written(written(folder, COLUMNS), columns, "b.tsv")
    found = prepared(folder, form="columns", train_files=["b.tsv"], **options)
    texts = tagged(found)
    text = next(x for x in texts if not x.startswith("Mr"))
    return runs(text, texts[text])


# --- aligned ------------------------------------------------------------------------------------


def test_a_line_is_a_text_and_a_label_for_each_character(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, ALIGNED))
    found = tagged(corpus)
    assert len(found) == 200
    assert runs("no. 007 of all", found["no. 007 of all"]) == [
        ("no. ", "O"),
        ("007", "N"),
        (" of all", "O"),
    ]
    labels = corpus.labels
    assert (labels.names, labels.scope, labels.scheme) == (["N", "O"], "character", "plain")
    assert labels.outside == "O"
    assert prepared(written(tmp_path, ALIGNED), outside="-").labels.outside is None


def test_blanks_at_the_ends_are_stripped_with_their_labels(tmp_path: Path) -> None:
    written(written(tmp_path, ALIGNED), "  ab \tOOXYO\n", "b.tsv")
    found = tagged(prepared(tmp_path, train_files=["b.tsv"]))
    assert found["ab"] == ["X", "Y"]


def test_long_texts_are_cut_with_their_labels(tmp_path: Path) -> None:
    turned = "".join(f"{i:03} of all\tNNNOOOOOOO\n" for i in range(200))
    found = tagged(prepared(written(tmp_path, turned), max_tokens=5))
    assert found["007 o"] == ["N", "N", "N", "O", "O"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ab\tXYZ\n", r"a\.tsv, line 1: there are 2 characters and 3 labels, as in 1 of 1 lines"),
        ("ab\n", r"a\.tsv, line 1: there is no tab"),
        ("e\u0301a\tXYO\n", r"a\.tsv, line 1: the text's normalization changes its length.*NFC"),
        ("abc\tXXX\n", r"no text is left to"),
    ],
)
def test_lines_that_cannot_be_used_are_rejected(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(written(tmp_path, line))


def test_a_few_such_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, ALIGNED + "ab\tXYZ\ne\u0301\tOO\nnew\tQQQ\n"))
    assert corpus.counts["dropped: as many labels as characters are needed"] == 1
    assert corpus.counts["dropped: normalization changes its length"] == 1
    assert corpus.counts["read"] == 203


def test_labels_that_training_lacks_are_dropped_elsewhere(tmp_path: Path) -> None:
    written(written(tmp_path, ALIGNED), "new\tQQQ\n", "b.tsv")
    corpus = prepared(tmp_path, valid_files=["b.tsv"])
    assert corpus.counts["dropped: label not in training, from valid"] == 1
    assert "new" not in tagged(corpus)


def test_labels_of_characters_need_tokens_of_characters(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.text\.tokenization"):
        prepared(written(tmp_path, ALIGNED), text={"tokenization": "whitespace"})


@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from("e\u0301İ…ΑΣ")
    ),
    st.builds(SideNormalization, fold=st.booleans(), lowercase=st.booleans()),
)
def test_a_label_stays_with_its_character(text: str, rules: SideNormalization) -> None:
    labelled = aligned_text(text, [str(i) for i in range(len(text))], rules)
    if labelled is None:
        assert text != unicodedata.normalize("NFC", text) or rules.fold or rules.lowercase
        return
    found, labels = labelled
    assert found == normalize(text, rules)
    for character, label in zip(found, labels, strict=True):
        # Final sigmas depend on their neighbours.
        assert character in {
            normalize(text[int(label)], rules.model_copy(update={"strip": False})),
            "ς",
        }


# --- columns ------------------------------------------------------------------------------------


def test_columns_in_bio_become_characters(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, COLUMNS), form="columns")
    text = "Mr Smith of Rome7"
    assert runs(text, tagged(corpus)[text]) == [
        ("M", "B-PER"),
        ("r Smith", "I-PER"),
        (" of ", "O"),
        ("R", "B-LOC"),
        ("ome7", "I-LOC"),
    ]
    assert (corpus.labels.scheme, corpus.labels.outside) == ("bio", "O")


def test_tags_beside_each_other_begin_anew(tmp_path: Path) -> None:
    found = only(tmp_path, "Ann B-PER\nBob B-PER\nUlm B-LOC\n")
    assert [label for _, label in found] == [
        "B-PER",
        "I-PER",
        "O",
        "B-PER",
        "I-PER",
        "O",
        "B-LOC",
        "I-LOC",
    ]


@pytest.mark.parametrize(
    "columns",
    [
        "Ann I-PER\nLee I-PER\nof O\nUlm I-LOC\n",  # IOB1
        "Ann B-PER\nLee E-PER\nof O\nUlm S-LOC\n",  # BIOES
        "Ann B-PER\nLee L-PER\nof O\nUlm U-LOC\n",  # BILOU
        "Ann\tB-PER\nLee\tI-PER\nof\tO\nUlm\tB-LOC",  # tabs, and no line end
        "-DOCSTART- -X- O\n\n\nAnn B-PER\r\nLee I-PER\r\nof O\r\nUlm B-LOC\r\n",
    ],
)
def test_other_ways_to_write_tags_mean_the_same(tmp_path: Path, columns: str) -> None:
    assert only(tmp_path, columns) == [
        ("A", "B-PER"),
        ("nn Lee", "I-PER"),
        (" of ", "O"),
        ("U", "B-LOC"),
        ("lm", "I-LOC"),
    ]


@pytest.mark.parametrize("gap", [" ", "\t"])
def test_comments_are_no_words(tmp_path: Path, gap: str) -> None:
    comments = "# sent_id = 7\n# text = Ann B. of Ulm\n#\n"
    columns = "Ann B-PER\nB. I-PER\nof O\n#Ulm B-LOC\n".replace(" ", gap)
    assert only(tmp_path, comments + columns) == [
        ("A", "B-PER"),
        ("nn B.", "I-PER"),
        (" of ", "O"),
        ("#", "B-LOC"),
        ("Ulm", "I-LOC"),
    ]


def test_columns_that_begin_with_numbers_are_refused(tmp_path: Path) -> None:
    numbered = "".join(f"1\tMr\tmr\tNOUN\t_\n2\tX{i}\tx\tPROPN\t_\n\n" for i in range(9))
    with pytest.raises(ConfigError, match=r"numbers the words, as in CoNLL-U.*cut -f2,4 .*a\.tsv"):
        prepared(written(tmp_path, numbered), form="columns")


def test_plain_labels_are_those_of_all_characters_of_a_word(tmp_path: Path) -> None:
    plain = "".join(f"the DET\ncat{i} NOUN\nold-NOUN NOUN\n\n" for i in range(100))
    corpus = prepared(written(tmp_path, plain), form="columns")
    assert corpus.labels.scheme == "plain"
    text = "the cat7 old-NOUN"
    assert runs(text, tagged(corpus)[text]) == [
        ("the", "DET"),
        (" ", "O"),
        ("cat7", "NOUN"),
        (" ", "O"),
        ("old-NOUN", "NOUN"),
    ]


def test_words_need_nothing_between_them(tmp_path: Path) -> None:
    found = only(tmp_path, "ab B-PER\nc I-PER\nd O\n", joiner="")
    assert found[:3] == [("a", "B-PER"), ("bc", "I-PER"), ("d", "O")]


def test_a_word_is_as_long_as_it_is_normalized(tmp_path: Path) -> None:
    found = only(tmp_path, "Rene\u0301 B-PER\nsaid O\n")
    assert found == [("R", "B-PER"), ("ené", "I-PER"), (" said", "O")]


def test_columns_without_labels_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.tsv, line 2: there is no second column, as in 1 of"):
        prepared(written(tmp_path, "a O\nword\n"), form="columns")
    with pytest.raises(ConfigError, match="all characters have the same label"):
        prepared(written(tmp_path, "".join(f"w{i} O\n\n" for i in range(99))), form="columns")


def test_stored_texts_come_back(tmp_path: Path) -> None:
    config = config_of(form="columns")
    corpus = prepare_tagger(config, written(tmp_path, COLUMNS))
    store_labelled(corpus, tmp_path / "texts.json")
    again = load_labelled(config, tmp_path / "texts.json")
    assert tagged(again) == tagged(corpus)
    assert again.labels == corpus.labels
