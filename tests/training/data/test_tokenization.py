"""Characters, symbols and subwords: round trips, spans, and what is no token."""

import itertools
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bundle.text import SPECIAL_TOKENS, UNK_ID
from service.bundle.tokenization import Characters, Subwords, Symbols, Tokenizer

LEARNT = ["low lower lowest", "new newer newest wide", "new"] * 3
SUBWORDS = Subwords.learn(LEARNT, 64, 2)
SYMBOLS = Symbols.of_symbols(["AH0", "T", "S", "K"])
CHARACTERS = Characters.of_characters("lowernstid ")
TOKENIZERS: list[Tokenizer] = [Characters(CHARACTERS.tokens), SYMBOLS, SUBWORDS]
ALPHABETS = ["lowernstid ", ["AH0", "T", "S", "K"], "lowernstid"]

of_any_kind = pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda x: type(x).__name__)
words = st.lists(st.text("lowernstid", min_size=1, max_size=8), max_size=5).map(" ".join)
symbols = st.lists(st.sampled_from(["AH0", "T", "S", "K"]), max_size=8).map(" ".join)
anything = st.text(
    st.characters(codec="utf-8") | st.sampled_from([*SPECIAL_TOKENS, *"low \u2581\u2028"])
)


# --- there and back -----------------------------------------------------------------------------


@given(words)
def test_words_of_known_letters_come_back_from_characters_and_subwords(text: str) -> None:
    for tokenizer in (TOKENIZERS[0], SUBWORDS):
        ids = tokenizer.encode(text)
        assert UNK_ID not in ids
        assert tokenizer.decode(ids.tolist()) == text


@given(symbols)
def test_known_symbols_come_back(text: str) -> None:
    assert SYMBOLS.decode(SYMBOLS.encode(text).tolist()) == text


def test_symbols_come_back_with_one_space_between_any_two() -> None:
    assert SYMBOLS.decode(SYMBOLS.encode("  T  AH0 S ").tolist()) == "T AH0 S"


def test_only_the_space_separates_symbols() -> None:
    tokenizer = Symbols.of_symbols(["a\u00a0b", "c\td"])
    text = "a\u00a0b c\td"
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    assert tokenizer.spans(text) == [(0, 3), (4, 7)]


@of_any_kind
def test_an_empty_text_has_no_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("").tolist() == tokenizer.spans("") == []
    assert tokenizer.decode([]) == ""


@of_any_kind
def test_special_ids_have_no_text(tokenizer: Tokenizer) -> None:
    last = len(tokenizer) - 1
    assert tokenizer.decode([0, 1, last, 2, 3]) == tokenizer.decode([last])


@of_any_kind
def test_joined_tokens_are_the_decoded_text(tokenizer: Tokenizer) -> None:
    ids = range(len(SPECIAL_TOKENS), len(tokenizer))
    assert tokenizer.join([tokenizer.tokens[i] for i in ids]) == tokenizer.decode(ids)


# --- spans --------------------------------------------------------------------------------------


@given(anything)
@settings(deadline=None)
def test_every_token_has_one_span_in_order_and_inside_the_text(text: str) -> None:
    for tokenizer in TOKENIZERS:
        ids, spans = tokenizer.encode(text), tokenizer.spans(text)
        assert len(ids) == len(spans)
        assert spans == sorted(spans)
        assert all(0 <= start <= end <= len(text) for start, end in spans)
        assert all(start < end for start, end in spans[1:])
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_the_mark_of_a_word_that_is_cut_off_has_no_text() -> None:
    assert SUBWORDS.tokens[SUBWORDS.encode("§")[0]] == Subwords.WORD_START
    assert SUBWORDS.spans("§") == [(0, 0), (0, 1)]


@given(anything)
@settings(deadline=None)
def test_spans_cover_the_text(text: str) -> None:
    for tokenizer in TOKENIZERS:
        covered = {i for start, end in tokenizer.spans(text) for i in range(start, end)}
        left = set(range(len(text))) - covered
        assert all(text[i] == " " for i in left), (tokenizer, text)
        assert not left or isinstance(tokenizer, Symbols)


@given(anything)
@settings(deadline=None)
def test_a_known_token_stands_where_its_span_says(text: str) -> None:
    for tokenizer in TOKENIZERS:
        for i, (start, end) in zip(
            tokenizer.encode(text).tolist(), tokenizer.spans(text), strict=True
        ):
            if i == UNK_ID or tokenizer.tokens[i] == Subwords.WORD_START:
                continue
            token = tokenizer.tokens[i].replace(Subwords.WORD_START, " ")
            seen = text[start:end].replace(Subwords.WORD_START, " ")
            assert seen in {token, token.removeprefix(" ")}


# --- what is unknown ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokenizer", "text", "spans"),
    [
        (CHARACTERS, "lo§w¶", [(2, 3), (4, 5)]),
        (SYMBOLS, "T AH1 S K2", [(2, 5), (8, 10)]),
        (SUBWORDS, "lo§w ¶¶ new", [(2, 3), (5, 6), (6, 7)]),
        (SUBWORDS, "😀 low", [(0, 1)]),
    ],
)
def test_an_unknown_one_is_unk_and_its_span_shows_it(
    tokenizer: Tokenizer, text: str, spans: list[tuple[int, int]]
) -> None:
    known = Characters(tokenizer.tokens) if tokenizer is CHARACTERS else tokenizer
    pairs = zip(known.encode(text).tolist(), known.spans(text), strict=True)
    assert [span for i, span in pairs if i == UNK_ID] == spans


