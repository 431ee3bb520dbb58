"""Files of pairs to splits of ids: what is read, refused, dropped, held out and tokenized."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import UNK_ID
from training.config import ConfigError, EncoderDecoderDataConfig
from training.data.pairs import PairCorpus, PairSplit, prepare_pairs
from training.data.tokenizers import make_tokenizer

TSV = "".join(f"{i} apples\t{i} Äpfel\n" for i in range(200))
# A split by position of the hash alone: enough pairs for all three.
FRACTIONS = {"valid_fraction": 0.2, "test_fraction": 0.2}


def prepared(folder: Path, **options: Any) -> PairCorpus:
    return prepare_pairs(EncoderDecoderDataConfig.model_validate({**FRACTIONS, **options}), folder)


def written(folder: Path, **files: str | bytes) -> Path:
    """`name` becomes name.tsv."""
    for name, text in files.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{name}.tsv").write_bytes(data)
    return folder


def splits(corpus: PairCorpus) -> list[PairSplit]:
    return [corpus.train, corpus.valid, *corpus.tests]


def all_pairs(corpus: PairCorpus) -> list[tuple[str, str]]:
    return sorted(pair for split in splits(corpus) for pair in split.pairs)


# --- reading ------------------------------------------------------------------------------------


def test_tsv_is_source_tab_target(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"])
    assert all_pairs(corpus) == sorted((f"{i} apples", f"{i} Äpfel") for i in range(200))


def test_ids_are_the_texts_of_the_pairs(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"])
    for split in splits(corpus):
        decoded = [
            (corpus.source.decode(source), corpus.target.decode(target))
            for source, target in zip(split.sources, split.targets, strict=True)
        ]
        known = [pair for ids, pair in zip(split.sources, split.pairs, strict=True) if ids.all()]
        assert decoded == known == list(split.pairs)


def test_two_aligned_files_are_the_same_pairs_as_their_tsv(tmp_path: Path) -> None:
    lines = [line.split("\t") for line in TSV.splitlines()]
    columns = ["\n".join(x[i] for x in lines) for i in range(2)]
    written(tmp_path, a=TSV, en=columns[0], de=columns[1])
    corpus = prepared(tmp_path, files=["en.tsv || de.tsv"])
    assert all_pairs(corpus) == all_pairs(prepared(tmp_path, files=["a.tsv"]))


def test_a_tab_in_aligned_files_is_a_part_of_the_text(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, en="one\ttwo\n", de="eins\tzwei\n")
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["en.tsv || de.tsv"])
    assert ("one\ttwo", "eins\tzwei") in corpus.train.pairs


def test_blank_lines_further_columns_and_a_rare_line_without_a_tab_are_counted(
    tmp_path: Path,
) -> None:
    """As in Tatoeba's files, whose third column names the authors."""
    written(tmp_path, a=TSV, b=TSV.replace("\n", "\tby A, by B\n") + "\n \nalone\n")
    corpus = prepared(tmp_path, files=["b.tsv"])
    counts = corpus.counts
    assert all_pairs(corpus) == all_pairs(prepared(tmp_path, files=["a.tsv"]))
    assert counts["ignored: further columns"] == 200
    assert (counts["dropped: empty"], counts["dropped: no tab"], counts["read"]) == (2, 1, 203)


def test_a_file_without_tabs_is_refused_with_the_line_and_what_is_expected(tmp_path: Path) -> None:
    written(tmp_path, bad="a\tb\n\nalone\nc\td\n")
    message = (
        r"bad\.tsv, line 3: there is no tab, as in 1 of 3 lines; a line is source, tab, target"
    )
    with pytest.raises(ConfigError, match=message):
        prepared(tmp_path, files=["bad.tsv"])


def test_aligned_files_of_unequal_lengths_are_refused_with_both_counts(tmp_path: Path) -> None:
    written(tmp_path, en="a\nb\nc\n", de="a\nb")
    with pytest.raises(ConfigError, match=r"en\.tsv has 3 lines and .*de\.tsv has 2"):
        prepared(tmp_path, files=["en.tsv || de.tsv"])


@pytest.mark.parametrize("pattern", ["*.tsv || a.tsv", "a.tsv || b.tsv || a.tsv"])
def test_aligned_names_must_be_two_files(tmp_path: Path, pattern: str) -> None:
    written(tmp_path, a=TSV, b=TSV)
    with pytest.raises(ConfigError, match=r"data\.train_files: .* must name two files"):
        prepared(tmp_path, train_files=[pattern])


