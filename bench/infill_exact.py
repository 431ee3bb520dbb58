"""Every fill of a blank under an n-gram: the exact posterior, and the likeliest fills.

S states, E edges, V vocabulary.

An n-gram is an automaton: its state is the longest end of the text that it has counted as a
history, of at most order - 1 tokens. A token leads from a state along an edge, where the model
counted that token after that history, and else as from the next shorter history (`backoff`), at
gamma times the probability. So the probability of everything that may follow is computed backwards,
a token at a time, for all states at once, as in a hidden Markov model (Rabiner 1989). With the
largest instead of the sum, it bounds what a fill can reach: A* (Hart, Nilsson and Raphael 1968)
then finds the likeliest fills in order. Nothing is left out.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.evaluation.ngram import Floats, Ids, NGramModel

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Edges:
    """The tokens that were counted after the states of one length."""

    keys: Ids  # [E] state * V + token, sorted
    states: Ids  # [E]
    tokens: Ids  # [E]
    prob: Floats  # [E] p(token | state)
    after: Ids  # [E] the state that the token leads to
    backed_off: Floats  # [E] gamma(state) p(token | backoff(state)): had it not been counted
    after_backoff: Ids  # [E] where it leads from backoff(state)


# What it reaches at most, negative (the probability of a whole fill); whether it is whole; its
# tokens; the state after them, and their probability.
_Path = tuple[float, bool, tuple[int, ...], int, float]


@dataclass(frozen=True, slots=True)
class ExactFill:
    """A fill, and its share of the probability of all fills."""

    ids: tuple[int, ...]
    posterior: float


class Automaton:
    """An n-gram model of order 2 or more, as an automaton. State 0 has no history."""

    def __init__(self, model: NGramModel) -> None:
        self.vocab_size = len(model.unigram)
        self.history = model.order - 1  # tokens of the longest history
        sizes = [1, self.vocab_size, *(len(x.keys) - 1 for x in model.levels[:-1])]
        self.first = np.cumsum([0, *sizes])  # of the states of each length
        self.backoff = np.zeros(self.first[-1], np.int64)  # [S] the next shorter history
        self.gamma = np.ones(self.first[-1])  # [S]
        self.edges: list[Edges] = []  # by the length of the state
        every = np.arange(self.vocab_size)
        none = np.zeros(self.vocab_size)
        self._add(every, model.continuation, none, every * 0)
        levels = zip(model.levels, model.weights, strict=True)
        for length, (counted, weights) in enumerate(levels, start=1):
            self.gamma[self.first[length] : self.first[length + 1]] = weights.gamma[:-1]
            keys = counted.keys[:-1] + self.first[length] * self.vocab_size
            states, tokens = np.divmod(keys, self.vocab_size)
            lower, after = self.follow(self.backoff[states], tokens)
            self._add(keys, weights.mass[:-1], self.gamma[states] * lower, after)

    def _add(self, keys: Ids, mass: Floats, backed_off: Floats, after_backoff: Ids) -> None:
        """Add the edges of the next length, and the states that they lead to."""
        length = len(self.edges) + 1  # of the histories that the edges make
        after = after_backoff
        if length <= self.history:
            after = np.arange(self.first[length], self.first[length + 1])
            self.backoff[after] = after_backoff
        states, tokens = np.divmod(keys, self.vocab_size)
        prob = mass + backed_off
        self.edges.append(Edges(keys, states, tokens, prob, after, backed_off, after_backoff))

    def follow(self, states: Ids, tokens: Ids) -> tuple[Floats, Ids]:
        """[N] p(token | state), and the state after the token."""
        states, weight = states.copy(), np.ones(len(states))
        prob, after = np.zeros(len(states)), np.zeros(len(states), np.int64)
        for length in reversed(range(len(self.edges))):
            here = np.flatnonzero(states >= self.first[length])  # none is longer, by now
            edges = self.edges[length]
            keys = states[here] * self.vocab_size + tokens[here]
            places = np.searchsorted(edges.keys, keys)
            known = np.searchsorted(edges.keys, keys, "right") > places
            found, places = here[known], places[known]
            prob[found], after[found] = weight[found] * edges.prob[places], edges.after[places]
            states[found] = -1
            rest = here[~known]
            weight[rest] *= self.gamma[states[rest]]
            states[rest] = self.backoff[states[rest]]
        return prob, after

    def read(self, ids: Sequence[int], state: int = 0) -> tuple[float, int]:
        """The probability of the tokens after a state, and the state after them."""
        total = 1.0
        for token in ids:
            prob, after = self.follow(np.array([state]), np.array([token]))
            total, state = total * float(prob[0]), int(after[0])
        return total, state

    def leaving(self, state: int) -> tuple[Floats, Ids]:
        """[V] p(token | state) of every token, and the states after them."""
        suffixes = [state]
        while suffixes[-1]:
            suffixes.append(int(self.backoff[suffixes[-1]]))
        prob, after = self.edges[0].prob.copy(), self.edges[0].after.copy()
        for suffix in reversed(suffixes[:-1]):
            edges = self.edges[int(np.searchsorted(self.first, suffix, "right")) - 1]
            begin, end = np.searchsorted(edges.states, (suffix, suffix + 1))
            tokens = edges.tokens[begin:end]
            prob *= self.gamma[suffix]
            prob[tokens], after[tokens] = edges.prob[begin:end], edges.after[begin:end]
        return prob, after

    def before(self, token: int, values: Floats) -> Floats:
        """[S] p(token | state) times the value [S] of the state after it."""
        found = np.zeros(len(values))
        for edges, span in self._by_length(found):
            here = np.flatnonzero(edges.tokens == token)
            found[span] *= self.gamma[span]
            found[edges.states[here]] = edges.prob[here] * values[edges.after[here]]
        return found

    def sums(self, allowed: Mask, values: Floats) -> Floats:
        """[S] the sum of `before` over the allowed tokens."""
        found = np.zeros(len(values))
        for edges, span in self._by_length(found):
            gained = edges.prob * values[edges.after]
            gained -= edges.backed_off * values[edges.after_backoff]
            gained *= allowed[edges.tokens]
            places = edges.states - span.start
            more = np.bincount(places, gained, minlength=span.stop - span.start)
            found[span] = np.maximum(found[span] * self.gamma[span] + more, 0.0)
        return found

    def bounds(self, allowed: Mask, values: Floats) -> Floats:
        """[S] not less than any of `before` over the allowed tokens.

        It may be more, because a token with an edge is also taken as if it had none.
        """
        found = np.zeros(len(values))
        for edges, span in self._by_length(found):
            reached = edges.prob * values[edges.after] * allowed[edges.tokens]
            found[span] *= self.gamma[span]
            sources, starts = np.unique(edges.states, return_index=True)
            found[sources] = np.maximum(found[sources], np.maximum.reduceat(reached, starts))
        return found

    def _by_length(self, found: Floats) -> Iterator[tuple[Edges, slice]]:
        """The edges and states of each length; `found` of the shorter history is filled in."""
        for length, edges in enumerate(self.edges):
            span = slice(int(self.first[length]), int(self.first[length + 1]))
            if length:
                found[span] = found[self.backoff[span]]
            yield edges, span


@dataclass(frozen=True, slots=True)
class Blank:
    """What a fill may be."""

    allowed: Mask  # [V]
    lengths: range  # in tokens; every length has the same prior


class Fills:
    """All fills of one blank between two texts."""

    def __init__(
        self, automaton: Automaton, prefix: Sequence[int], suffix: Sequence[int], blank: Blank
    ) -> None:
        self._automaton, self._blank = automaton, blank
        _, self._start = automaton.read(prefix[-automaton.history :])
        # After so many tokens, all states are the same: the rest does not distinguish fills.
        tail = np.ones(len(automaton.gamma))
        for token in reversed(suffix[: automaton.history]):
            tail = automaton.before(token, tail)
        sums, bounds = [tail], [tail]
        for _ in range(blank.lengths[-1]):
            sums.append(automaton.sums(blank.allowed, sums[-1]))
            bounds.append(automaton.bounds(blank.allowed, bounds[-1]))
        self._tail = tail
        self._bounds = np.stack(bounds)  # [longest + 1, S] by the tokens that are missing
        # p(fill, suffix | prefix) of all fills together.
        self.total = float(sum(sums[length][self._start] for length in blank.lengths))

    def posterior(self, fill: Sequence[int]) -> float:
        """The share of one fill that the blank allows."""
        prob, state = self._automaton.read(fill, self._start)
        return prob * float(self._tail[state]) / self.total

    def likeliest(self, count: int) -> list[ExactFill]:
        """The fills with the largest posteriors, in order."""
        found: list[ExactFill] = []
        paths: list[_Path] = [(-self.total, False, (), self._start, 1.0)]
        while paths and len(found) < count:
            key, whole, ids, state, prob = heapq.heappop(paths)
            if whole:
                found.append(ExactFill(ids, -key / self.total))
                continue
            if len(ids) in self._blank.lengths:
                value = prob * float(self._tail[state])
                heapq.heappush(paths, (-value, True, ids, state, prob))
            if len(ids) < self._blank.lengths[-1]:
                for path in self._longer(ids, state, prob):
                    heapq.heappush(paths, path)
        return found

    def _longer(self, ids: tuple[int, ...], state: int, prob: float) -> Iterator[_Path]:
        """The path with each allowed token more."""
        probs, states = self._automaton.leaving(state)
        tokens = np.flatnonzero(self._blank.allowed)
        probs, states = prob * probs[tokens], states[tokens]
        length, lengths = len(ids) + 1, self._blank.lengths
        missing = slice(max(lengths[0] - length, 0), lengths[-1] - length + 1)
        reached = probs * self._bounds[missing, states].max(axis=0)
        for i in np.flatnonzero(reached):
            whole = (*ids, int(tokens[i]))
            yield (-float(reached[i]), False, whole, int(states[i]), float(probs[i]))
