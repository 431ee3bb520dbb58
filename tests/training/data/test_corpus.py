"""Text files to ids: documents, splits, vocabulary, and constant memory."""

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import BOS_ID, EOS_ID, SPECIAL_TOKENS, UNK_ID, Normalization, normalize
from tests.training.helpers import documents, texts
from training import text_files
from training.config import LanguageModelDataConfig
from training.data import corpus as corpora
from training.data.corpus import Corpus, check_held_out, load, prepare
from training.data.documents import stream_text
from training.data.splits import SPLITS
from training.data.windows import Windows
from training.errors import ConfigError

Files = Mapping[str, bytes]

quick = settings(deadline=None, max_examples=50)
# What composes, changes with its neighbours when lower-cased, or ends a line somewhere.
LETTERS = "ae\N{GREEK CAPITAL LETTER ALPHA}\N{GREEK CAPITAL LETTER SIGMA}\u0130\u1100\u1161\u11a8"
MARKS = "\N{COMBINING ACUTE ACCENT}\N{COMBINING DIAERESIS}\N{COMBINING CEDILLA}'.\u00ad"
BREAKS = " \n\r\u2028\u0085\U0001f407"
awkward = st.text(st.sampled_from(LETTERS + MARKS + BREAKS))
plain = st.text("ab \n", max_size=40)


def write(folder: Path, files: Files) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def prepared(folder: Path, contents: Files, /, **options: Any) -> Corpus:
    """The corpus of the files; without options all of it is for training."""
    write(folder, contents)
    document = {"files": list(contents), "valid_fraction": 0.0, "test_fraction": 0.0, **options}
    return prepare(LanguageModelDataConfig.model_validate(document), folder, folder / "corpus")


def all_texts(corpus: Corpus) -> list[list[str]]:
    return [texts(corpus, name) for name in SPLITS]


# --- documents ----------------------------------------------------------------------------------


def test_a_file_is_a_document(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"b.txt": b"one\ntwo\n", "a.txt": b"three"})
    assert texts(corpus, "train") == ["one\ntwo\n", "three"]


def test_a_line_is_a_document_and_its_end_is_not_part_of_it(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"one\ntwo\n", "b.txt": b"three\n"}, documents="line")
    assert texts(corpus, "train") == ["one", "two", "three"]


def test_a_last_line_without_a_line_end_is_a_document(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"one\ntwo", "b.txt": b"three"}, documents="line")
    assert texts(corpus, "train") == ["one", "two", "three"]


def test_blank_lines_are_not_documents(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"\n\none\n\n\ntwo\n\n"}, documents="line")
    assert texts(corpus, "train") == ["one", "two"]


@pytest.mark.parametrize("kind", ["file", "line"])
def test_an_empty_file_is_not_a_document(tmp_path: Path, kind: str) -> None:
    files = {"a.txt": b"", "b.txt": b"one", "c.txt": b"", "d.txt": b"two", "e.txt": b""}
    assert texts(prepared(tmp_path, files, documents=kind), "train") == ["one", "two"]


def test_a_document_lies_between_bos_and_eos(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"ab", "b.txt": b"b"})
    assert corpus.train.ids.tolist() == [BOS_ID, 4, 5, EOS_ID, BOS_ID, 5, EOS_ID]
    assert corpus.train.starts.tolist() == [0, 4, 7]


def test_a_split_counts_its_documents_characters_and_predicted_tokens(tmp_path: Path) -> None:
    split = prepared(tmp_path, {"a.txt": b"abc", "b.txt": b"d"}).train
    assert (split.documents, split.chars, split.tokens) == (2, 4, 6)


