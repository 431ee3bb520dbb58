"""Streaming a translation token by token: a token is sent once no beam can change it."""

from collections.abc import Iterator

import numpy as np

from service.bundle.arrays import Float32Array, Ids
from service.bundle.text import EOS_ID
from service.bundle.tokenization import Tokenizer
from service.decoding.search import Search
from service.scheduling.feed import Feed, News
from service.tasks.translations import TokenLogprob, TranslatedToken


class StreamedSearch:
    """Turns the tokens of one source's search into the events of its stream."""

    def __init__(
        self,
        feed: "Feed[StreamedSearch]",
        target: Tokenizer,
        source: int,
        search: Search,
    ) -> None:
        self._feed = feed
        self._target = target
        self._source = source
        self._search = search
        self._news = News()
        self._pieces: dict[int, list[str]] = {}  # of each place, as printed
        self._texts: dict[int, str] = {}  # their joined text
        self._counts: dict[int, int] = {}

    def wrote(self, place: int, tokens: Ids, logprobs: Float32Array) -> None:
        """Called by the worker with the next tokens."""
        if self._news.add((np.full(len(tokens), place, np.uint16), tokens, logprobs)):
            self._feed.put(self)

    def ended(self) -> None:
        """Called by the worker when the hypotheses are complete."""
        if self._news.end():
            self._feed.put(self)

    def events(self) -> Iterator[TranslatedToken]:
        """The events that the tokens since the last call allow, and the end."""
        columns, has_ended = self._news.take()
        if columns:
            for place, token, logprob in zip(*(x.tolist() for x in columns), strict=True):
                yield from self._tokens(place, [token], [logprob])
        if not has_ended:
            return
        found = self._search.best()
        # Only the best beam is streamed.
        for place, hypothesis in enumerate(found if self._search.params else found[:1]):
            rest = slice(self._counts.get(place, 0), None)
            logprobs = list(hypothesis.token_logprobs[rest])
            yield from self._tokens(place, list(hypothesis.tokens[rest]), logprobs)

    def _tokens(
        self, place: int, tokens: list[int], logprobs: list[float]
    ) -> Iterator[TranslatedToken]:
        pieces = self._pieces.setdefault(place, [])
        self._counts[place] = self._counts.get(place, 0) + len(tokens)
        for token, logprob in zip(tokens, logprobs, strict=True):
            before = self._texts.get(place, "")
            name = self._target.tokens[token]
            if token != EOS_ID:
                pieces.append(name)
            # A text begins with the texts of its first tokens, in every kind of vocabulary.
            whole = self._texts[place] = self._target.join(pieces)
            told = TokenLogprob(name, logprob)
            yield TranslatedToken(self._source, place, whole[len(before) :], len(before), told)