@given(anything)
@settings(deadline=None)
def test_no_text_has_a_special_token(text: str) -> None:
    for tokenizer in TOKENIZERS:
        assert min(tokenizer.encode(text).tolist(), default=UNK_ID) >= UNK_ID


@of_any_kind
@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_a_special_tokens_printed_form_in_a_text_is_unknown(
    tokenizer: Tokenizer, special: str
) -> None:
    for text in (special, f" {special} ", f"low {special} T"):
        assert UNK_ID in tokenizer.encode(text)
        assert special not in tokenizer.decode(tokenizer.encode(text).tolist())


def test_a_special_tokens_printed_form_is_no_symbol() -> None:
    tokenizer = Symbols.of_symbols([*SPECIAL_TOKENS, "a"])
    assert tokenizer.tokens == (*SPECIAL_TOKENS, "a")


# --- vocabularies -------------------------------------------------------------------------------

SPECIAL = list(SPECIAL_TOKENS)


@pytest.mark.parametrize("kind", [Characters, Symbols])
@pytest.mark.parametrize(
    "tokens",
    [
        [],
        SPECIAL[:3],
        ["a", *SPECIAL],
        [*reversed(SPECIAL), "a"],
        [*SPECIAL, "a", "a"],
        [*SPECIAL, SPECIAL[0]],
        [*SPECIAL, ""],
    ],
)
def test_a_bad_list_is_refused(kind: Callable[[list[str]], Tokenizer], tokens: list[str]) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|token|character"):
        kind(tokens)


@pytest.mark.parametrize(
    ("kind", "token"), [(Characters, "ab"), (Characters, "\ud800"), (Symbols, "a b")]
)
def test_a_token_of_another_kind_is_refused(
    kind: Callable[[list[str]], Tokenizer], token: str
) -> None:
    with pytest.raises(ValueError, match=r"token|character"):
        kind([*SPECIAL, token])


@pytest.mark.parametrize(("size", "fits"), [(65_535, True), (65_536, False)])
def test_ids_fit_in_16_bits(size: int, *, fits: bool) -> None:
    tokens = [*SPECIAL, *(f"w{i}" for i in range(size - 4))]
    if fits:
        assert Symbols(tokens).encode(tokens[-1]).tolist() == [size - 1]
        return
    with pytest.raises(ValueError, match="at most 65,535 tokens"):
        Symbols(tokens)


# --- subwords -----------------------------------------------------------------------------------


def changed(**parts: object) -> str:
    document = json.loads(SUBWORDS.document)
    document["model"] |= parts
    return json.dumps(document)


def test_subwords_come_back_from_their_document() -> None:
    again = Subwords(SUBWORDS.document)
    assert again.document == SUBWORDS.document
    assert again.tokens == SUBWORDS.tokens
    text = "lowest §newer"
    assert again.encode(text).tolist() == SUBWORDS.encode(text).tolist()
    assert again.spans(text) == SUBWORDS.spans(text)


@pytest.mark.parametrize("document", ["", "{}", "[]", "null", '{"model": 3}', "\ud800"])
def test_what_is_no_tokenizer_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match=r"not a tokenizer|surrogates"):
        Subwords(document)


def test_ids_with_a_hole_are_refused() -> None:
    vocab = {token: i for i, token in enumerate(SUBWORDS.tokens) if i != 4}
    with pytest.raises(ValueError, match=r"0, 1, 2 and so on"):
        Subwords(changed(vocab=vocab, merges=[]))


def test_subwords_start_with_the_special_tokens() -> None:
    vocab = {token: i for i, token in enumerate(reversed(SUBWORDS.tokens))}
    with pytest.raises(ValueError, match="starts with the printed forms"):
        Subwords(changed(vocab=vocab, merges=[]))


def test_learning_is_the_same_each_time_and_bounded() -> None:
    texts = ["the quick brown fox jumps over the lazy dog"] * 3 + ["pack my box with five dozen"]
    first = Subwords.learn(texts, 64, 1)
    assert len(first) <= 64
    assert Subwords.learn(texts, 64, 1).document == first.document
    assert len(Subwords.learn(texts, 64, 2)) < len(first) or len(first) == 64


def test_a_subword_occurs_as_often_as_it_must() -> None:
    tokenizer = Subwords.learn(["ab ab ab", "cd", "c d", "e"], 64, 3)
    assert "\u2581ab" in tokenizer.tokens
    assert "cd" not in tokenizer.tokens
    assert tokenizer.encode("abe").tolist() == [*tokenizer.encode("ab"), UNK_ID]
    tokenizer = Subwords.learn(["ab ab ab", "cd", "c d", "e"], 64, 2)
    assert "cd" not in tokenizer.tokens
    assert tokenizer.decode(tokenizer.encode("cd ab").tolist()) == "cd ab"
