"""Targets of many sources, a token a step, all rows at once: beams, samples, given targets.

N sources, K rows of each (its width), B = N · K, M memory positions, V target vocabulary, T tokens.

Searches stand together whose sources have one padded length, so that every row has the same bits
alone and in company, and whose widths are equal, as the decoder takes them. The K rows of a source
are its beams, or its samples; a target to score has one row, and there the bits of a beam.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from service.bundle.arrays import BoolArray, Float32Array, Float64Array, Ids, Int64Array
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from service.decoding.rows import TokenDetails
from service.decoding.sampling import NOISE_BLOCK, Sampler, SamplingParams, noise_block
from service.errors import ModelFailure
from service.runtime.encoder_decoder import Encoded, EncoderDecoderSession, Tensors

FinishReason: TypeAlias = Literal["stop", "length", "repetition"]

# A hypothesis whose end is a cycle of at most this many tokens goes round in it for ever, …
LONGEST_CYCLE = 16
# … once the cycle has come this often, and over this many tokens. Looked at every so many tokens.
CYCLE_REPEATS = 4
CYCLE_TOKENS = 24
_LOOK_EVERY = 8
_NEVER = (PAD_ID, BOS_ID)  # tokens without text that no target has


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A target that was found, or one that was given."""

    tokens: tuple[int, ...]  # eos is the last one where it ended
    token_logprobs: tuple[float, ...]  # nats
    logprob: float  # nats, summed one by one in order
    finish_reason: FinishReason
    row: int  # which of its source's rows wrote it: for a sample, the choice
    attention: Float32Array | None  # [T, M] where it was asked for

    def score(self, length_penalty: float) -> float:
        """sum logprob / length ** p, eos counted."""
        return self.logprob / math.pow(max(1, len(self.tokens)), length_penalty)


class SearchListener(Protocol):
    """Who is told of a search while it goes on, in the worker's thread."""

    def wrote(self, place: int, tokens: Ids, logprobs: Float32Array) -> None:
        """The target at this place of the answer goes on with these tokens, whatever follows.

        A sample's place is its row; of beams the best is told, which is at place 0.
        """

    def ended(self) -> None:
        """Nothing follows; the search has its hypotheses."""


@dataclass(slots=True, eq=False)
class Search:
    """A source on its way to targets. `params` samples its rows; None searches with beams."""

    source: Ids  # ids, eos the last
    width: int
    max_tokens: int  # of a target, eos counted
    forced: tuple[int, ...] = ()  # how every target begins
    given: bool = False  # `forced` is the whole target: there is nothing to search for
    params: SamplingParams | None = None
    seed: int = 0
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    writes_unknown: bool = False
    detail_top: int | None = None  # alternatives a given token; None for no details
    wants_attention: bool = False
    listener: SearchListener | None = None
    # What the search fills in:
    hypotheses: list[Hypothesis] = field(default_factory=list)
    details: list[TokenDetails] = field(default_factory=list)  # of a given target
    position: int = 0  # tokens that every row has
    trace: list[tuple[Int64Array, Float32Array]] = field(default_factory=list)  # origins, attention
    noise: Float64Array | None = None  # [K, NOISE_BLOCK] of the block it is in
    told: int = 0  # tokens of the best target that the listener knows
    began: float | None = None  # time.monotonic() when its source had been read

    @property
    def rows(self) -> int:
        """Rows that it holds."""
        return self.width

    @property
    def remaining(self) -> int:
        """Tokens to read."""
        return len(self.source)

    @property
    def queued_tokens(self) -> int:
        """What it adds to the queue's bound on tokens."""
        return len(self.source) + self.width * self.max_tokens

    @property
    def first_token_at(self) -> float | None:
        """When its search began; None for a given target."""
        return None if self.given else self.began

    @property
    def written_tokens(self) -> int:
        """Steps that were searched."""
        return self.position

    def best(self) -> list[Hypothesis]:
        """The samples in order, or the best hypotheses: those that ended, then the others."""
        if len(self.hypotheses) == 1:
            return self.hypotheses
        if self.params is not None:
            return sorted(self.hypotheses, key=lambda x: x.row)

        def rank(hypothesis: Hypothesis) -> tuple[bool, float]:
            return hypothesis.finish_reason != "stop", -hypothesis.score(self.length_penalty)

        return sorted(self.hypotheses, key=rank)[: self.num_hypotheses]

    def keep(self, hypothesis: Hypothesis) -> None:
        """Remember a hypothesis; of beams the best alone, since one may end at every step."""
        self.hypotheses.append(hypothesis)
        if self.params is None:
            self.hypotheses = self.best()

    @property
    def floor(self) -> float:
        """What a beam must score to be kept: -inf until as many have ended as are asked for."""
        if len(self.hypotheses) < self.num_hypotheses:
            return -math.inf
        last = self.hypotheses[-1]
        return last.score(self.length_penalty) if last.finish_reason == "stop" else -math.inf


