"""Three ways to choose the next tokens of searches: given targets, samples, and beam search.

N' sources of a batch's N, K rows of each (its width), V target vocabulary, T tokens.
"""

import math
from typing import Protocol

import numpy as np

from service.bundle.arrays import BoolArray, Float64Array, Int64Array
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from service.decoding.banks import shared_out
from service.decoding.rows import TokenDetails
from service.decoding.sampling import NOISE_BLOCK, Mask, Sampler, noise_block
from service.decoding.search import Hypothesis, Search
from service.decoding.search_rows import Move, SearchRows

_NEVER = (PAD_ID, BOS_ID)  # tokens without text that no target has


class Chooser(Protocol):
    """Chooses the next tokens of some searches of a batch, and decides when they are done."""

    def choose(self, move: Move) -> None:
        """Choose each row's origin and token, into `move`, and add to the rows' sums."""

    def report(self) -> None:
        """After the step: report the tokens that can no longer change to the listeners."""

    def done(self) -> Int64Array:
        """After the step: end rows; return the places of the searches that are done."""


class GivenTargets:
    """The next token is given: a target to score, or the prefix of a target."""

    def __init__(self, rows: SearchRows, places: Int64Array) -> None:
        self._rows = rows
        self._places = places

    def choose(self, move: Move) -> None:
        """Take the given token in every row."""
        searches = [self._rows.searches[place] for place in self._places.tolist()]
        tokens = np.array([search.forced[search.position] for search in searches])  # [N']
        move.tokens[self._places] = tokens[:, None]
        self._rows.sums[self._places] += move.logprobs[self._places, :, tokens]
        for place, search, token in zip(self._places.tolist(), searches, tokens, strict=True):
            if search.detail_top is not None:
                logprobs, target = move.logprobs[place, :1], np.array([token])
                search.details.append(TokenDetails.of(logprobs, target, search.detail_top))

    def report(self) -> None:
        """Report the token: a given token cannot change."""
        for place in _listened(self._rows, self._places):
            _report_rows(self._rows, place)
            search = self._rows.searches[place]
            search.reported = search.position

    def done(self) -> Int64Array:
        """The searches at the end of their given target, or at their limit after the prefix."""
        done = [place for place in self._places.tolist() if self._is_done(place)]
        return np.array(done, np.int64)

    def _is_done(self, place: int) -> bool:
        rows, search = self._rows, self._rows.searches[place]
        if search.given and search.position == len(search.forced):
            rows.end(place, np.arange(1), "stop")
            return True
        if search.position >= search.max_tokens:
            rows.end(place, np.arange(rows.width), "length")
            return True
        return False


class Samples:
    """The next token of every row is sampled."""

    def __init__(self, rows: SearchRows, places: Int64Array, vocab_size: int) -> None:
        self._rows = rows
        self._places = places
        self._index = _index(rows, places)
        self._listened = _listened(rows, places)
        self._constrained = rows.constrained(places.tolist())
        params = [rows.searches[x].params for x in places.tolist() for _ in range(rows.width)]
        self._sampler = Sampler([x for x in params if x is not None], vocab_size)

    def choose(self, move: Move) -> None:
        """Sample with the noise of (seed, choice, position)."""
        rows, index = self._rows, self._index
        noise = [self._noise(rows.searches[place]) for place in self._places.tolist()]
        logprobs = move.logprobs[index]  # [N', K, V]
        count, width, vocab_size = logprobs.shape
        drawn = self._sampler.choose(
            logprobs.reshape(count * width, vocab_size),
            np.concatenate(noise),
            np.empty((0, vocab_size), np.int64),
            self._masks() if self._constrained else (),
        )
        tokens = drawn.reshape(count, width)
        move.tokens[index] = tokens
        rows.sums[index] += np.take_along_axis(logprobs, tokens[..., None], axis=2)[..., 0]

    def report(self) -> None:
        """Report the token: a sampled token cannot change."""
        for place in self._listened:
            _report_rows(self._rows, place)

    def done(self) -> Int64Array:
        """The searches in which every row has ended."""
        rows = self._rows
        _end_going_round(rows, self._places, self._index)
        ends = rows.tokens.reshape(-1, rows.width) == EOS_ID  # [N, K]
        for place in self._places[ends.any(axis=1)[self._index]].tolist():
            rows.end(place, np.flatnonzero(ends[place]), "stop")
        _end_at_limit(rows, self._places, self._index)
        has_ended = (rows.sums[self._index] == -np.inf).all(axis=1)
        return np.asarray(self._places[has_ended])

    def _masks(self) -> list[Mask]:
        """The tokens that constrained rows may have."""
        width = self._rows.width
        masks = []
        for constraint, index in self._constrained:
            allowed = self._rows.allowed(constraint, self._places[index])  # [N', K, V]
            rows = index[:, None] * width + np.arange(width)
            masks.append((rows.ravel(), allowed.reshape(rows.size, -1)))
        return masks

    def _noise(self, search: Search) -> Float64Array:
        """One uniform number for each of its rows, [K]: by seed, choice and position alone."""
        block, inside = divmod(search.position, NOISE_BLOCK)
        if search.noise is None or inside == 0:
            blocks = [noise_block(search.seed, choice, block) for choice in range(search.width)]
            search.noise = np.stack(blocks)
        return search.noise[:, inside]