@pytest.mark.parametrize("kind", ["file", "line"])
@pytest.mark.parametrize("files", [{"a.txt": b""}, {"a.txt": b"", "b.txt": b"\xef\xbb\xbf"}])
def test_input_without_text_is_refused(tmp_path: Path, files: Files, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.files: there is no text in .*a\.txt"):
        prepared(tmp_path, files, documents=kind)


def test_lines_that_are_all_blank_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.files: there is no text in .*a\.txt"):
        prepared(tmp_path, {"a.txt": b"\n\r\n\n"}, documents="line")


# --- files --------------------------------------------------------------------------------------


def test_a_glob_takes_its_files_sorted(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": b"two", "a.txt": b"one", "c.text": b"no", "sub/d.txt": b"no"})
    corpus = prepared(tmp_path, {}, files=["*.txt"])
    assert texts(corpus, "train") == ["one", "two"]


def test_two_stars_reach_into_folders(tmp_path: Path) -> None:
    write(tmp_path, {"sub/deep/b.txt": b"two", "a.txt": b"one"})
    corpus = prepared(tmp_path, {}, files=["**/*.txt"])
    assert sorted(texts(corpus, "train")) == ["one", "two"]


def test_patterns_keep_their_order(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"b.txt": b"one", "a.txt": b"two"}, files=["b.txt", "a*"])
    assert texts(corpus, "train") == ["one", "two"]


def test_an_absolute_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", {"a.txt": b"one"})
    (tmp_path / "here").mkdir()
    corpus = prepared(tmp_path / "here", {}, files=[str(tmp_path / "elsewhere/*.txt")])
    assert texts(corpus, "train") == ["one"]


def test_the_configurations_folder_may_have_brackets_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "texts [1865]"
    assert texts(prepared(folder, {"a.txt": b"one"}), "train") == ["one"]


def test_a_pattern_that_matches_nothing_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.files: nothing matches 'b\*\.txt'"):
        prepared(tmp_path, {"a.txt": b"one"}, files=["a.txt", "b*.txt"])


@pytest.mark.parametrize("data", [b"one\ncaf\xe9 au lait", b"one\ncaf\xe2\x80"])
def test_a_file_that_is_not_utf_8_is_refused_by_its_name_with_the_place(
    tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(ConfigError, match=r"b\.txt, line 2, byte 8 of the file: not UTF-8"):
        prepared(tmp_path, {"a.txt": b"good", "b.txt": data})


def test_a_byte_order_mark_is_dropped_at_a_files_beginning_only(tmp_path: Path) -> None:
    files = {"a.txt": "\ufeffone".encode(), "b.txt": "two\ufeff".encode()}
    assert texts(prepared(tmp_path, files), "train") == ["one", "two\ufeff"]


def test_every_kind_of_line_end_becomes_a_line_feed(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"a\r\nb\rc\n\r\r\n"})
    assert texts(corpus, "train") == ["a\nb\nc\n\n\n"]


def test_lines_end_at_carriage_returns_too(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"a\r\n\r\nb\rc\r\n"}, documents="line")
    assert texts(corpus, "train") == ["a", "b", "c"]


def test_line_ends_stay_where_the_configuration_says_so(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"a\r\nb"}, normalization={"newlines": False})
    assert texts(corpus, "train") == ["a\r\nb"]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u0085c\x0cd\n"
    corpus = prepared(tmp_path, {"a.txt": text.encode()}, documents="line")
    assert texts(corpus, "train") == ["a\u2028b\u0085c\x0cd"]


# --- splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chars", [10, 99, 1_000, 12_345])
def test_ninety_to_ten_is_nine_tenths_of_the_characters_rounded_down(
    tmp_path: Path, chars: int
) -> None:
    text = ("aab" * chars)[:chars]
    corpus = prepared(tmp_path, {"a.txt": text.encode()}, valid_fraction=0.1)
    assert all_texts(corpus) == [[text[: int(0.9 * chars)]], [text[int(0.9 * chars) :]], []]


