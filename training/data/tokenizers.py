"""Tokenizers: learned from texts, grown from a known one, and made from what a checkpoint keeps."""

from collections import Counter
from collections.abc import Iterable, Sequence

from service.bundle.text import SPECIAL_TOKENS
from service.bundle.tokenization import Characters, Subwords, Symbols, Tokenizer
from training.config import TextSideConfig
from training.errors import ConfigError


def learn_tokenizer(config: TextSideConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokens of the training texts. Raises ConfigError where there are none, or too many."""
    try:
        return _learned(config, texts)
    except ValueError as error:
        raise ConfigError(f"data: {error}; a higher min_count leaves fewer") from error


def grown(known: Tokenizer, own: Tokenizer) -> Tokenizer:
    """The known tokens, followed by the new ones; subwords stay as they are."""
    if isinstance(own, Subwords):
        return known
    tokens = [*known.tokens, *(x for x in own.tokens if x not in known.tokens)]
    return Characters(tokens) if isinstance(own, Characters) else Symbols(tokens)


def make_tokenizer(tokenization: str, tokens: Sequence[str], document: str | None) -> Tokenizer:
    """The tokenizer that a checkpoint or a bundle describes."""
    if tokenization == "bpe":
        if document is None:
            raise ValueError("bpe needs the tokenizer's document")
        return Subwords(document)
    return Characters(tokens) if tokenization == "character" else Symbols(tokens)


def _learned(config: TextSideConfig, texts: Iterable[str]) -> Tokenizer:
    if config.tokenization == "bpe":
        return Subwords.learn(texts, config.vocab_size, config.min_count)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if config.tokenization == "character" else text.split(" "))
    frequent = [token for token, count in counts.items() if token and count >= config.min_count]
    if not set(frequent) - set(SPECIAL_TOKENS):
        raise ConfigError("data: min_count leaves no token of the training split")
    if config.tokenization == "character":
        return Characters.of_characters(frequent)
    return Symbols.of_symbols(frequent)