class Beams:
    """Beam search: the likeliest extensions of all rows of a source continue."""

    def __init__(self, rows: SearchRows, places: Int64Array) -> None:
        self._rows = rows
        self._places = places
        self._index = _index(rows, places)
        self._listened = _listened(rows, places)
        self._constrained = rows.constrained(places.tolist())
        # Searches that must not write the unknown token.
        self._plain = np.flatnonzero(~rows.writes_unknown[self._index])
        self._is_mean = bool((rows.penalties[self._index] == 1.0).all())

    def choose(self, move: Move) -> None:
        """Of the 2 K likeliest extensions, the K likeliest that do not end continue.

        Those that end, and rank among the first K, become hypotheses, except below the floor. Ties
        go to the lower row and token.
        """
        rows, width = self._rows, self._rows.width
        scores = self._scores(move)  # [N', K · V]
        each = np.arange(len(scores))[:, None]  # [N', 1]
        likeliest = _likeliest(scores, min(2 * width, scores.shape[1]))
        order = np.argsort(-scores[each, likeliest], axis=1, kind="stable")
        likeliest = likeliest[each, order]  # [N', 2 K] likeliest first
        self._share_out(scores, likeliest)
        totals = scores[each, likeliest]
        from_row, token = np.divmod(likeliest, move.logprobs.shape[2])
        goes_on = totals > -np.inf
        ends = (token == EOS_ID) & goes_on
        goes_on &= ~ends
        # Move those that continue to the front, still likeliest first.
        front = np.argsort(~goes_on, axis=1, kind="stable")[:, :width]
        move.origins[self._index] = from_row[each, front]
        move.tokens[self._index] = token[each, front]
        rows.sums[self._index] = np.where(goes_on[each, front], totals[each, front], -np.inf)
        self._note_endings(np.where(ends[:, :width], totals[:, :width], -np.inf))
        ended, rank = np.nonzero(ends[:, :width])
        self._end(move, self._places[ended], from_row[ended, rank], totals[ended, rank])

    def report(self) -> None:
        """Report the common prefix of all candidates: the best one will begin with it."""
        rows = self._rows
        for place in self._listened:
            search, live = rows.searches[place], rows.live(place)
            if not len(live) or search.listener is None:
                continue
            first, end = search.reported, search.position
            written = rows.written[rows.rows_of(place), first:end][live]
            agreed = (written == written[0]).all(axis=0)
            for hypothesis in search.hypotheses:
                other = np.full(end - first, EOS_ID, np.uint16)
                own = hypothesis.tokens[first:end]
                other[: len(own)] = own
                agreed[len(own) :] = False
                agreed &= written[0] == other
            search.reported += int(agreed.argmin()) if not agreed.all() else end - first
            if search.reported > first:
                new = place * rows.width + live[0], slice(first, search.reported)
                search.listener.wrote(0, rows.written[new], rows.picked[new])

    def done(self) -> Int64Array:
        """The end of the beam: no live row is left, or none can still be among the hypotheses."""
        rows = self._rows
        _end_going_round(rows, self._places, self._index)
        at_limit = _end_at_limit(rows, self._places, self._index)
        best = rows.sums[self._index].max(axis=1)  # [N'] nats of the likeliest row
        is_over = best == -np.inf  # and so it is at the limit
        self._settle(best, is_over | self._is_beaten(best, rows.leads[self._index]))
        is_done = at_limit | is_over | self._is_beaten(best, rows.floors[self._index])
        return np.asarray(self._places[is_done])

    def _scores(self, move: Move) -> Float64Array:
        """Nats of every extension of every row, [N', K · V]."""
        scores = move.logprobs[self._index].astype(np.float64)  # [N', K, V]
        scores[..., _NEVER] = -np.inf
        scores[self._plain, :, UNK_ID] = -np.inf
        for constraint, index in self._constrained:
            allowed = self._rows.allowed(constraint, self._places[index])
            scores[index] = np.where(allowed, scores[index], -np.inf)
        scores += self._rows.sums[self._index][..., None]
        return scores.reshape(len(scores), -1)

    def _share_out(self, scores: Float64Array, likeliest: Int64Array) -> None:
        """Where words must occur, take the extensions by stages instead."""
        rows = self._rows
        for constraint, index in self._constrained:
            for j in index.tolist() if rows.width > 1 else ():
                missing = constraint.missing_after(rows.matching[self._places[j]])
                if missing is not None:
                    likeliest[j] = shared_out(scores[j].reshape(missing.shape), missing)

    def _end(
        self, move: Move, places: Int64Array, from_row: Int64Array, nats: Float64Array
    ) -> None:
        """Keep the extensions that end, each of a row of the source at its place."""
        rows = self._rows
        kept = ~(rows.floors[places] >= nats / self._divisors(places))
        places, from_row, nats = places[kept], from_row[kept], nats[kept]
        last = move.logprobs[places, from_row, EOS_ID]
        before = None
        for place, row, total, logprob in zip(
            *(x.tolist() for x in (places, from_row, nats, last)), strict=True
        ):
            search = rows.searches[place]
            position = search.position
            # Another ending in the same step may have raised the floor.
            if place == before and rows.floors[place] >= total / math.pow(
                position + 1, search.length_penalty
            ):
                continue
            before = place
            written = place * rows.width + row
            tokens = (*rows.written[written, :position].tolist(), EOS_ID)
            picked = (*rows.picked[written, :position].tolist(), logprob)
            attention = None
            if search.wants_attention and move.attention is not None:
                attention = search.attention_of(row, move.attention[place, row])
            rows.found(place, Hypothesis(tokens, picked, total, "stop", row, attention))

    def _divisors(self, places: Int64Array) -> Float64Array:
        """The divisor of the scores of targets that end at this length."""
        lengths = self._rows.positions[places] + 1
        if self._is_mean:
            return lengths.astype(np.float64)
        # By Python's pow, as in a hypothesis's score: NumPy's may differ from it in the last bit.
        penalties = [self._rows.searches[place].length_penalty for place in places.tolist()]
        return np.array(list(map(math.pow, lengths.tolist(), penalties)))

    def _note_endings(self, nats: Float64Array) -> None:
        """Record the log-probability of extensions that end, [N', K]; -inf for the others."""
        if nats.max() > -np.inf:
            known = self._rows.endings[self._index]
            likeliest = np.sort(np.concatenate((known, nats), axis=1), axis=1)
            self._rows.endings[self._index] = likeliest[:, :-3:-1]

    def _settle(self, best: Float64Array, is_sure: BoolArray) -> None:
        """Record the rivals of best hypotheses that nothing can beat any more, [N']."""
        rows = self._rows
        newly = np.flatnonzero(is_sure & ~rows.settled[self._index])
        for place, live in zip(self._places[newly].tolist(), best[newly].tolist(), strict=True):
            rows.searches[place].settle([*rows.endings[place].tolist(), live])
            rows.settled[place] = True

    def _is_beaten(self, best: Float64Array, floors: Float64Array) -> BoolArray:
        """Whether no live row can still score more than the `floors`, [N'].

        As many have ended as are asked for, and none of them is worse than the best live beam
        would be if it lost nothing more up to its limit. To stop as soon as K have ended, as many
        do, is wrong where the model is sure: then what ends early is what it takes for impossible,
        and five such endings stood in for a target with probability one.
        """
        # One beam is greedy: it ends where the end is the likeliest token.
        beaten = (floors >= best / self._rows.reach[self._index]) | (self._rows.width == 1)
        return np.asarray(beaten & (floors > -np.inf))


