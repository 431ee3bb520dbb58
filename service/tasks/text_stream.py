"""Streaming a choice token by token: holds back what may become a stop string; token offsets."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np

from service.bundle.arrays import Ids
from service.bundle.text import EOS_ID, SPECIAL_TOKENS
from service.decoding.rows import TokenDetails, WriteRow
from service.scheduling.feed import Feed, News
from service.scheduling.language_model import TextWork
from service.tasks.scored_tokens import ScoredToken, scored_tokens
from service.tasks.values import ChoiceEnd, Prompt, TokenEvent

_Told: TypeAlias = tuple[int, TokenDetails]  # a token that was written


class StreamedChoice:
    """Turns the tokens of one choice's row into the events of its stream."""

    def __init__(  # noqa: PLR0917 (the parts of a choice)
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
        self._held: list[_Told] = []  # tokens that may begin a stop string
        self._offset = 0
        self._began = False
        self._count = 0
        self._state = 0  # the constraint's state after the text, if there is a constraint
        self.has_ended = False
        row.tell(self)

    def wrote(self, token: int, details: TokenDetails) -> None:
        """Called by the worker for each token."""
        if self._news.add((np.array([token], np.uint16), *details.columns)):
            self._feed.put(self)

    def ended(self) -> None:
        """Called by the worker after the last token."""
        if self._news.end():
            self._feed.put(self)

    def events(self) -> Iterator[TokenEvent | ChoiceEnd]:
        """The events that the tokens since the last call allow, and the end."""
        columns, has_ended = self._news.take()
        if columns:
            tokens, *details = columns
            for i, token in enumerate(tokens.tolist()):
                one = TokenDetails(*(column[i : i + 1] for column in details))
                yield from self._after(token, one)
        if has_ended:
            yield from self.end()

    def end(self) -> Iterator[TokenEvent | ChoiceEnd]:
        """The last events. For a choice without tokens, the worker does not call `ended`."""
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
            # Also for a text that becomes empty when it is normalized.
            yield TokenEvent(self._prompt, self._choice, text, 0, None)
            self._offset = len(text)

    def _release(self, count: int, with_text: int) -> Iterator[TokenEvent]:
        """Events for the first `count` held tokens; only the first `with_text` have a text."""
        for i, (token, details) in enumerate(self._held[:count]):
            (scored,) = scored_tokens(self._names, [token], [details])
            text = scored.token if i < with_text else ""
            if text and self._row.constraint is not None:
                self._state = self._row.constraint.after_one(self._state, token)
            yield TokenEvent(self._prompt, self._choice, text, self._offset, scored)
            self._offset += len(text)
        del self._held[:count]

    def _stop_length(self) -> int:
        """The number of tokens at the end of the held ones that may begin a stop string."""
        tokens = tuple(token for token, _ in self._held)
        longest = max(map(len, self._row.stop), default=0)
        for length in range(min(longest, len(tokens)), 0, -1):
            end = tokens[-length:]
            if any(sequence[:length] == end for sequence in self._row.stop):
                return length
        # Eos is held as well, since it has no text.
        return int(tokens[-1] == EOS_ID)


def text_of(prompt: Prompt, names: Sequence[str]) -> str:
    """The echo of a prompt: the text that was sent, or the text of the ids that were sent."""
    return prompt if isinstance(prompt, str) else "".join(pieces_of(prompt, names, len(prompt)))


def pieces_of(prompt: Prompt, names: Sequence[str], count: int) -> tuple[str, ...]:
    """An echoed prompt, divided among its tokens.

    The normalized text may have other characters than the echoed one. Each token gets one character
    of the echo, and the last token the rest. An id without a text gets none.
    """
    if not isinstance(prompt, str):
        return tuple(names[i] if i >= len(SPECIAL_TOKENS) else "" for i in prompt)
    if not count:
        return ()
    return (*(prompt[i : i + 1] for i in range(count - 1)), prompt[count - 1 :])


def offsets_of(prefix: str, pieces: Sequence[str], written: int, kept: int) -> tuple[int, ...]:
    """Characters of a choice's text before each token of its prompt, and before each written one.

    Tokens that end a text have no characters in it: eos, and the tokens of a stop string.
    """
    inside = accumulate(map(len, pieces[:-1]), initial=0) if pieces else ()
    return (*inside, *(len(prefix) + min(i, kept) for i in range(written)))


def read_ids(work: TextWork) -> Ids:
    """The prompt's own tokens, without the bos that is read first unless a state is given."""
    read = work.read
    return read.tokens if read.after is not None else read.tokens[1:]