@pytest.mark.parametrize("option", ["files", "train_files", "valid_files", "test_files"])
@pytest.mark.parametrize("pattern", ["no.tsv", "a.tsv || no.tsv"])
def test_a_file_that_is_not_there_is_named_with_its_option(
    tmp_path: Path, option: str, pattern: str
) -> None:
    written(tmp_path, a=TSV)
    with pytest.raises(ConfigError, match=rf"data\.{option}: nothing matches 'no\.tsv'"):
        prepared(tmp_path, **{"files": ["a.tsv"], option: [pattern]})


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, bad=b"a\tb\na\t\xff\n")
    for files in (["bad.tsv"], ["bad.tsv || a.tsv"]):
        with pytest.raises(ConfigError, match=r"bad\.tsv, line 2, byte 7 of the file: not UTF-8"):
            prepared(tmp_path, files=files)


@pytest.mark.parametrize("encoded", ["\ufeff" + TSV, TSV.replace("\n", "\r\n"), TSV.rstrip("\n")])
def test_a_byte_order_mark_and_line_ends_are_no_text(tmp_path: Path, encoded: str) -> None:
    written(tmp_path, a=TSV, b=encoded)
    assert all_pairs(prepared(tmp_path, files=["b.tsv"])) == all_pairs(
        prepared(tmp_path, files=["a.tsv"])
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_aligned_files_are_no_text(tmp_path: Path, end: str) -> None:
    written(tmp_path, a=TSV, en=f"\ufeffone{end}two{end}", de=f"eins{end}zwei{end}")
    sides = {"normalization": {"newlines": False}}
    options = {"files": ["a.tsv"], "source": sides, "target": sides}
    corpus = prepared(tmp_path, **options, train_files=["en.tsv || de.tsv"])
    assert {("one", "eins"), ("two", "zwei")} <= set(corpus.train.pairs)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1e"])
def test_what_only_unicode_calls_a_line_end_stands_inside_a_text(
    tmp_path: Path, separator: str
) -> None:
    written(tmp_path, a=TSV, b=f"one{separator}two\teins{separator}zwei\n")
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"])
    assert (f"one{separator}two", f"eins{separator}zwei") in corpus.train.pairs


def test_texts_are_normalized_by_the_rules_of_their_side(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, b="  CAFÉ \t CAFÉ \n")
    source = {"normalization": {"lowercase": True, "ascii_fold": True}}
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"], source=source)
    assert ("cafe", "CAFÉ") in corpus.train.pairs


def test_the_digest_is_of_the_bytes_of_all_files(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, b="x\ty\n", c="x\tz\n")
    digests = {
        prepared(tmp_path, files=["a.tsv"], **more).sha256
        for more in (
            {},
            {"train_files": ["b.tsv"]},
            {"train_files": ["c.tsv"]},
            {"extra_tests": {"more": ["b.tsv"]}},
        )
    }
    assert len(digests) == 3  # a file tells, not what it is for: that is the configuration's


# --- filters ------------------------------------------------------------------------------------


def test_what_is_dropped_is_counted_with_its_reason(tmp_path: Path) -> None:
    dropped = "\tempty\nempty\t \n0 apples\t0 Äpfel\n" + "long " * 9 + "\tx\nab\t" + "x" * 12 + "\n"
    written(tmp_path, a=TSV + dropped)
    corpus = prepared(
        tmp_path,
        files=["a.tsv"],
        max_source_tokens=20,
        max_length_ratio=4.0,
    )
    counts = corpus.counts
    found = {reason: count for reason, count in counts.items() if reason.startswith("dropped: ")}
    assert {x.split(", from ")[0]: count for x, count in found.items()} == {
        "dropped: empty": 2,
        "dropped: repeated": 1,
        "dropped: too long": 1,
        "dropped: lengths too different": 1,
    }
    assert counts["read"] == 205
    assert counts["train"] + counts["valid"] + counts["test"] == 200
    assert counts["read"] == sum(found.values()) + 200


def test_the_limits_count_tokens_and_include_the_bound(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, b="abc de\tuvw xyz q\nabc de f\tu\n")
    words = {"tokenization": "whitespace"}
    options = {"source": words, "target": words, "max_source_tokens": 2, "max_target_tokens": 3}
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"], **options)
    assert ("abc de", "uvw xyz q") in corpus.train.pairs
    assert corpus.counts["dropped: too long, from train"] == 1


def test_limits_that_leave_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_source_tokens, data\.max_target_tokens"):
        prepared(written(tmp_path, a=TSV), files=["a.tsv"], max_source_tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": ["a.tsv"], "valid_fraction": 0.0}, r"to validate on, of 200 .*valid_fraction"),
        # All of it is held out.
        ({"train_files": ["a.tsv"], "valid_files": ["a.tsv"]}, r"train on, of 400 read \(200 dr"),
    ],
)
def test_there_must_be_pairs_to_train_on_and_to_validate_on(
    tmp_path: Path, options: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(written(tmp_path, a=TSV), **options)


# --- splits -------------------------------------------------------------------------------------

texts = st.text("abc", min_size=1, max_size=2)
tsvs = st.lists(st.tuples(texts, texts), max_size=30).map(
    lambda pairs: "".join(f"{source}\t{target}\n" for source, target in pairs)
)


@settings(deadline=None, max_examples=60)
@given(
    st.fixed_dictionaries(dict.fromkeys(("files", "train", "valid", "test", "one", "two"), tsvs)),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 0.3]),
)
def test_no_source_is_in_two_splits_whatever_the_files(
    files: dict[str, str], valid_fraction: float, test_fraction: float
) -> None:
    with TemporaryDirectory() as name:
        corpus = prepared(
            written(Path(name), sure=TSV, kept="kept\tx\n", **files),
            files=["files.tsv"],
            train_files=["train.tsv", "sure.tsv"],
            valid_files=["valid.tsv", "kept.tsv"],
            test_files=["test.tsv"],
            extra_tests={"one": ["one.tsv"], "two": ["two.tsv"]},
            valid_fraction=valid_fraction,
            test_fraction=test_fraction,
        )
    seen = [source for split in splits(corpus) for source in split.references]
    assert len(seen) == len(set(seen))
    # Nothing is lost.
    everything = {line.split("\t")[0] for text in files.values() for line in text.splitlines()}
    assert everything <= set(seen)