def _index(rows: SearchRows, places: Int64Array) -> slice | Int64Array:
    """The places as an index: all of them as a slice, which is a view and usual."""
    return slice(None) if len(places) == len(rows.searches) else places


def _listened(rows: SearchRows, places: Int64Array) -> list[int]:
    listened: list[int] = places[rows.is_heard[places]].tolist()
    return listened


def _report_rows(rows: SearchRows, place: int) -> None:
    """Report the latest token of every live row."""
    search = rows.searches[place]
    if search.listener is None:
        return
    for row in rows.live(place).tolist():
        last = place * rows.width + row, slice(search.position - 1, search.position)
        search.listener.wrote(row, rows.written[last], rows.picked[last])


def _end_going_round(rows: SearchRows, places: Int64Array, index: slice | Int64Array) -> None:
    for place in places[rows.looks[index]].tolist():
        rows.end(place, rows.going_round(place), "repetition")


def _end_at_limit(rows: SearchRows, places: Int64Array, index: slice | Int64Array) -> BoolArray:
    """End all rows of the sources at their maximum length; return which sources, [N']."""
    at_limit = rows.at_limit[index]
    for place in places[at_limit].tolist():
        rows.end(place, np.arange(rows.width), "length")
    return at_limit


def _likeliest(scores: Float64Array, count: int) -> Int64Array:
    """Places of the `count` largest of each row, [N, count], first to last; of equals the first."""
    least = np.partition(scores, -count, axis=1)[:, -count, None]  # [N, 1] that is among them
    chosen = scores >= least
    if np.count_nonzero(chosen) > chosen.shape[0] * count:
        above = scores > least
        level = chosen & ~above
        spare = count - np.count_nonzero(above, axis=1)[:, None]
        chosen = above | (level & (np.cumsum(level, axis=1) <= spare))
    # Of the flat array: `nonzero` of two axes takes eight times as long.
    return np.asarray(np.flatnonzero(chosen).reshape(len(scores), count) % scores.shape[1])
