"""The batch of rows that write: each step samples one token for every row and checks stop strings.

B batch, V vocabulary. Everything that differs between rows is in arrays over rows, so that a step
costs about the same for one row and for many; only rows with details or stop strings cost more. A
row joins at the end of the arrays; when one leaves, the last row takes its place. A row may read
its prompt here before it writes, one token a step: next to rows that write, one more row costs a
third of a step of its own. None of this changes any result.
"""

import math
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import Float32Array, Int64Array
from service.bundle.text import EOS_ID, PAD_ID
from service.decoding.constraints import Constraint, by_constraint
from service.decoding.rows import Continuation, ReadRow, TokenDetails, WriteRow
from service.decoding.sampling import NOISE_BLOCK, Mask, Room, Sampler, noise_block
from service.errors import ModelFailure
from service.runtime.language_model import LanguageModelSession, States


class WriteBatch:
    """Rows that write: sample a token a row, let finished rows leave, run the model on the rest."""

    def __init__(self, session: LanguageModelSession, capacity: int) -> None:
        self._session = session
        self.rows: list[WriteRow] = []
        self._prompts: list[ReadRow] = []  # which rows read in these steps
        self._fed = 0  # tokens of them that each has read
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        self._stepper = self._session.stepper(capacity)
        # Tokens that each row's choice has, and may have, including those drawn before it joined.
        self._written = np.zeros(capacity, np.int64)
        self._max_tokens = np.zeros(capacity, np.int64)
        # For the block of positions that each row is in:
        self._noise = np.zeros((capacity, NOISE_BLOCK))
        self._block_tokens = np.zeros((capacity, NOISE_BLOCK), np.uint16)
        # How often a row has each token; allocated when the first row asks for penalties.
        self._counts = np.zeros((capacity, 0), np.int64)
        # The automaton's state after the text of each row that has a constraint.
        self._state = np.zeros(capacity, np.int64)
        # Where each row's block begins in a flat view: a single index is faster to take and put.
        self._block_begin = np.arange(capacity) * NOISE_BLOCK
        self._all_noise = self._noise.reshape(-1)
        self._all_tokens = self._block_tokens.reshape(-1)
        # One room for all samplers: with a vocabulary of 16,000, that of 64 rows has 17 MB.
        self._room = Room(capacity, self._session.vocab_size)
        self._plain_samplers: dict[int, Sampler] = {}  # by number of rows
        self._derived = False

    def _feed(self, places: list[int]) -> None:
        """Lay out what the rows at these places read, up to where the first of them has read it."""
        self._prompts = [x for i in places if (x := self.rows[i].prompt) is not None]
        self._feeding = np.array(places, np.int64)
        self._fed = 0
        self._feed_steps = min((x.remaining for x in self._prompts), default=0)
        self._advance[self._feeding] = 0
        pieces = [x.tokens[x.position : x.position + self._feed_steps] for x in self._prompts]
        # A row of these for each step.
        self._fed_tokens = np.array(pieces, np.int64).T if pieces else self._feeding

    def _note_fed(self) -> None:
        """Let the prompts know how far they have been read."""
        for prompt in self._prompts:
            prompt.position += self._fed
        self._prompts = []

    def _derive(self) -> None:
        """Compute what depends on the rows and their places; it holds until they change."""
        self._note_fed()
        rows = len(self.rows)
        self._sampler = self._sampler_of_rows()
        # Rows whose tokens must be looked at one by one (details, stop strings, constraints).
        self._watching: list[int] = []
        self._detailed: list[tuple[int, int]] = []
        constrained: list[tuple[int, Constraint]] = []
        feeding: list[int] = []
        now = time.monotonic()
        for i, row in enumerate(self.rows):
            if row.prompt is not None:
                feeding.append(i)
                continue
            if row.began is None:
                row.began = now
            if not row.is_watched:
                continue
            if row.stop:
                self._watching.append(i)
            if row.detail_top is not None:
                self._detailed.append((i, row.detail_top))
            if row.constraint is not None:
                constrained.append((i, row.constraint))
        self._constrained = by_constraint(constrained) if constrained else []
        self._advance = np.ones(rows, np.int64)
        self._feed(feeding)
        # Whether a step must look at single rows.
        self._looks = bool(self._watching or self._detailed or self._constrained)
        adjusted = self._sampler.adjusted
        self._counting = adjusted[self._advance[adjusted] == 1] if len(adjusted) else adjusted
        written = self._written[:rows]
        self._logprobs = self._stepper.logprobs[:rows]
        self._next_tokens = self._stepper.tokens[:rows]
        self._now_written = written
        inside = written % NOISE_BLOCK
        self._cursor = self._block_begin[:rows] + inside
        # Steps until some row reaches its limit, or the end of its block.
        left = self._max_tokens[:rows] - written
        self._until_limit = int(left.min())
        self._until_turn = NOISE_BLOCK - int(inside.max())
        self._derived = True

    def _sampler_of_rows(self) -> Sampler:
        """A sampler for the rows; while all of them are plain, only their number matters."""
        is_plain = all(row.is_plain for row in self.rows)
        known = self._plain_samplers.get(len(self.rows)) if is_plain else None
        if known is None:
            params = [row.params for row in self.rows]
            known = Sampler(params, self._session.vocab_size, self._room)
            if is_plain:
                self._plain_samplers[len(self.rows)] = known
        return known

    def add(self, row: WriteRow, start: Continuation) -> None:
        """Add a row, which joins before the next step."""
        self._add(row, start.states, start.logprobs)

    def add_reading(self, row: WriteRow, prompt: ReadRow) -> None:
        """Let a row join that first reads the rest of its prompt."""
        row.prompt = prompt
        # Nobody looks at what is drawn from these.
        self._add(row, prompt.start, np.zeros(self._session.vocab_size, np.float32))

    def _add(self, row: WriteRow, states: States | None, logprobs: Float32Array) -> None:
        place = len(self.rows)
        if place == self._stepper.capacity:
            self._grow()
        for i, state in enumerate(self._stepper.states):
            state[place] = 0.0 if states is None else states[i][0]
        self._stepper.logprobs[place] = logprobs
        self._written[place] = row.drawn
        self._max_tokens[place] = row.drawn + row.max_tokens
        self._state[place] = 0
        self._noise[place] = noise_block(row.seed, row.choice, row.drawn // NOISE_BLOCK)
        if row.params.adjusts and not self._counts.size:
            shape = (self._stepper.capacity, self._session.vocab_size)
            self._counts = np.zeros(shape, np.int64)
        self._counts[place] = 0
        self.rows.append(row)
        self._derived = False

    def remove(self, gone: Sequence[WriteRow]) -> None:
        """Remove rows; they keep the tokens that they have."""
        ids = {id(row) for row in gone}
        self._leave([i for i, row in enumerate(self.rows) if id(row) in ids])

    def sample(self) -> list[WriteRow]:
        """Sample the next token of every row; return the rows that are done, which have left."""
        if not self._derived:
            self._derive()
        adjusted = self._sampler.adjusted
        chosen = self._sampler.choose(  # [B]
            self._logprobs,
            self._all_noise.take(self._cursor),
            self._counts[adjusted] if len(adjusted) else self._counts,
            self._masks() if self._constrained else (),
        )
        self._all_tokens[self._cursor] = chosen
        if self._feed_steps:
            chosen[self._feeding] = self._fed_tokens[self._fed]
            self._fed += 1
        self._next_tokens[:] = chosen
        self._now_written += self._advance
        if len(self._counting):
            self._counts[self._counting, chosen[self._counting]] += 1
        return self._end(chosen)

    def _masks(self) -> list[Mask]:
        """The tokens that constrained rows may have."""
        left = self._max_tokens - self._written
        return [
            (places, constraint.allowed(self._state[places], left[places]))
            for constraint, places in self._constrained
        ]

    def _end(self, chosen: Int64Array) -> list[WriteRow]:
        """Let the rows that end with these tokens leave."""
        self._cursor += self._advance
        self._until_limit -= 1
        self._until_turn -= 1
        can_end = self._looks or self._until_limit <= 0 or not self._until_turn
        if not can_end and EOS_ID not in chosen.tolist():
            return []  # what most steps are
        ended = chosen == EOS_ID
        if self._detailed:
            self._add_details(chosen)
        for constraint, places in self._constrained:
            self._state[places] = constraint.after(self._state[places], chosen[places])
            ended[places] |= constraint.is_closed[self._state[places]]
        for i in self._watching:
            ended[i] |= self._watch(i, int(chosen[i]))
        ended[self._feeding] = False
        if self._until_limit <= 0:
            ended |= self._now_written >= self._max_tokens[: len(self.rows)]
        if self._until_turn == 0:
            self._turn()
        if not ended.any():
            return []
        done = np.flatnonzero(ended).tolist()
        finished = [self._finish(i, int(chosen[i])) for i in done]
        self._leave(done)
        return finished

    def run(self) -> list[tuple[WriteRow, ModelFailure]]:
        """Run the model on every row's last token; the rows that failed have left.

        Raises what the session raises; then no row has moved.
        """
        rows = len(self.rows)
        self._stepper.step(rows)
        logprobs = self._stepper.logprobs[:rows]
        if self._feed_steps and self._fed == self._feed_steps:
            self._end_prompts()
        # A sum is finite if all are, short of an overflow, and takes half the time of looking.
        if math.isfinite(np.add.reduce(logprobs, axis=None)):
            return []
        finite = np.isfinite(logprobs)
        if finite.all():
            return []
        bad = np.flatnonzero(~finite.all(axis=1)).tolist()
        error = ModelFailure("the model gave a log-probability that is not finite")
        failed = [(self.rows[i], error) for i in bad]
        self._leave(bad)
        return failed

    def _end_prompts(self) -> None:
        """Rows that have read their prompts start to write."""
        self._note_fed()
        self._derived = False
        for i, row in enumerate(self.rows):
            if row.prompt is not None and not row.prompt.remaining:
                states = tuple(state[i : i + 1].copy() for state in self._stepper.states)
                logprobs = self._stepper.logprobs[i].copy()
                continuation = Continuation(states, logprobs)
                if row.prompt.remember is None:
                    row.prompt.continuation = continuation
                else:
                    row.prompt.remember(row.prompt.tokens, continuation)
                row.prompt = None

    def _add_details(self, chosen: Int64Array) -> None:
        """Give rows with details or a listener the details of their tokens."""
        places = [place for place, _ in self._detailed]
        most = max(top for _, top in self._detailed)
        details = TokenDetails.of(self._stepper.logprobs[places], chosen[places], most)
        for index, (place, top) in enumerate(self._detailed):
            row, own = self.rows[place], details.of_one(index, top)
            if row.listener is None:
                row.details.append(own)
            else:
                row.listener.wrote(int(chosen[place]), own)

    def _watch(self, place: int, token: int) -> bool:
        """Add a token to a row's tail; whether a stop string or eos ends its text."""
        row = self.rows[place]
        row.tail = (*row.tail, token)[-max(map(len, row.stop)) :]
        if token == EOS_ID:
            return True
        for sequence in row.stop:
            if row.tail[-len(sequence) :] == sequence:
                row.stop_tokens = len(sequence)
                return True
        return False

    def _finish(self, place: int, token: int) -> WriteRow:
        """Set why a row ended."""
        row = self.rows[place]
        if token == EOS_ID:
            row.stop_tokens = 1
        closed = row.constraint is not None and row.constraint.is_closed[self._state[place]]
        row.finish_reason = "stop" if row.stop_tokens or closed else "length"
        if row.wants_continuation and token != EOS_ID:
            row.closing = self._closing_read(place, token)
        return row

    def _closing_read(self, place: int, token: int) -> ReadRow:
        """A read of a row's last token, which was drawn here but will not be read here."""
        states = tuple(state[place : place + 1].copy() for state in self._stepper.states)
        last = np.array([token], np.uint16)
        return ReadRow(last, np.full_like(last, PAD_ID), start=states, wants_continuation=True)

    def _turn(self) -> None:
        """Give rows their full blocks of tokens, and draw the noise of their next blocks."""
        for i, row in enumerate(self.rows):
            block, inside = divmod(int(self._written[i]), NOISE_BLOCK)
            if not inside and self._hand_over(i):
                self._noise[i] = noise_block(row.seed, row.choice, block)
        self._derived = False

    def _hand_over(self, place: int) -> int:
        """Append the tokens of its block that a row still lacks; returns how many."""
        row = self.rows[place]
        before = row.drawn + len(row.tokens)
        count = int(self._written[place]) - before
        begin = before % NOISE_BLOCK
        row.tokens += self._block_tokens[place, begin : begin + count].tolist()
        return count

    def _leave(self, places: list[int]) -> None:
        """Remove the rows at these ascending places; the last rows take their places."""
        if not places:
            return
        for i in places:
            self._hand_over(i)
        for i in reversed(places):
            last = len(self.rows) - 1
            if i < last:
                self._move(last, i)
                self.rows[i] = self.rows[last]
            self.rows.pop()
        self._derived = False

    def _arrays(self) -> list[npt.NDArray[np.generic]]:
        """Every array over rows that outlives a step."""
        stepper = self._stepper
        return [
            *stepper.states,
            stepper.tokens,
            stepper.logprobs,
            self._written,
            self._max_tokens,
            self._state,
            self._noise,
            self._block_tokens,
            self._counts,
        ]

    def _move(self, source: int, target: int) -> None:
        for array in self._arrays():
            array[target] = array[source]

    def _grow(self) -> None:
        """Double the capacity: a single job may be wider than the batch."""
        rows = len(self.rows)
        before = self._arrays()
        counts = np.zeros((2 * self._stepper.capacity, self._counts.shape[1]), np.int64)
        self._allocate(2 * self._stepper.capacity)
        self._counts = counts
        for new, old in zip(self._arrays(), before, strict=True):
            new[:rows] = old[:rows]