@given(st.integers(1, 300), st.integers(0, 49), st.integers(0, 49))
@quick
def test_a_text_is_cut_by_position(
    tmp_path_factory: pytest.TempPathFactory, chars: int, valid: int, test: int
) -> None:
    train_end = int((100 - valid - test) / 100 * chars)
    valid_end = int((100 - test) / 100 * chars)
    text = ("ab" * chars)[:chars]
    folder = tmp_path_factory.mktemp("split")
    options = {"valid_fraction": valid / 100, "test_fraction": test / 100}
    if train_end == 0:
        with pytest.raises(ConfigError):
            prepared(folder, {"a.txt": text.encode()}, **options)
        return
    corpus = prepared(folder, {"a.txt": text.encode()}, **options)
    parts = [text[:train_end], text[train_end:valid_end], text[valid_end:]]
    found = [documents(corpus.split(name)) for name in SPLITS]
    ids = [[BOS_ID, *corpus.vocab.encode(part).tolist(), EOS_ID] for part in parts]
    assert found == [[document] if len(document) > 2 else [] for document in ids]


QUARTERS = {"split_by": "position", "valid_fraction": 0.25, "test_fraction": 0.25}


def test_a_file_that_a_split_cuts_becomes_a_document_in_each(tmp_path: Path) -> None:
    files = {"a.txt": b"abca", "b.txt": b"bbbbbbbbbb", "c.txt": b"cccccc"}
    corpus = prepared(tmp_path, files, **QUARTERS)
    assert all_texts(corpus) == [["abca", "bbbbbb"], ["bbbb", "c"], ["ccccc"]]


def test_a_split_at_the_end_of_a_file_cuts_nothing(tmp_path: Path) -> None:
    files = {"a.txt": b"abab", "b.txt": b"ba", "c.txt": b"bb"}
    corpus = prepared(tmp_path, files, **QUARTERS)
    assert all_texts(corpus) == [["abab"], ["ba"], ["bb"]]


def test_a_line_is_never_cut_and_belongs_where_it_begins(tmp_path: Path) -> None:
    # 12 characters: the splits end at 6 and 9. The second line begins at 5, the third at 10.
    files = {"a.txt": b"aaaaa\naabba\nbb\n"}
    corpus = prepared(tmp_path, files, documents="line", **QUARTERS)
    assert all_texts(corpus) == [["aaaaa", "aabba"], [], ["bb"]]


@given(st.lists(plain, min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 9))
@quick
def test_lines_keep_their_order_and_are_all_there_and_none_is_empty(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], valid: int, test: int
) -> None:
    lines = [line for text in contents for line in text.split("\n") if line.strip()]
    if int(sum(map(len, lines)) * (20 - valid - test) / 20) == 0:
        return
    files = {f"{i}.txt": text.encode() for i, text in enumerate(contents)}
    options: dict[str, Any] = {"valid_fraction": valid / 20, "test_fraction": test / 20}
    options["split_by"] = "position"
    corpus = prepared(tmp_path_factory.mktemp("lines"), files, documents="line", **options)
    every_id = [ids for name in SPLITS for ids in documents(corpus.split(name))]
    expected = [[BOS_ID, *corpus.vocab.encode(line).tolist(), EOS_ID] for line in lines]
    assert every_id == expected


@given(st.lists(plain, min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 9))
@quick
def test_files_lose_no_character_to_the_splits_and_no_document_is_empty(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], valid: int, test: int
) -> None:
    text = "".join(contents)
    if int(len(text) * (20 - valid - test) / 20) == 0:
        return
    files = {f"{i}.txt": x.encode() for i, x in enumerate(contents)}
    options: dict[str, Any] = {"valid_fraction": valid / 20, "test_fraction": test / 20}
    options["split_by"] = "position"
    corpus = prepared(tmp_path_factory.mktemp("files"), files, **options)
    every_id = [ids for name in SPLITS for ids in documents(corpus.split(name))]
    assert [i for ids in every_id for i in ids[1:-1]] == corpus.vocab.encode(text).tolist()
    assert min(len(ids) for ids in every_id) > 2


