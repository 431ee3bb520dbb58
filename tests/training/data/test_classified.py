"""Files of labelled texts to splits of ids: what is read, rejected, dropped, cut and stored."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.bundle.text import UNK_ID
from service.bundle.tokenization import Characters
from training.config import ClassifierDataConfig, ConfigError
from training.data.classified import input_digest, prepare_classifier
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.data.stored_labels import load_labelled, store_labelled

TSV = "".join(
    f"{i} {word}\t{label}\n"
    for i in range(100)
    for word, label in (("cat", "animal"), ("oak", "plant"))
)
# A split by position of the hash alone: enough texts for all three.
FRACTIONS = {"valid_fraction": 0.2, "test_fraction": 0.2}


def config_of(**options: Any) -> ClassifierDataConfig:
    return ClassifierDataConfig.model_validate({**FRACTIONS, **options})


def prepared(folder: Path, **options: Any) -> LabelledCorpus:
    return prepare_classifier(config_of(**options), folder)


def written(folder: Path, **files: str) -> Path:
    """`name` becomes name.tsv."""
    for name, text in files.items():
        (folder / f"{name}.tsv").write_bytes(text.encode())
    return folder


def splits(corpus: LabelledCorpus) -> list[LabelledSplit]:
    return [corpus.train, corpus.valid, *corpus.tests]


def labelled(corpus: LabelledCorpus, split: LabelledSplit) -> list[tuple[str, list[str]]]:
    names = corpus.labels.names
    pairs = zip(split.texts, split.labels, strict=True)
    return [(text, [names[i] for i in labels]) for text, labels in pairs]


def all_texts(corpus: LabelledCorpus) -> list[tuple[str, list[str]]]:
    return sorted(text for split in splits(corpus) for text in labelled(corpus, split))


def rows(tsv: str) -> list[tuple[str, list[str]]]:
    return sorted((x.split("\t")[0], [x.split("\t")[1]]) for x in tsv.splitlines())


# --- reading ------------------------------------------------------------------------------------


def test_a_line_is_text_tab_label(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"])
    assert all_texts(corpus) == rows(TSV)
    assert corpus.labels.names == ["animal", "plant"]
    assert (corpus.labels.scope, corpus.labels.several) == ("text", False)


def test_or_label_tab_text(tmp_path: Path) -> None:
    turned = "".join("{1}\t{0}\n".format(*line.split("\t")) for line in TSV.splitlines())
    corpus = prepared(written(tmp_path, a=turned), files=["a.tsv"], label_first=True)
    assert all_texts(corpus) == rows(TSV)


def test_ids_are_those_of_the_texts(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"])
    for split in splits(corpus):
        assert [corpus.tokenizer.encode(x).tolist() for x in split.texts] == [
            ids.tolist() for ids in split.tokens
        ]


def test_a_text_has_the_labels_of_all_its_lines_where_there_may_be_several(tmp_path: Path) -> None:
    kept = "a b\tplant, animal\na b\tplant\na b\tmineral\nnone\t\nc\tmineral\n"
    written(tmp_path, a=TSV, b=kept)
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"], several=True)
    found = dict(labelled(corpus, corpus.train))
    assert corpus.labels.several
    assert found["a b"] == ["animal", "mineral", "plant"]
    assert found["none"] == []
    assert corpus.counts["joined: the same text"] == 2


def test_labels_need_something_between_them() -> None:
    with pytest.raises(ValidationError, match="label_separator"):
        config_of(several=True, label_separator="")


def test_texts_that_are_labelled_in_several_ways_are_kept_and_counted(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, b="OK\tplant\nOK\tanimal\nOK\tplant\n")
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"])
    found = labelled(corpus, corpus.train)
    assert [x for x in found if x[0] == "OK"] == [("OK", ["plant"]), ("OK", ["animal"])]
    assert corpus.counts["dropped: repeated"] == 1
    assert corpus.counts["kept: texts with different labels"] == 1


def test_a_folder_is_a_label_and_a_file_a_text_or_its_lines_are(tmp_path: Path) -> None:
    for label in ("animal", "plant", ".hidden"):
        (tmp_path / "all" / label / "more").mkdir(parents=True)
        for i in range(40):
            place = "more/" if i % 2 else ""
            path = tmp_path / "all" / label / f"{place}{i}.txt"
            path.write_text(f"{label} {i}\nsecond line of {label} {i}\n")
    (tmp_path / "all" / "readme.txt").write_text("no text")
    corpus = prepared(tmp_path, files=["all"], form="folders")
    assert len(all_texts(corpus)) == 80
    assert ("plant 7\nsecond line of plant 7", ["plant"]) in all_texts(corpus)
    lines = prepared(tmp_path, files=["a*"], form="folders", documents="line")
    assert len(all_texts(lines)) == 160
    assert ("second line of plant 7", ["plant"]) in all_texts(lines)
    config = config_of(files=["all"], form="folders")
    assert input_digest(config, tmp_path) == corpus.sha256 == lines.sha256


def test_a_folder_without_folders_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    with pytest.raises(ConfigError, match=r"data\.files: .*flat has no folders"):
        prepared(tmp_path, files=["flat"], form="folders")
    with pytest.raises(ConfigError, match=r"data\.files: no folder is called 'no\*'"):
        prepared(tmp_path, files=["no*"], form="folders")


# --- what is dropped ----------------------------------------------------------------------------


def test_what_is_dropped_is_counted_with_its_reason(tmp_path: Path) -> None:
    bad = "\tanimal\nno tab\nno label\t \n\n5 cat\tanimal\nonce\trare\n"
    written(tmp_path, a=TSV + bad, b="new\tunknown\n")
    corpus = prepared(tmp_path, files=["a.tsv"], valid_files=["b.tsv"])
    assert all_texts(corpus) == rows(TSV)
    counts = corpus.counts
    assert {x: n for x, n in counts.items() if x.startswith("dropped")} == {
        "dropped: empty": 2,
        "dropped: no tab": 1,
        "dropped: no label": 1,
        "dropped: repeated": 1,
        "dropped: rare label": 2,
    }
    assert counts["read"] == 207
    assert counts["train"] + counts["valid"] + counts["test"] == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n\nalone\n", r"a\.tsv, line 3: there is no tab, as in 1 of 2 lines; a line is text"),
        ("a\tb\nalone\t\n", r"a\.tsv, line 2: there is no label, as in 1 of 2 lines"),
        ("a\tone\nb\tone\n", r"no text is left to validate on, of 2 read"),
        ("", r"no text is left to train on, of 0 read"),
    ],
)
def test_a_file_that_cannot_be_used_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(written(tmp_path, a=text), files=["a.tsv"], valid_fraction=0.0)


def test_one_label_is_too_few_and_thousands_are_too_many(tmp_path: Path) -> None:
    written(
        tmp_path,
        one=TSV.replace("plant", "animal"),
        many="".join(f"{i} a\t{i}\n" for i in range(4000)),
    )
    with pytest.raises(ConfigError, match="the training texts have 1 label"):
        prepared(tmp_path, files=["one.tsv"])
    with pytest.raises(ConfigError, match=r"2,\d\d\d different labels; at most 2,048"):
        prepared(tmp_path, files=["many.tsv"], min_texts=1)


def test_rare_labels_are_dropped_until_none_is_left(tmp_path: Path) -> None:
    """Without `c`, which one text has, only one text has `b`."""
    rare = "1\tb,c\n2\tb\n3\tanimal\n"
    written(tmp_path, a=TSV, b=rare)
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"], several=True)
    assert corpus.labels.names == ["animal", "plant"]
    assert corpus.counts["dropped: rare label"] == 2


# --- cut and tokenized --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [({}, "12345"), ({"tokenization": "whitespace"}, "1234567 a b c d")],
)
def test_long_texts_are_cut(tmp_path: Path, text: Mapping[str, str], kept: str) -> None:
    written(tmp_path, a=TSV, b="1234567 a b c d e f\tplant\n1234567 a b c d e g\tplant\n")
    corpus = prepared(
        tmp_path,
        files=["a.tsv"],
        train_files=["b.tsv"],
        max_tokens=5,
        text={"min_count": 1, **text},
    )
    assert (kept, ["plant"]) in labelled(corpus, corpus.train)
    assert max(map(len, corpus.train.tokens)) == 5
    # Of the two, which are alike now, one is left.
    assert corpus.train.texts.count(kept) == 1


def test_subwords_are_learned_from_the_training_texts(tmp_path: Path) -> None:
    text = {"tokenization": "bpe", "vocab_size": 70, "min_count": 1}
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"], text=text, max_tokens=3)
    assert max(map(len, corpus.train.tokens)) <= 3
    assert len(corpus.tokenizer) <= 70


def test_known_tokens_and_labels_keep_their_ids(tmp_path: Path) -> None:
    known = Characters.of_characters("xyz")
    config = config_of(files=["a.tsv"])
    corpus = prepare_classifier(config, written(tmp_path, a=TSV), [known], ["plant", "mineral"])
    assert corpus.tokenizer.tokens[: len(known)] == known.tokens
    assert not (corpus.train.tokens[0] == UNK_ID).any()
    assert corpus.labels.names == ["plant", "mineral", "animal"]
    assert all_texts(corpus) == rows(TSV)


texts = st.text("ab", min_size=1, max_size=9)
tsvs = st.lists(st.tuples(texts, st.sampled_from(["plant", "animal"])), max_size=30).map(
    lambda pairs: "".join(f"{text}\t{label}\n" for text, label in pairs)
)


@settings(deadline=None, max_examples=40)
@given(
    st.fixed_dictionaries(dict.fromkeys(("files", "train", "valid", "test", "one"), tsvs)),
    st.sampled_from([3, 400]),
    st.booleans(),
)
def test_no_text_is_in_two_splits_whatever_the_files(
    files: dict[str, str], max_tokens: int, several: bool
) -> None:
    with TemporaryDirectory() as name:
        folder = written(Path(name), sure=TSV, kept="kept\tplant\n", **files)
        options: dict[str, Any] = {
            "files": ["files.tsv"],
            "train_files": ["train.tsv", "sure.tsv"],
            "valid_files": ["valid.tsv", "kept.tsv"],
            "test_files": ["test.tsv"],
            "extra_tests": {"one": ["one.tsv"]},
            "max_tokens": max_tokens,
            "several": several,
        }
        corpus = prepared(folder, **options)
    seen = [{*split.texts} for split in splits(corpus)]
    assert sum(map(len, seen)) == len(set[str]().union(*seen))
    everything = {
        x.split("\t")[0][:max_tokens] for text in files.values() for x in text.splitlines()
    }
    assert everything <= set[str]().union(*seen)


# --- stored -------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("tokenization", ["character", "whitespace", "bpe"])
def test_stored_texts_come_back_without_their_files(
    tmp_path: Path, tokenization: str, several: bool
) -> None:
    more = "none\t\n" * several
    text = {"tokenization": tokenization, "vocab_size": 70}
    config = config_of(files=["a.tsv"], several=several, text=text, max_tokens=4)
    corpus = prepare_classifier(config, written(tmp_path, a=TSV + more))
    store_labelled(corpus, tmp_path / "texts.json")
    (tmp_path / "a.tsv").unlink()
    again = load_labelled(config, tmp_path / "texts.json")
    assert all_texts(again) == all_texts(corpus)
    assert again.labels == corpus.labels
    assert again.tokenizer.tokens == corpus.tokenizer.tokens
    assert (again.sha256, again.counts, again.allowed) == (corpus.sha256, corpus.counts, None)
    for one, other in zip(splits(again), splits(corpus), strict=True):
        assert one.name == other.name
        assert [x.tolist() for x in one.tokens] == [x.tolist() for x in other.tokens]
        assert one.labels[0].dtype == np.int32


def test_a_damaged_file_is_rejected(tmp_path: Path) -> None:
    config = config_of(files=["a.tsv"])
    path = tmp_path / "texts.json"
    with pytest.raises(ConfigError, match=r"texts\.json: missing"):
        load_labelled(config, path)
    store_labelled(prepare_classifier(config, written(tmp_path, a=TSV)), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"texts\.json: damaged"):
        load_labelled(config, path)
