"""Streaming a choice token by token: holds back what may become a stop string; token offsets."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.text import EOS_ID, SPECIAL_TOKENS
from service.decoding.rows import TokenDetails, WriteRow
from service.scheduling.feed import Feed, News
from service.scheduling.language_model import TextWork
from service.tasks.scored_tokens import ScoredToken, scored_tokens
from service.tasks.values import ChoiceEnd, Prompt, TokenEvent

_Told: TypeAlias = tuple[int, TokenDetails]  # a token that was written


class StreamedChoice:
    """One choice's row on one side, its events on the other."""

    def __init__(  # noqa: PLR0917 (what a choice is made of)
        self,
        feed: "Feed[StreamedChoice]",
        names: Sequence[str],
        place: tuple[int, int],
        echoed: Prompt | None,
        work: TextWork,
        row: WriteRow,
        sealed: Callable[[TextWork, WriteRow], str | None],
    ) -> None:
        self._feed = feed
        self._names = names
        self._prompt, self._choice = place
        self._sealed = sealed
        self._echoed = echoed
        self._work = work
        self._row = row
        self._news = News()
        self._held: list[_Told] = []  # might be a stop string's tokens
        self._offset = 0
        self._began = False
        self._count = 0
        self._state = 0  # where the text has led, where it is constrained
        self.has_ended = False
        row.listener = self
        row.detail_top = row.detail_top or 0

    def wrote(self, token: int, details: TokenDetails) -> None:
        """From the worker: a token."""
        if self._news.add((np.array([token], np.uint16), *details.columns)):
            self._feed.put(self)

    def ended(self) -> None:
        """From the worker: no token follows."""
        if self._news.end():
            self._feed.put(self)

    def events(self) -> Iterator[TokenEvent | ChoiceEnd]:
        """What the tokens since the last time, and the end, let be known."""
        columns, has_ended = self._news.take()
        if columns:
            tokens, *details = columns
            for i, token in enumerate(tokens.tolist()):
                one = TokenDetails(*(column[i : i + 1] for column in details))
                yield from self._after(token, one)
        if has_ended:
            yield from self.end()

    def end(self) -> Iterator[TokenEvent | ChoiceEnd]:
        """What the end lets be known: of a choice with no token to write nobody tells it."""
        yield from self._begin()
        self.has_ended = True
        yield from self._release(len(self._held), len(self._held) - self._row.stop_tokens)
        constraint = self._row.constraint
        yield ChoiceEnd(
            self._prompt,
            self._choice,
            self._row.finish_reason or "length",
            self._row.seed,
            self._count,
            self._sealed(self._work, self._row),
            None if constraint is None else constraint.accepts(self._state),
        )

    def _begin(self) -> Iterator[TokenEvent]:
        if not self._began:
            self._began = True
            yield from self._echo()

    def _after(self, token: int, details: TokenDetails) -> Iterator[TokenEvent]:
        yield from self._begin()
        self._count += 1
        self._held.append((token, details))
        sure = len(self._held) - self._stop_length()
        yield from self._release(sure, with_text=sure)

    def _echo(self) -> Iterator[TokenEvent]:
        if self._echoed is None:
            return
        tokens: Sequence[ScoredToken] = ()
        if self._work.read.detail_top is not None:
            tokens = scored_tokens(self._names, read_ids(self._work), self._work.read.details)
        if tokens:
            pieces = pieces_of(self._echoed, self._names, len(tokens))
            for piece, token in zip(pieces, tokens, strict=True):
                yield TokenEvent(self._prompt, self._choice, piece, self._offset, token)
                self._offset += len(piece)
        elif text := text_of(self._echoed, self._names):
            # Also of a text that is nothing when it is normalized.
            yield TokenEvent(self._prompt, self._choice, text, 0, None)
            self._offset = len(text)

    def _release(self, count: int, with_text: int) -> Iterator[TokenEvent]:
        """The first tokens that are held, of which so many have a text."""
        for i, (token, details) in enumerate(self._held[:count]):
            (scored,) = scored_tokens(self._names, [token], [details])
            text = scored.token if i < with_text else ""
            if text and self._row.constraint is not None:
                self._state = self._row.constraint.after_one(self._state, token)
            yield TokenEvent(self._prompt, self._choice, text, self._offset, scored)
            self._offset += len(text)
        del self._held[:count]

    def _stop_length(self) -> int:
        """How many tokens at the end of those that are held could begin a stop string."""
        tokens = tuple(token for token, _ in self._held)
        longest = max(map(len, self._row.stop), default=0)
        for length in range(min(longest, len(tokens)), 0, -1):
            end = tokens[-length:]
            if any(sequence[:length] == end for sequence in self._row.stop):
                return length
        # The end of the text has no text.
        return int(tokens[-1] == EOS_ID)


def text_of(prompt: Prompt, names: Sequence[str]) -> str:
    """A prompt as it is echoed: the text that came, or that of the ids that came."""
    return prompt if isinstance(prompt, str) else "".join(pieces_of(prompt, names, len(prompt)))


def pieces_of(prompt: Prompt, names: Sequence[str], count: int) -> tuple[str, ...]:
    """An echoed prompt, shared out to its tokens.

    A normalized text can have other characters than the one that is echoed: each token stands for
    one of the latter, and the last for what is left of them. An id of no text has none.
    """
    if not isinstance(prompt, str):
        return tuple(names[i] if i >= len(SPECIAL_TOKENS) else "" for i in prompt)
    if not count:
        return ()
    return (*(prompt[i : i + 1] for i in range(count - 1)), prompt[count - 1 :])


def offsets_of(prefix: str, pieces: Sequence[str], written: int, kept: int) -> tuple[int, ...]:
    """Characters of a choice's text before each token of its prompt, and before each written one.

    What ends a text has no characters in it: eos, and the tokens of a stop string.
    """
    inside = accumulate(map(len, pieces[:-1]), initial=0) if pieces else ()
    return (*inside, *(len(prefix) + min(i, kept) for i in range(written)))


def read_ids(work: TextWork) -> npt.NDArray[np.uint16]:
    """The prompt's own tokens: bos is read before them where nothing else was."""
    read = work.read
    return read.tokens if read.after is not None else read.tokens[1:]