LINES = [f"name {i:03}" for i in range(400)]
TENTHS = {"documents": "line", "valid_fraction": 0.1, "test_fraction": 0.1}


def of_lines(folder: Path, lines: list[str], **options: Any) -> list[set[str]]:
    """The lines of each split."""
    files = {"a.txt": "\n".join(lines).encode()}
    return [set(x) for x in all_texts(prepared(folder, files, **{**TENTHS, **options}))]


def test_lines_are_split_the_same_whatever_their_order_and_their_file(tmp_path: Path) -> None:
    straight = of_lines(tmp_path, LINES)
    assert [len(x) > 20 for x in straight] == [True] * 3
    assert of_lines(tmp_path, LINES[::-1]) == straight
    halves = {"a.txt": "\n".join(LINES[:9]).encode(), "b.txt": "\n".join(LINES[9:]).encode()}
    assert [set(x) for x in all_texts(prepared(tmp_path, halves, **TENTHS))] == straight
    assert of_lines(tmp_path, LINES, split_seed=1) != straight
    assert of_lines(tmp_path, LINES, split_by="position") == [
        set(LINES[:320]),
        set(LINES[320:360]),
        set(LINES[360:]),
    ]


def test_a_line_that_is_repeated_is_in_one_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is long, and cut elsewhere into blocks, and has blanks at its end."""
    monkeypatch.setattr(text_files, "READ_BYTES", 700)
    long = [f"{i} " + "and so on " * 500 for i in range(12)]
    for i in range(12):
        found = of_lines(tmp_path, [*LINES[:i], *long, *LINES[i:], *(f" {x} " for x in long)])
        twice = [sum(any(x.strip() == line.strip() for x in s) for s in found) for line in long]
        assert twice == [1] * 12


def test_every_file_has_a_part_of_its_own_in_every_split(tmp_path: Path) -> None:
    files = {f"{c}.txt": (c * 1000).encode() for c in "abc"}
    corpus = prepared(tmp_path, files, valid_fraction=0.1, test_fraction=0.2)
    assert all_texts(corpus) == [[c * n for c in "abc"] for n in (700, 100, 200)]


def test_a_short_file_of_several_goes_whole_to_one_split(tmp_path: Path) -> None:
    files = {f"{i}.txt": f"a poem of number {i}".encode() for i in range(100)}
    corpus = prepared(tmp_path, files, valid_fraction=0.2, test_fraction=0.2)
    found = all_texts(corpus)
    assert sorted(x for part in found for x in part) == sorted(x.decode() for x in files.values())
    assert min(map(len, found)) > 10
    assert corpus.counts["short: not cut"] == 100
    # By its content: under another name it stays where it is.
    renamed = {f"{100 + int(x[:-4])}.txt": data for x, data in files.items()}
    again = all_texts(prepared(tmp_path, renamed, valid_fraction=0.2, test_fraction=0.2))
    assert [set(x) for x in again] == [set(x) for x in found]


def test_lists_are_used_whole_and_held_out_lines_are_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path, {"t.txt": b"one\ntwo\nwurft\ntwo\n", "v.txt": b"two\nfour", "x.txt": b"four"})
    lists = {"train_files": ["t.txt"], "valid_files": ["v.txt"], "test_files": ["x.txt"]}
    corpus = prepared(tmp_path, {}, **{**TENTHS, "files": [], **lists})
    assert all_texts(corpus) == [["one", "wurft"], ["two"], ["four"]]
    assert corpus.counts["dropped: held out elsewhere, from train"] == 2
    assert corpus.counts["dropped: held out elsewhere, from valid"] == 1


def test_lines_held_out_of_split_files_are_not_trained_on_from_others(tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": "\n".join(LINES).encode()})
    train, valid, test = of_lines(tmp_path, LINES, train_files=["b.txt"])
    assert not train & (valid | test)
    assert train | valid | test == set(LINES)


def test_whole_files_are_listed_and_a_copy_of_a_test_file_is_dropped(tmp_path: Path) -> None:
    files = {"a.txt": b"one\nfur", "b.txt": b"none", "copy.txt": b"none", "c.txt": b"four"}
    write(tmp_path, files)
    lists = {"train_files": ["*.txt"], "valid_files": ["c.txt"], "test_files": ["b.txt"]}
    corpus = prepared(tmp_path, {}, files=[], **lists)
    assert all_texts(corpus) == [["one\nfur"], ["four"], ["none"]]
    assert corpus.counts["dropped: held out elsewhere"] == 1
    config = LanguageModelDataConfig.model_validate({"files": [], **lists})
    assert corpus.sha256 == corpora.input_digest(config, tmp_path)
    write(tmp_path, {"b.txt": b"five"})
    assert corpora.input_digest(config, tmp_path) != corpus.sha256


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_file_for_another_purpose_is_prepared_anew(tmp_path: Path, split: str) -> None:
    write(tmp_path, {"a.txt": b"one two", "b.txt": b"two"})
    prepared(tmp_path, {}, files=["a.txt", "b.txt"])
    corpus = prepared(tmp_path, {}, files=["a.txt"], **{f"{split}_files": ["b.txt"]})
    assert texts(corpus, split)[-1:] == ["two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"valid split \(5 lines\).*valid_fraction = 0\.05, at least 59 different lines"),
        ({"valid_fraction": 0.0}, r"Set data\.valid_fraction .*data\.valid_files"),
        ({"valid_files": ["v.txt"]}, r"test split .*at least 59 .*data\.test_files"),
        ({"train_files": ["v.txt"], "files": [], "valid_files": ["v.txt"]}, "for the train split"),
        (
            {"train_files": ["a.txt"], "files": []},
            r"valid split .* Name data\.valid_files, or data\.fi",
        ),
    ],
)
def test_too_little_text_is_told_with_numbers_and_options(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    write(tmp_path, {"v.txt": b"Zoe"})
    fractions = {"documents": "line", "valid_fraction": 0.05, "test_fraction": 0.05}
    names = {"a.txt": b"Anna\nBert\nCarl\nDora\nEmil\n"}
    config = {"files": ["a.txt"], **fractions, **options}
    with pytest.raises(ConfigError, match=message):
        check_held_out(
            LanguageModelDataConfig.model_validate(config), prepared(tmp_path, names, **config)
        )


def test_lists_need_no_test_split(tmp_path: Path) -> None:
    options = {
        "files": [],
        "train_files": ["a.txt"],
        "valid_files": ["b.txt"],
        "test_fraction": 0.1,
    }
    corpus = prepared(tmp_path, {"a.txt": b"one", "b.txt": b"two"}, **options)
    check_held_out(LanguageModelDataConfig.model_validate(options), corpus)


def test_few_files_that_are_too_short_to_cut_are_told_of_positions(tmp_path: Path) -> None:
    options = {"valid_fraction": 0.05, "test_fraction": 0.05}
    corpus = prepared(tmp_path, {"a.txt": b"one", "b.txt": b"two"}, **options)
    with pytest.raises(ConfigError, match=r'\(2 files\).*data\.split_by = "position"'):
        check_held_out(LanguageModelDataConfig(files=["a.txt"]), corpus)


def test_what_is_read_of_lines_is_counted(tmp_path: Path) -> None:
    files = {"a.txt": b"one\n \n\n two\nthree \n", "b.txt": b"four"}
    corpus = prepared(tmp_path, files, documents="line")
    assert texts(corpus, "train") == ["one", " two", "three ", "four"]
    counts = {"files": 2, "lines": 4, "dropped: blank": 2, "with blanks at an end": 2}
    assert corpus.counts == counts
    stripped = prepared(tmp_path, files, documents="line", strip_lines=True)
    assert texts(stripped, "train") == ["one", "two", "three", "four"]
    assert stripped.counts == counts


@given(st.lists(plain, min_size=1, max_size=4), st.integers(1, 7))
@quick
def test_stripped_lines_are_the_lines_stripped_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], block: int
) -> None:
    lines = [x.strip() for text in contents for x in text.split("\n") if x.strip()]
    if not lines:
        return
    files = {f"{i}.txt": text.encode() for i, text in enumerate(contents)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BYTES", block)
        folder = tmp_path_factory.mktemp("stripped")
        corpus = prepared(folder, files, documents="line", strip_lines=True)
    assert texts(corpus, "train") == lines


# --- vocabulary ---------------------------------------------------------------------------------


def test_the_vocabulary_is_the_training_splits_characters_sorted(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"cabbagez"}, valid_fraction=0.125)
    assert corpus.vocab.tokens == (*SPECIAL_TOKENS, "a", "b", "c", "e", "g")


def test_a_character_that_occurs_only_after_the_training_split_is_unknown(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"aaaaaaaaaz"}, valid_fraction=0.1)
    assert corpus.valid.ids.tolist() == [BOS_ID, UNK_ID, EOS_ID]


def test_characters_rarer_than_min_count_are_unknown_in_training_too(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"aaabbc"}, min_count=2)
    assert corpus.train.ids.tolist() == [BOS_ID, 4, 4, 4, 5, 5, UNK_ID, EOS_ID]


def test_min_count_counts_in_the_training_split_only(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"aaab" + b"bbbb"}, min_count=2, valid_fraction=0.5)
    assert corpus.vocab.tokens == (*SPECIAL_TOKENS, "a")


def test_a_min_count_that_leaves_no_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.min_count"):
        prepared(tmp_path, {"a.txt": b"abc"}, min_count=2)


def test_the_printed_forms_of_special_tokens_are_unknown_in_a_text(tmp_path: Path) -> None:
    text = "a" + "".join(SPECIAL_TOKENS)
    corpus = prepared(tmp_path, {"a.txt": text.encode()})
    assert corpus.train.ids.tolist() == [BOS_ID, 4, *[UNK_ID] * 4, EOS_ID]


def test_text_is_normalized_before_it_is_counted(tmp_path: Path) -> None:
    rules = {"lowercase": True, "ascii_fold": True}
    corpus = prepared(tmp_path, {"a.txt": "École".encode()}, normalization=rules)
    assert texts(corpus, "train") == ["ecole"]


# --- streaming ----------------------------------------------------------------------------------


@given(
    awkward,
    st.integers(1, 7),
    st.builds(
        Normalization,
        newlines=st.booleans(),
        lowercase=st.booleans(),
        ascii_fold=st.booleans(),
        nfc=st.booleans(),
    ),
)
@settings(deadline=None, max_examples=100)
def test_pieces_of_a_file_are_together_its_normal_form(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, rules: Normalization
) -> None:
    path = tmp_path_factory.mktemp("pieces") / "text.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BYTES", block)
        pieces = list(stream_text(path, rules))
    assert "".join(pieces) == normalize(text, rules)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_sigma_looks_past_what_lower_casing_ignores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Unicode's rule for a final sigma: a point or an apostrophe does not end a word."""
    monkeypatch.setattr(text_files, "READ_BYTES", block)
    rules = Normalization(lowercase=True)
    path = tmp_path / "text.txt"
    for mark in map(chr, range(0x21, 0x7F)):
        for text in (f"a{mark}Σ", f"bba{mark}{mark}Σ", f"aΣ{mark}a", f"aΣ{mark}{mark}abb"):
            path.write_text(text, encoding="utf-8")
            assert "".join(stream_text(path, rules)) == text.lower()