class SearchBatch:
    """Searches of one padded source length and one width."""

    def __init__(self, session: EncoderDecoderSession, width: int) -> None:
        self._session = session
        self._width = width
        self.searches: list[Search] = []
        self._states: Tensors = ()  # [B, …] each
        self._memory: Tensors = ()  # [N, …] each, and room for more
        self._tokens = np.empty(0, np.int64)  # [B] what each row reads next
        self._sums = np.empty((0, width))  # [N, K] nats; -inf for a row that is done or unused
        self._written = np.empty((0, 0), np.uint16)  # [B, T]
        self._picked = np.empty((0, 0), np.float32)  # [B, T] the tokens' log-probabilities
        # Of each search, [N]: its position, its limit as its score's divisor, and its floor.
        self._positions = np.empty(0, np.int64)
        self._reach = np.empty(0)
        self._floors = np.empty(0)
        self._sampler: Sampler | None = None
        self._derived = False

    def add(self, searches: Sequence[Search], encoded: Encoded) -> None:
        """Let sources join that were read together."""
        width, count = self._width, len(searches)
        states = tuple(np.repeat(state, width, axis=0) for state in encoded.states)
        room = max([self._written.shape[1], *(x.max_tokens for x in searches)])
        blank = np.zeros((count * width, room), np.uint16)
        sums = np.full((count, width), -np.inf)
        for row, search in zip(sums, searches, strict=True):
            # Beams start as one, since the others would be its copies; samples start as many.
            row[: 1 if search.params is None else width] = 0.0
        reach = np.array([math.pow(x.max_tokens, x.length_penalty) for x in searches])
        floors = np.full(count, -np.inf)
        positions = np.zeros(count, np.int64)
        start = np.full(count * width, BOS_ID, np.int64)
        if not self.searches:
            self._states, self._memory = states, encoded.memory
            self._tokens, self._sums = start, sums
            self._positions, self._reach, self._floors = positions, reach, floors
            self._written, self._picked = blank, blank.astype(np.float32)
        else:
            self._states = _joined(self._states, states)
            self._memory = tuple(
                _appended(tensor, len(self.searches), coming)
                for tensor, coming in zip(self._memory, encoded.memory, strict=True)
            )
            self._tokens = np.concatenate((self._tokens, start))
            self._sums = np.concatenate((self._sums, sums))
            self._positions = np.concatenate((self._positions, positions))
            self._reach = np.concatenate((self._reach, reach))
            self._floors = np.concatenate((self._floors, floors))
            self._written = np.concatenate((_widened(self._written, room), blank))
            picked = blank.astype(np.float32)
            self._picked = np.concatenate((_widened(self._picked, room), picked))
        self.searches += searches
        self._derived = False

    def remove(self, gone: Sequence[Search]) -> None:
        """Let sources leave."""
        ids = {id(search) for search in gone}
        self._keep([i for i, search in enumerate(self.searches) if id(search) not in ids])

    def run(self) -> tuple[list[Search], list[tuple[Search, ModelFailure]]]:
        """One token for every row; the searches that are done, and those that failed, have left.

        Raises what the session raises; then no row has moved.
        """
        if not self._derived:
            self._derive()
        attention = any(search.wants_attention for search in self.searches)
        count, width = len(self.searches), self._width
        memory = tuple(tensor[:count] for tensor in self._memory)
        step = self._session.step(self._tokens, self._states, memory, attention=attention)
        logprobs = step.logprobs.reshape(count, width, -1)  # [N, K, V]
        finite = np.asarray(np.isfinite(logprobs).all(axis=(1, 2)), np.bool_)  # [N]
        origins = np.tile(np.arange(width), (count, 1))  # [N, K] of each row's new token
        chosen = np.full((count, width), EOS_ID, np.int64)
        for i in self._forced:
            chosen[i] = self.searches[i].forced[self.searches[i].position]
        if self._sampled:
            self._sample(logprobs, chosen)
        before = self._sums
        rows = np.arange(count)[:, None]
        if self._forced or self._sampled:
            self._sums = before + logprobs[rows, origins, chosen]
        endings: list[tuple[int, int, float]] = []
        if self._beams:
            # What is not finite fails below; until then it must not touch the others.
            usable = logprobs if finite.all() else np.where(finite[:, None, None], logprobs, -1.0)
            endings = self._extend_beams(usable, before, origins, chosen)
        if step.attention is not None:
            self._remember_attention(origins, step.attention.reshape(count, width, -1))
        self._record_endings(endings, logprobs)
        self._states = step.states
        self._advance(origins, chosen, logprobs)
        for i in self._listened:
            self._tell(i, self.searches[i])
        return self._finish(finite, logprobs)

    def _derive(self) -> None:
        """Who does what at the next step; it changes when a source joins, leaves or is freed."""
        forced = [search.position < len(search.forced) for search in self.searches]
        self._forced = [i for i, x in enumerate(forced) if x]
        self._limits = np.array([search.max_tokens for search in self.searches])  # [N]
        samples = [search.params is not None for search in self.searches]
        self._watched = np.array(forced, np.bool_) | np.array(samples, np.bool_)  # [N]
        self._listened = [i for i, x in enumerate(self.searches) if x.listener is not None]
        free = [i for i, x in enumerate(forced) if not x]
        self._beams = [i for i in free if self.searches[i].params is None]
        # Of the beams, those that must not write the unknown token.
        self._plain = [j for j, i in enumerate(self._beams) if not self.searches[i].writes_unknown]
        self._sampled = [i for i in free if self.searches[i].params is not None]
        params = [self.searches[i].params for i in self._sampled for _ in range(self._width)]
        self._sampler = None
        if params:
            kept = [x for x in params if x is not None]
            self._sampler = Sampler(kept, self._session.vocab_size)
        self._derived = not self._forced

    # --- choosing -------------------------------------------------------------------------------

    def _sample(self, logprobs: Float32Array, chosen: Int64Array) -> None:
        """Draw a token for every row that samples, into `chosen`."""
        if self._sampler is None:
            return
        uniform = np.concatenate([self._noise(self.searches[i]) for i in self._sampled])
        rows = logprobs[self._sampled].reshape(len(uniform), -1)
        counts = np.empty((0, rows.shape[1]), np.int64)
        drawn = self._sampler.choose(rows, uniform, counts)
        chosen[self._sampled] = drawn.reshape(len(self._sampled), self._width)

    def _noise(self, search: Search) -> Float64Array:
        """One uniform number for each of its rows, [K]: by seed, choice and position alone."""
        block, inside = divmod(search.position, NOISE_BLOCK)
        if search.noise is None or inside == 0:
            blocks = [noise_block(search.seed, choice, block) for choice in range(self._width)]
            search.noise = np.stack(blocks)
        return search.noise[:, inside]

    def _extend_beams(
        self,
        logprobs: Float32Array,
        before: Float64Array,
        origins: Int64Array,
        chosen: Int64Array,
    ) -> list[tuple[int, int, float]]:
        """The K likeliest extensions of each beam search go on, into `origins` and `chosen`.

        Of the 2 K likeliest those that end, and rank among the first K, are endings: (source, the
        row that ended, nats), less those below the floor. Ties go to the lower row and token.
        """
        width = self._width
        everyone = len(self._beams) == len(self.searches)
        beams = slice(None) if everyone else np.array(self._beams)
        scores = logprobs[beams].astype(np.float64)  # [N', K, V]
        scores[..., _NEVER] = -np.inf
        scores[self._plain, :, UNK_ID] = -np.inf
        scores += before[beams][..., None]
        vocab_size = scores.shape[2]
        flat = scores.reshape(len(self._beams), -1)  # [N', K · V]
        rows = np.arange(len(flat))[:, None]
        places = _likeliest(flat, min(2 * width, flat.shape[1]))
        order = np.argsort(-flat[rows, places], axis=1, kind="stable")
        places = places[rows, order]  # [N', 2 K] likeliest first
        totals = flat[rows, places]
        from_row, token = np.divmod(places, vocab_size)
        ends = token == EOS_ID
        goes_on = totals > -np.inf
        ends &= goes_on
        goes_on &= ~ends
        # Those that go on to the front, still likeliest first.
        front = np.argsort(~goes_on, axis=1, kind="stable")[:, :width]
        origins[beams] = from_row[rows, front]
        chosen[beams] = token[rows, front]
        self._sums[beams] = np.where(goes_on[rows, front], totals[rows, front], -np.inf)
        ended, rank = np.nonzero(ends[:, :width])
        sources, nats = np.array(self._beams)[ended], totals[ended, rank]
        kept = ~(self._floors[sources] >= nats / self._divisors(sources))
        ended, rank = ended[kept], rank[kept]
        endings = (sources[kept], from_row[ended, rank], nats[kept])
        return list(zip(*(x.tolist() for x in endings), strict=True))

    def _divisors(self, sources: Int64Array) -> Float64Array:
        """What the scores of targets that end here divide by."""
        # By Python's pow, as in a hypothesis's score: NumPy's may differ from it in the last bit.
        lengths = (self._positions[sources] + 1).tolist()
        penalties = [self.searches[i].length_penalty for i in sources.tolist()]
        return np.array(list(map(math.pow, lengths, penalties)))

    # --- moving on ------------------------------------------------------------------------------

    def _remember_attention(self, origins: Int64Array, attention: Float32Array) -> None:
        for i, search in enumerate(self.searches):
            if search.wants_attention:
                # Copies: a view would keep the weights of all sources.
                search.trace.append((origins[i].copy(), attention[i].copy()))

    def _record_endings(
        self,
        endings: Sequence[tuple[int, int, float]],
        logprobs: Float32Array,
    ) -> None:
        """Keep the beams that end with this step."""
        for i, row, total in endings:
            search = self.searches[i]
            # An ending of the same step may have raised the floor.
            divisor = math.pow(search.position + 1, search.length_penalty)
            if self._floors[i] >= total / divisor:
                continue
            place = i * self._width + row
            tokens = (*self._written[place, : search.position].tolist(), EOS_ID)
            last = float(logprobs[i, row, EOS_ID])
            picked = (*self._picked[place, : search.position].tolist(), last)
            attention = _traced(search, row, len(search.trace) - 1)
            search.keep(Hypothesis(tokens, picked, total, "stop", row, attention))
            self._floors[i] = search.floor

    def _advance(self, origins: Int64Array, chosen: Int64Array, logprobs: Float32Array) -> None:
        """Let every row follow its origin and take its token."""
        count, width = origins.shape
        picked = logprobs[np.arange(count)[:, None], origins, chosen]  # [N, K]
        if width > 1 and self._beams:
            index = (np.arange(count)[:, None] * width + origins).ravel()  # [B]
            self._states = tuple(state.take(index, axis=0) for state in self._states)
            self._written = self._written.take(index, axis=0)
            self._picked = self._picked.take(index, axis=0)
        self._tokens = chosen.ravel()
        positions = np.repeat(self._positions, width)
        rows = np.arange(count * width)
        self._written[rows, positions] = self._tokens
        self._picked[rows, positions] = picked.ravel()
        self._positions = self._positions + 1
        for search, position in zip(self.searches, self._positions.tolist(), strict=True):
            search.position = position

    def _tell(self, i: int, search: Search) -> None:
        """Tell the listener of a search what can no longer change."""
        if search.listener is None:
            return
        begin = i * self._width
        live = begin + np.flatnonzero(self._sums[i] > -np.inf)
        if search.params is not None:
            last = slice(search.position - 1, search.position)
            for row in live.tolist():
                tokens, logprobs = self._written[row, last], self._picked[row, last]
                search.listener.wrote(row - begin, tokens, logprobs)
        elif len(live):
            # Whatever is best in the end begins with what all that can still be have in common.
            row, first, end = int(live[0]), search.told, search.position
            written = self._written[live, first:end]
            agreed = (written == written[0]).all(axis=0)
            for hypothesis in search.hypotheses:
                other = np.full(end - first, EOS_ID, np.uint16)
                own = hypothesis.tokens[first:end]
                other[: len(own)] = own
                agreed[len(own) :] = False
                agreed &= written[0] == other
            search.told += int(agreed.argmin()) if not agreed.all() else end - first
            if search.told > first:
                new = slice(first, search.told)
                tokens, logprobs = self._written[row, new], self._picked[row, new]
                search.listener.wrote(0, tokens, logprobs)

    def _finish(
        self, finite: BoolArray, logprobs: Float32Array
    ) -> tuple[list[Search], list[tuple[Search, ModelFailure]]]:
        """Let the searches leave that are done or have failed."""
        done: list[Search] = []
        failed: list[tuple[Search, ModelFailure]] = []
        left = np.zeros(len(self.searches), np.bool_)
        best = self._sums.max(axis=1)  # [N]
        for i in np.flatnonzero(self._may_be_done(finite, best)).tolist():
            search = self.searches[i]
            if not finite[i]:
                error = ModelFailure("the model gave a log-probability that is not finite")
                failed.append((search, error))
                left[i] = True
            elif self._is_done(i, search, logprobs[i], float(best[i])):
                done.append(search)
                left[i] = True
        self._keep(np.flatnonzero(~left).tolist())
        for search in done:
            if search.listener is not None:
                search.listener.ended()
        return done, failed

    def _may_be_done(self, finite: BoolArray, best: Float64Array) -> BoolArray:
        """The searches [N] that have to be looked at one by one after this step: few of many."""
        positions = self._positions
        looks = (positions >= CYCLE_TOKENS) & (positions % _LOOK_EVERY == 0)
        # One beam is greedy: its first ending is its last.
        beaten = (self._floors >= best / self._reach) | (self._width == 1)
        beaten &= self._floors > -np.inf
        some: BoolArray = (
            ~finite
            | self._watched
            | looks
            | beaten
            | (positions >= self._limits)
            | (best == -np.inf)
        )
        return some

    def _is_done(self, i: int, search: Search, logprobs: Float32Array, best: float) -> bool:
        """Whether nothing is left to find; `best` are the nats of its likeliest live row."""
        if search.position <= len(search.forced):
            return self._follow(i, search, logprobs)
        if search.position % _LOOK_EVERY == 0 and search.position >= CYCLE_TOKENS:
            self._end_rows(i, self._going_round(i, search), "repetition")
        if search.params is not None:
            self._end_rows(i, np.flatnonzero(self._row_tokens(i) == EOS_ID), "stop")
        if search.position >= search.max_tokens:
            self._end_rows(i, np.arange(self._width), "length")
            return True
        if search.params is not None or search.position % _LOOK_EVERY == 0:
            best = float(self._sums[i].max())
        if best == -math.inf:
            return True
        return search.params is None and self._beaten(i, best)

    def _follow(self, i: int, search: Search, logprobs: Float32Array) -> bool:
        """After a given token: count it, and see whether it was the last."""
        self._derived = False
        if search.detail_top is not None:
            target = np.array([search.forced[search.position - 1]])
            search.details.append(TokenDetails.of(logprobs[:1], target, search.detail_top))
        if search.given and search.position == len(search.forced):
            self._end_rows(i, np.arange(1), "stop")
            return True
        if search.position >= search.max_tokens:
            self._end_rows(i, np.arange(self._width), "length")
            return True
        return False

    def _row_tokens(self, i: int) -> Int64Array:
        return self._tokens[i * self._width : (i + 1) * self._width]

    def _end_rows(self, i: int, rows: Int64Array, reason: FinishReason) -> None:
        """Make hypotheses of live rows, and let them write no more."""
        search = self.searches[i]
        for row in rows.tolist():
            total = float(self._sums[i, row])
            if total == -math.inf:
                continue
            place = i * self._width + row
            hypothesis = Hypothesis(
                tuple(self._written[place, : search.position].tolist()),
                tuple(self._picked[place, : search.position].tolist()),
                total,
                reason,
                row,
                self._attention_of(search, row),
            )
            search.keep(hypothesis)
            self._floors[i] = search.floor
            self._sums[i, row] = -math.inf

    def _attention_of(self, search: Search, row: int) -> Float32Array | None:
        """Weights behind the tokens of a row that has taken its latest one."""
        if not search.trace:
            return None
        origins, _ = search.trace[-1]
        return _traced(search, int(origins[row]), len(search.trace) - 1)

    def _going_round(self, i: int, search: Search) -> Int64Array:
        """The rows that end in a cycle."""
        rows = slice(i * self._width, (i + 1) * self._width)
        written = self._written[rows, : search.position]
        found = np.zeros(self._width, np.bool_)
        for cycle in range(1, LONGEST_CYCLE + 1):
            span = max(CYCLE_REPEATS * cycle, CYCLE_TOKENS)
            if span <= search.position:
                tail = written[:, -span:]
                found |= (tail[:, cycle:] == tail[:, :-cycle]).all(axis=1)
        return np.flatnonzero(found)

    def _beaten(self, i: int, best: float) -> bool:
        """Whether no live beam can be among the hypotheses that are asked for.

        As many have ended as are asked for, and none of them is worse than the best live beam
        would be if it lost nothing more up to its limit. To stop as soon as K have ended, as many
        do, is wrong where the model is sure: then what ends early is what it takes for impossible,
        and five such endings stood in for a target with probability one.
        """
        # One beam is greedy: it ends where the end is the likeliest token.
        reach = -math.inf if self._width == 1 else best / float(self._reach[i])
        return -math.inf < float(self._floors[i]) >= reach

    def _keep(self, places: list[int]) -> None:
        """Only the sources at these places stay; the last ones move to where others have left.

        So what is kept for a source, and large, is moved only where it must be.
        """
        if len(places) == len(self.searches):
            return
        index = np.arange(len(places))
        stays = np.array(places, np.int64)
        left = np.setdiff1d(index, stays)
        index[left] = stays[stays >= len(places)]
        for tensor in self._memory:
            tensor[left] = tensor[index[left]]
        rows = (index[:, None] * self._width + np.arange(self._width)).ravel()
        self._states = tuple(state.take(rows, axis=0) for state in self._states)
        self._tokens, self._sums = self._tokens[rows], self._sums[index]
        self._positions, self._reach = self._positions[index], self._reach[index]
        self._floors = self._floors[index]
        self._written, self._picked = self._written[rows], self._picked[rows]
        self.searches = [self.searches[i] for i in index.tolist()]
        self._derived = False