def test_pairs_of_one_source_stay_together_and_are_its_references(tmp_path: Path) -> None:
    text = "".join(f"{i}\t{i} {side}\n" for side in ("left", "right") for i in range(100))
    corpus = prepared(written(tmp_path, a=text), files=["a.tsv"])
    for split in splits(corpus):
        for source, targets in split.references.items():
            assert targets == [f"{source} left", f"{source} right"]


def test_a_source_keeps_its_split_when_others_come_and_go(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, b="".join(f"{i} pears\t{i}\n" for i in range(100)))
    before = prepared(tmp_path, files=["a.tsv"])
    after = prepared(tmp_path, files=["b.tsv", "a.tsv"])
    for old, new in zip(splits(before), splits(after), strict=True):
        assert set(old.references) <= set(new.references)


def test_fractions_are_about_the_shares_of_the_sources(tmp_path: Path) -> None:
    text = "".join(f"{i}\tx\n" for i in range(4000))
    corpus = prepared(
        written(tmp_path, a=text), files=["a.tsv"], valid_fraction=0.1, test_fraction=0.3
    )
    assert len(corpus.valid) / 4000 == pytest.approx(0.1, abs=0.03)
    assert len(corpus.tests[0]) / 4000 == pytest.approx(0.3, abs=0.03)


def test_extra_tests_are_held_out_of_training_and_counted(tmp_path: Path) -> None:
    held = "".join(line + "\n" for line in TSV.splitlines()[:50])
    written(tmp_path, a=TSV, held=held)
    corpus = prepared(tmp_path, files=["a.tsv"], extra_tests={"held": ["held.tsv"]})
    assert corpus.tests[-1].name == "held"
    assert len(corpus.tests[-1]) == 50
    held_out = set(corpus.tests[-1].references)
    assert not held_out & set(corpus.train.references)
    counts = corpus.counts
    assert sum(counts[x] for x in counts if x.startswith("dropped: held out elsewhere, from")) == 50


def test_of_two_extra_tests_with_the_same_sources_the_last_has_them(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, one="x\ty\nz\ty\n", two="x\tw\n")
    extra = {"one": ["one.tsv"], "two": ["two.tsv"]}
    corpus = prepared(tmp_path, files=["a.tsv"], extra_tests=extra)
    assert [list(split.references) for split in corpus.tests[-2:]] == [["z"], ["x"]]