@given(awkward.filter(lambda x: x.strip("\r\n") != ""), st.integers(1, 7), st.booleans())
@quick
def test_small_blocks_give_the_same_ids_as_one_block(
    tmp_path_factory: pytest.TempPathFactory, text: str, block: int, lines: bool
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "text.txt").write_bytes(text.encode())
    config = LanguageModelDataConfig(
        files=["text.txt"],
        documents="line" if lines else "file",
        normalization=Normalization(lowercase=True),
        valid_fraction=0.2,
        test_fraction=0.0,
    )
    try:
        whole = prepare(config, folder, folder / "whole")
    except ConfigError:  # nothing to train on
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BYTES", block)
        streamed = prepare(config, folder, folder / "streamed")
    assert streamed.vocab.tokens == whole.vocab.tokens
    for name in SPLITS:
        assert documents(streamed.split(name)) == documents(whole.split(name))


def test_a_sigma_is_final_where_its_word_ends_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "READ_BYTES", 1)
    files = {"a.txt": "ΟΔΟΣ ΣΑΣ\nΣ".encode()}
    corpus = prepared(tmp_path, files, normalization={"lowercase": True})
    assert texts(corpus, "train") == ["οδος σας\nσ"]  # noqa: RUF001


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, int]:
    """A corpus of 6 MB read in blocks of 64 KiB, and the most bytes that preparing it held."""
    folder = tmp_path_factory.mktemp("large")
    line = "The quick brown fox jumps over the lazy dog; café, naïve.\r\n".encode()
    (folder / "text.txt").write_bytes(line * (6_000_000 // len(line)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "READ_BYTES", 1 << 16)
        tracemalloc.start()
        try:
            corpus = prepared(folder, {}, files=["text.txt"], valid_fraction=0.1)
            return corpus, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def test_preparing_a_large_file_holds_a_small_part_of_it(large: tuple[Corpus, int]) -> None:
    corpus, peak_bytes = large
    assert corpus.train.chars > 5_000_000
    assert peak_bytes < 4_000_000  # 2.2 MB of it is the vocabulary's table


@pytest.mark.parametrize("order", ["stream", "shuffle"])
def test_windows_over_a_large_corpus_hold_a_small_part_of_it(
    large: tuple[Corpus, int], order: str
) -> None:
    corpus, _ = large
    tracemalloc.start()
    try:
        windows = Windows(corpus.train, 32, 128, order=order)
        for _ in range(200):
            windows.next()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# --- reuse --------------------------------------------------------------------------------------


def written_at(folder: Path) -> int:
    return (folder / "corpus/train.ids").stat().st_mtime_ns


def test_a_prepared_corpus_is_used_again(tmp_path: Path) -> None:
    prepared(tmp_path, {"a.txt": b"one"})
    before = (tmp_path / "corpus/train.ids").stat().st_ino, (tmp_path / "corpus/corpus.json").stat()
    prepared(tmp_path, {"a.txt": b"one"})
    again = (tmp_path / "corpus/train.ids").stat().st_ino, (tmp_path / "corpus/corpus.json").stat()
    assert again == before


def test_a_prepared_corpus_opens_when_its_text_is_gone(tmp_path: Path) -> None:
    whole = prepared(tmp_path, {"a.txt": b"one"})
    (tmp_path / "a.txt").unlink()
    opened = load(tmp_path / "corpus")
    assert (opened.vocab.tokens, opened.sha256) == (whole.vocab.tokens, whole.sha256)
    assert all_texts(opened) == all_texts(whole)


def test_a_damaged_corpus_is_refused_and_prepared_anew_where_the_text_is(tmp_path: Path) -> None:
    whole = all_texts(prepared(tmp_path, {"a.txt": b"one"}))
    (tmp_path / "corpus/train.ids").write_bytes(np.array([1, 4, 2], np.uint16).tobytes())
    with pytest.raises(ConfigError, match="corpus: damaged"):
        load(tmp_path / "corpus")
    assert all_texts(prepared(tmp_path, {"a.txt": b"one"})) == whole
    (tmp_path / "corpus/valid.ids").unlink()
    with pytest.raises(ConfigError, match=r"valid\.ids: missing"):
        load(tmp_path / "corpus")


def test_a_reused_corpus_is_the_one_that_was_prepared(tmp_path: Path) -> None:
    options = {"valid_fraction": 0.3, "documents": "line"}
    files = {"a.txt": b"one two\nthree\nfour", "b.txt": b"five\n"}
    first = prepared(tmp_path, files, **options)
    before = [(x.vocab.tokens, x.sha256, all_texts(x)) for x in [first]]
    again = prepared(tmp_path, files, **options)
    assert [(again.vocab.tokens, again.sha256, all_texts(again))] == before


def test_a_changed_text_is_prepared_anew(tmp_path: Path) -> None:
    prepared(tmp_path, {"a.txt": b"one"})
    assert texts(prepared(tmp_path, {"a.txt": b"two"}), "train") == ["two"]


def test_a_file_more_is_prepared_anew(tmp_path: Path) -> None:
    prepared(tmp_path, {"a.txt": b"one"}, files=["*.txt"])
    corpus = prepared(tmp_path, {"b.txt": b"two"}, files=["*.txt"])
    assert texts(corpus, "train") == ["one", "two"]


def test_a_text_that_moved_from_one_file_to_the_next_is_prepared_anew(tmp_path: Path) -> None:
    first = prepared(tmp_path, {"a.txt": b"one two", "b.txt": b" three"})
    second = prepared(tmp_path, {"a.txt": b"one", "b.txt": b" two three"})
    assert texts(second, "train") == ["one", " two three"]
    assert second.sha256 != first.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"documents": "line"},
        {"normalization": {"lowercase": True}},
        {"min_count": 2},
        {"valid_fraction": 0.5},
        {"test_fraction": 0.5},
    ],
)
def test_a_changed_option_is_prepared_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    files = {"a.txt": b"Aab\naab"}
    before = [documents(prepared(tmp_path, files).split(name)) for name in SPLITS]
    after = [documents(prepared(tmp_path, files, **change).split(name)) for name in SPLITS]
    assert after != before