def _likeliest(scores: Float64Array, count: int) -> Int64Array:
    """Places of the `count` largest of each row, [N, count], first to last; of equals the first."""
    least = np.partition(scores, -count, axis=1)[:, -count, None]  # [N, 1] that is among them
    chosen = scores >= least
    if np.count_nonzero(chosen) > chosen.shape[0] * count:
        above = scores > least
        level = chosen & ~above
        spare = count - np.count_nonzero(above, axis=1)[:, None]
        chosen = above | (level & (np.cumsum(level, axis=1) <= spare))
    return np.nonzero(chosen)[1].reshape(len(scores), count)


def _traced(search: Search, row: int, step: int) -> Float32Array | None:
    """Attention [T, M] behind the tokens of a row, from its latest step back to the first."""
    if not search.trace:
        return None
    weights = [search.trace[step][1][row]]
    for origins, attention in reversed(search.trace[:step]):
        row = int(origins[row])
        weights.append(attention[row])
    return np.stack(weights[::-1])


def _joined(before: Tensors, coming: Tensors) -> Tensors:
    return tuple(np.concatenate(pair) for pair in zip(before, coming, strict=True))


def _appended(tensor: Float32Array, count: int, coming: Float32Array) -> Float32Array:
    """The first `count` of the tensor, then what comes: in its place where there is room."""
    needed = count + len(coming)
    if needed > len(tensor):
        wider = np.empty((max(needed, 2 * count), *tensor.shape[1:]), tensor.dtype)
        wider[:count] = tensor[:count]
        tensor = wider
    tensor[count:needed] = coming
    return tensor


def _widened(array: npt.NDArray[np.generic], columns: int) -> npt.NDArray[np.generic]:
    return np.pad(array, ((0, 0), (0, columns - array.shape[1])))