def test_held_out_splits_are_the_tests_or_else_the_validation(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, more="x\ty\n")
    with_test = prepared(tmp_path, files=["a.tsv"], extra_tests={"more": ["more.tsv"]})
    assert [split.name for split in with_test.held_out] == ["test", "more"]
    without = prepared(tmp_path, files=["a.tsv"], test_fraction=0.0)
    assert [split.name for split in without.held_out] == ["valid"]


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_an_extra_test_has_no_splits_name(tmp_path: Path, name: str) -> None:
    written(tmp_path, a=TSV)
    with pytest.raises(ConfigError, match=rf"data\.extra_tests: '{name}' is the name of a split"):
        prepared(tmp_path, files=["a.tsv"], extra_tests={name: ["a.tsv"]})


# --- tokenizers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenization", ["character", "whitespace", "bpe"])
def test_every_tokenization_gives_the_training_texts_back(
    tmp_path: Path, tokenization: str
) -> None:
    side = {"tokenization": tokenization, "vocab_size": 64}
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"], source=side, target=side)
    for ids, (text, _) in zip(corpus.train.sources, corpus.train.pairs, strict=True):
        assert UNK_ID not in ids
        assert corpus.source.decode(ids) == text


@pytest.mark.parametrize("tokenization", ["character", "whitespace", "bpe"])
def test_a_tokenizer_comes_back_from_what_a_checkpoint_keeps(
    tmp_path: Path, tokenization: str
) -> None:
    side = {"tokenization": tokenization, "vocab_size": 64}
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"], source=side)
    document = getattr(corpus.source, "document", None)
    again = make_tokenizer(tokenization, corpus.source.tokens, document)
    assert type(again) is type(corpus.source)
    assert again.tokens == corpus.source.tokens
    assert again.encode("12 apples?").tolist() == corpus.source.encode("12 apples?").tolist()


def test_subwords_need_their_document() -> None:
    with pytest.raises(ValueError, match="needs the tokenizer's document"):
        make_tokenizer("bpe", [], None)


def test_a_shared_vocabulary_is_one_and_has_both_sides(tmp_path: Path) -> None:
    corpus = prepared(
        written(tmp_path, a="".join(f"{i}a\t{i}z\n" for i in range(100))),
        files=["a.tsv"],
        share_vocab=True,
    )
    assert corpus.source is corpus.target
    assert {"a", "z"} <= set(corpus.source.tokens)


def test_without_sharing_a_side_has_no_token_of_the_other(tmp_path: Path) -> None:
    corpus = prepared(written(tmp_path, a=TSV), files=["a.tsv"])
    assert "Ä" in corpus.target.tokens
    assert "Ä" not in corpus.source.tokens


@pytest.mark.parametrize("tokenization", ["character", "whitespace"])
def test_rare_tokens_are_unknown(tmp_path: Path, tokenization: str) -> None:
    side = {"tokenization": tokenization, "min_count": 2}
    written(tmp_path, a=TSV, b="§ apples\tx\n")
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"], source=side)
    assert "§" not in corpus.source.tokens
    assert corpus.source.encode("§")[0] == UNK_ID


def test_vocabularies_are_of_the_training_split_alone(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, b="§§\t¶¶\n")
    corpus = prepared(tmp_path, files=["a.tsv"], valid_files=["b.tsv"])
    assert not {"§", "¶"} & {*corpus.source.tokens, *corpus.target.tokens}


def test_a_source_with_many_targets_counts_once_for_its_vocabulary(tmp_path: Path) -> None:
    written(tmp_path, a=TSV, b="§ apples\tx\n§ apples\ty\n")
    corpus = prepared(tmp_path, files=["a.tsv"], train_files=["b.tsv"], source={"min_count": 2})
    assert "§" not in corpus.source.tokens


@pytest.mark.parametrize("tokenization", ["character", "whitespace"])
def test_a_min_count_that_leaves_no_token_is_refused(tmp_path: Path, tokenization: str) -> None:
    side = {"tokenization": tokenization, "min_count": 10_000}
    with pytest.raises(ConfigError, match="min_count leaves no token"):
        prepared(written(tmp_path, a=TSV), files=["a.tsv"], source=side)


def test_more_words_than_a_vocabulary_holds_are_refused(tmp_path: Path) -> None:
    text = "".join(f"word{i} more{i}\tx\n" for i in range(60_000))
    words = {"tokenization": "whitespace"}
    with pytest.raises(ConfigError, match=r"data: .*at most 65,535 tokens"):
        prepared(written(tmp_path, a=text), files=["a.tsv"], source=words)