def test_what_does_not_touch_the_ids_is_not_prepared_anew(tmp_path: Path) -> None:
    prepared(tmp_path, {"a.txt": b"one"})
    before = written_at(tmp_path)
    prepared(tmp_path, {"a.txt": b"one"}, title="A title", license="public domain")
    assert written_at(tmp_path) == before


def test_a_corpus_whose_preparation_was_broken_off_is_prepared_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path, {"a.txt": b"one"})
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "_vocabulary", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared(tmp_path, {"a.txt": b"two"})
    assert texts(prepared(tmp_path, {"a.txt": b"one"}), "train") == ["one"]


def test_a_record_that_a_crash_cut_short_is_prepared_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.write_text

    def cut_short(path: Path, text: str) -> int:
        whole(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_short)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, {"a.txt": b"one"})
    assert texts(prepared(tmp_path, {"a.txt": b"one"}), "train") == ["one"]


def test_the_checksum_of_one_file_is_its_sha_256(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, {"a.txt": b"abc"})
    assert corpus.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_record_is_json_that_holds_the_vocabulary(tmp_path: Path) -> None:
    prepared(tmp_path, {"a.txt": "a\u2028\n".encode()})
    record = json.loads((tmp_path / "corpus/corpus.json").read_text())
    assert record["tokens"] == [*SPECIAL_TOKENS, "\n", "a", "\u2028"]


def test_a_file_that_two_patterns_match_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    config = LanguageModelDataConfig(files=["*.txt", "a.txt"])
    assert text_files.input_files(config.files, tmp_path) == [tmp_path / "a.txt"]


def test_text_without_white_space_is_streamed_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "READ_BYTES", 64)
    text = "GATTACA" * 1000
    (tmp_path / "dna.txt").write_text(text)
    pieces = list(stream_text(tmp_path / "dna.txt", Normalization()))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 128
