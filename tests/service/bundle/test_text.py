"""Text to ids and back."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.files import vocab_bytes
from service.bundle.marks import TooManyMarks
from service.bundle.text import (
    SPECIAL_TOKENS,
    UNK_ID,
    Normalization,
    SideNormalization,
    Vocabulary,
    last_cut,
    normalize,
)

several = settings(max_examples=50, deadline=None)

# Line separators, NUL, combining marks, right to left, beyond the basic plane.
AWKWARD = "\n\r\x00\x85\u2028\u2029\u0301\u05d0\u202e\ufeff\U0001f407\U0010ffff\"\\'\u007f"
any_text = st.text(alphabet=st.characters(categories=None) | st.sampled_from(AWKWARD))
unicode_text = st.text() | st.text(alphabet=AWKWARD + "eE \u0301\u0300\u2001\u2019\u2026ÅÉİΣς가ﬁ")
rules = st.builds(
    Normalization,
    newlines=st.booleans(),
    fold=st.booleans(),
    lowercase=st.booleans(),
    ascii_fold=st.booleans(),
    nfc=st.booleans(),
    strip=st.booleans(),
)


@several
@given(characters=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_vocabulary_survives_its_file(characters: str) -> None:
    vocab = Vocabulary.of_characters(characters)
    data = vocab_bytes(vocab)
    assert data.isascii()
    assert Vocabulary(json.loads(data)).tokens == vocab.tokens


def test_awkward_characters_are_tokens_like_any_other() -> None:
    vocab = Vocabulary(json.loads(vocab_bytes(Vocabulary.of_characters(AWKWARD))))
    ids = vocab.encode(AWKWARD)
    assert UNK_ID not in ids
    assert len(set(ids.tolist())) == len(AWKWARD)
    assert vocab.decode(ids.tolist()) == AWKWARD


@several
@given(text=any_text, known=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_text_encodes_to_an_id_a_character_and_what_is_known_comes_back(
    text: str, known: str
) -> None:
    vocab = Vocabulary.of_characters(known)
    ids = vocab.encode(text + known)
    assert len(ids) == len(text + known)
    members = set(known) - set(SPECIAL_TOKENS)
    assert [i != UNK_ID for i in ids.tolist()] == [char in members for char in text + known]
    assert vocab.decode(ids.tolist()) == "".join(c for c in text + known if c in members)


def test_lone_surrogates_are_one_unknown_character_each() -> None:
    # Not even where what others put in their place is known.
    vocab = Vocabulary.of_characters("?ab\ufffd")
    assert vocab.encode("a\ud800b\udfff\ud83d").tolist() == [5, UNK_ID, 6, UNK_ID, UNK_ID]


def test_the_printed_forms_of_special_tokens_are_unknown_characters_in_a_text() -> None:
    vocab = Vocabulary.of_characters("ab" + "".join(SPECIAL_TOKENS))
    assert vocab.tokens == (*SPECIAL_TOKENS, "a", "b")
    assert vocab.encode("".join(SPECIAL_TOKENS)).tolist() == [UNK_ID] * 4


def test_special_tokens_have_no_text() -> None:
    assert Vocabulary.of_characters("ab").decode([1, 4, 3, 5, 2, 0]) == "ab"


def test_the_empty_text_has_no_ids() -> None:
    ids = Vocabulary.of_characters("ab").encode("")
    assert ids.shape == (0,)
    assert ids.dtype == np.uint16


@pytest.mark.parametrize(
    ("tokens", "cause"),
    [
        (["a", "b", "c", "d", "e"], "starts with"),
        ([*SPECIAL_TOKENS[:3], "a"], "starts with"),
        ([*SPECIAL_TOKENS, "a", "bc"], "exactly one character"),
        ([*SPECIAL_TOKENS, ""], "exactly one character"),
        ([*SPECIAL_TOKENS, "a", "a"], "once"),
        ([*SPECIAL_TOKENS, SPECIAL_TOKENS[0]], "once"),
        ([*SPECIAL_TOKENS, "a", "\ud800"], "surrogate"),
        ([*SPECIAL_TOKENS, *map(chr, range(0x10000, 0x20000))], "65,535"),
    ],
)
def test_a_bad_vocabulary_is_refused(tokens: list[str], cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        Vocabulary(tokens)


@several
@given(text=unicode_text, how=rules)
def test_normalizing_twice_is_normalizing_once(text: str, how: Normalization) -> None:
    once = normalize(text, how)
    assert normalize(once, how) == once


@several
@given(text=unicode_text)
def test_nfc_is_unicodes(text: str) -> None:
    how = Normalization(newlines=False, nfc=True)
    assert normalize(text, how) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a\r\nb\rc\r\r\nd\n\re", {}, "a\nb\nc\n\nd\n\ne"),
        ("a\r\nb\r", {"newlines": False}, "a\r\nb\r"),
        ("a\u2028b\x85c\x0bd", {}, "a\u2028b\x85c\x0bd"),
        ("Cafe\u0301", {}, "Caf\u00e9"),
        ("Cafe\u0301", {"nfc": False}, "Cafe\u0301"),
        ("HELLO", {"lowercase": True}, "hello"),
        ("HELLO", {}, "HELLO"),
        ("ΟΔΟΣ É", {"lowercase": True}, "οδος é"),
        ("Ślusàrski ßø", {"ascii_fold": True}, "Slusarski ßø"),
        ("E\u0301É", {"ascii_fold": True, "lowercase": True}, "ee"),
        ("각", {"ascii_fold": True}, "각"),
        ("", {"ascii_fold": True, "lowercase": True}, ""),
        (" a b\r\n", {"strip": True}, "a b"),
        ("\u2003\u00e9\u00a0", {"strip": True}, "\u00e9"),
        ("don\u2019t \u201cgo\u201d\u2026", {"fold": True}, 'don\'t "go"...'),
        ("1976\u201307\u201104\u00a0\u2014\u22121", {"fold": True}, "1976-07-04 --1"),
        ("don\u2019t", {}, "don\u2019t"),
        ("\u00a0a\u202f", {"fold": True, "strip": True}, "a"),
    ],
)
def test_a_text_is_normalized_as_the_rules_say(
    text: str, options: dict[str, bool], expected: str
) -> None:
    assert normalize(text, Normalization(**options)) == expected


def test_nothing_composes_with_what_folding_leaves() -> None:
    """So that a text may be folded in the parts that it is read in."""
    marks = [chr(i) for i in range(0x110000) if unicodedata.combining(chr(i))]
    for plain in " '\"-.":
        composed = [x for x in marks if len(unicodedata.normalize("NFC", plain + x)) == 1]
        assert composed == []


def test_a_side_is_stripped_where_an_older_manifest_says_nothing() -> None:
    older = {"newlines": True, "lowercase": False, "ascii_fold": False, "nfc": True}
    rules = SideNormalization.model_validate(older)
    assert (rules.strip, rules.fold) == (True, False)
    assert not SideNormalization.model_validate(older | {"strip": False}).strip


# Runs, so that what a sigma's lower case depends on lies far away.
runs = st.tuples(
    st.sampled_from(
        [*"aZ\u03a3\u03c3'.:-5\u02b0\u0301\u0345\u00e9\u1100\u1161\r", "\r\n", " ", "\n"]
    ),
    st.sampled_from([1, 1, 1, 2, 29, 40]),
).map(lambda x: x[0] * x[1])
runs_of_texts = st.lists(runs, max_size=12).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    text=runs_of_texts,
    following=runs_of_texts,
    rules=st.builds(Normalization, lowercase=st.booleans(), ascii_fold=st.booleans()),
    blanks=st.booleans(),
)
def test_the_parts_of_a_cut_text_have_its_normal_form_whatever_follows(
    text: str, following: str, rules: Normalization, *, blanks: bool
) -> None:
    text = text if blanks else text.replace(" ", "").replace("\n", "")
    cut = last_cut(text, rules)
    assert 0 <= cut <= len(text)
    whole = text + following
    try:
        expected = normalize(whole, rules)
    except TooManyMarks:
        return
    assert normalize(whole[:cut], rules) + normalize(whole[cut:], rules) == expected


def test_a_text_is_cut_before_its_last_blank_or_else_between_characters() -> None:
    rules = Normalization(lowercase=True)
    assert last_cut("one two", rules) == 3
    assert last_cut("one two\r\nthree", rules) == 7
    assert last_cut("one two", rules, searched=4) == 0  # too short to be cut elsewhere
    assert last_cut("a" * 100, rules) == 68
    assert last_cut("a" * 100, rules, blanks_only=True) == 0
    # A sigma after these would be a final one because of the letter before them.
    assert last_cut("a" + "'" * 99, rules) == 0
    assert last_cut("a" + "'" * 99, Normalization()) == 68
