"""Text to ids and back where a token is not a character: symbols between spaces, subwords.

All three kinds of vocabulary have the same form (`Tokenizer`): `tokens[id]` is a printed token, the
first four are special, `encode` gives ids and `spans` the characters that each of them stands for.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal, Protocol, TypeAlias

import numpy as np
import tokenizers

from service.bundle.arrays import Ids
from service.bundle.text import SPECIAL_TOKENS, UNK_ID, Vocabulary, check_tokens

Tokenization: TypeAlias = Literal["character", "whitespace", "bpe"]
Spans: TypeAlias = list[tuple[int, int]]  # of each token: first character, and one past the last

_SYMBOL = re.compile(r"[^ ]+")
_SPECIAL = re.compile(f"([{''.join(SPECIAL_TOKENS)}])")


class Tokenizer(Protocol):
    """One side's vocabulary."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""

    def __len__(self) -> int:
        """Number of tokens, the four special ones included."""

    def encode(self, text: str) -> Ids:
        """Ids of a normalized text; `UNK_ID` for what the vocabulary lacks."""

    def spans(self, text: str) -> Spans:
        """Where each of these tokens lies in the text."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special tokens have none."""

    def join(self, pieces: Sequence[str]) -> str:
        """The text of printed tokens, or of strings shown in their place."""


class Characters(Vocabulary):
    """A token is a character."""

    def spans(self, text: str) -> Spans:
        """One character each."""
        return [(i, i + 1) for i in range(len(text))]

    def join(self, pieces: Sequence[str]) -> str:
        """One after another."""
        return "".join(pieces)


class Symbols:
    """A token is a symbol between spaces: a phoneme, a note, a word.

    Raises ValueError when the list does not start with `SPECIAL_TOKENS`, repeats a token or holds
    one that is empty or has a space.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        check_tokens(tokens)
        if any(not token or " " in token for token in tokens):
            raise ValueError("a token between spaces has no space and is not empty")
        self._tokens = tuple(tokens)
        ordinary = list(enumerate(tokens))[len(SPECIAL_TOKENS) :]
        self._id_of_token = {token: i for i, token in ordinary}

    @classmethod
    def of_symbols(cls, symbols: Iterable[str]) -> "Symbols":
        """The special tokens and then the symbols, sorted."""
        return cls([*SPECIAL_TOKENS, *sorted(set(symbols) - set(SPECIAL_TOKENS))])

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""
        return self._tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> Ids:
        """Ids of the symbols; only U+0020 separates them."""
        ids = [self._id_of_token.get(symbol, UNK_ID) for symbol in _SYMBOL.findall(text)]
        return np.array(ids, np.uint16)

    def spans(self, text: str) -> Spans:
        """Where each symbol lies in the text."""
        return [match.span() for match in _SYMBOL.finditer(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The symbols, a space between any two."""
        return self.join([self._tokens[i] for i in ids if i >= len(SPECIAL_TOKENS)])

    def join(self, pieces: Sequence[str]) -> str:
        """With a space between any two."""
        return " ".join(pieces)


class Subwords:
    """A token is a piece of a word, by byte pair encoding (Sennrich et al. 2016).

    `document` is the JSON of a tokenizer of the `tokenizers` library. Raises ValueError when it is
    not one, or when its ids 0 to 3 are not `SPECIAL_TOKENS`.
    """

    WORD_START = "\u2581"

    def __init__(self, document: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(document)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError("not a tokenizer of the tokenizers library") from error
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        tokens = sorted(vocab, key=vocab.__getitem__)
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError("the ids of a vocabulary are 0, 1, 2 and so on")
        check_tokens(tokens)
        self._tokens = tuple(tokens)

    @classmethod
    def learn(cls, texts: Iterable[str], vocab_size: int, min_count: int) -> "Subwords":
        """Learn at most so many tokens from texts; each must occur `min_count` times.

        If the texts have more characters than that, the most frequent ones are kept. The printed
        forms of the special tokens are dropped from the texts first.
        """
        dropped = str.maketrans("", "", "".join(SPECIAL_TOKENS))
        texts = [text.translate(dropped) for text in texts]
        counts = Counter(chain.from_iterable(texts))
        # The mark of a word's start is one character more; blanks are read as that.
        alphabet = 1 + sum(counts[x] >= min_count for x in counts if x != " ")
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.BPE(unk_token=SPECIAL_TOKENS[UNK_ID], fuse_unk=False)
        )
        start, scheme = cls.WORD_START, "always"
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(start, prepend_scheme=scheme)
        tokenizer.decoder = tokenizers.decoders.Metaspace(start, prepend_scheme=scheme)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=min_count,
            limit_alphabet=min(vocab_size - len(SPECIAL_TOKENS), alphabet),
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        document = json.loads(tokenizer.to_str())
        # Special tokens are never read from a text: there they are unknown characters.
        document["added_tokens"] = []
        return cls(json.dumps(document))

    @property
    def document(self) -> str:
        """The tokenizer as JSON."""
        return str(self._tokenizer.to_str())

    @property
    def tokens(self) -> tuple[str, ...]:
        """Printed tokens; the index is the id."""
        return self._tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, text: str) -> Ids:
        """Ids of the subwords; an unknown character is one `UNK_ID`."""
        ids = np.array(self._tokenizer.encode(text).ids, np.uint16)
        ids[ids < len(SPECIAL_TOKENS)] = UNK_ID
        return ids

    def spans(self, text: str) -> Spans:
        """Where each subword lies in the text."""
        spans = list(self._tokenizer.encode(text).offsets)
        if len(spans) > 1 and spans[0][1] > spans[1][0]:
            # A word-start mark that is a token by itself has no character.
            spans[0] = (0, 0)
        return spans

    def decode(self, ids: Iterable[int]) -> str:
        """The words of the ids."""
        return self.join([self._tokens[i] for i in ids if i >= len(SPECIAL_TOKENS)])

    def join(self, pieces: Sequence[str]) -> str:
        """One after another, a space where a word starts."""
        return "".join(pieces).replace(self.WORD_START, " ").removeprefix(" ")


def special_ids(tokenizer: Vocabulary | Tokenizer, text: str) -> list[int]:
    """Ids of a normalized text in which the printed forms of special tokens are those tokens.

    For clients that work with tokens; in a prompt or a scored text those characters are unknown.
    """
    ids: list[int] = []
    for i, piece in enumerate(_SPECIAL.split(text)):  # text, special, text, …
        ids += [SPECIAL_TOKENS.index(piece)] if i % 2 else tokenizer.encode(piece).tolist()
    return ids
