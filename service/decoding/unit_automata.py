"""Automata over units (characters or symbols): listed texts, allowed units, words that must occur.

Words are found by the automaton of Aho and Corasick (1975), times the set of words found so far.
"""

import time
from collections.abc import Iterable, Sequence

from service.decoding.patterns import PAUSE_S, Automaton, Budget
from service.decoding.token_automata import TooLargeError

# The engines' threads need Python's lock: they get it after so many states.
_STATES_IN_A_ROW = 32


def trie(texts: Iterable[Sequence[str]]) -> Automaton:
    """The automaton that accepts exactly these texts."""
    class_of: dict[str, int] = {}
    transitions: list[dict[int, int]] = [{}]
    accepting = [False]
    for text in texts:
        state = 0
        for unit in text:
            class_ = class_of.setdefault(unit, len(class_of))
            if class_ not in transitions[state]:
                transitions[state][class_] = len(transitions)
                transitions.append({})
                accepting.append(False)
            state = transitions[state][class_]
        accepting[state] = True
    return Automaton(class_of, transitions, accepting)


def only(units: Iterable[str]) -> Automaton:
    """The automaton of the texts of these units."""
    class_of = dict.fromkeys(units, 0)
    return Automaton(class_of, [{0: 0} if class_of else {}], [bool(class_of)])


def containing(
    words: Sequence[Sequence[str]], alphabet: Iterable[str], budget: Budget
) -> Automaton:
    """The automaton of the texts of an alphabet in which every word occurs, in any order.

    Words are not empty, and may overlap. Raises TooLargeError.
    """
    class_of = {unit: i for i, unit in enumerate(dict.fromkeys(x for y in words for x in y))}
    finder = _Finder([[class_of[unit] for unit in word] for word in words], budget.states)
    other = len(class_of)
    for unit in alphabet:
        class_of.setdefault(unit, other)
    all_found = (1 << len(words)) - 1
    start = (0, 0)
    number_of = {start: 0}
    states = [start]
    transitions: list[dict[int, int]] = []
    for found, node in states:  # grows on the way
        ways = {}
        if len(states) * (other + 1) > budget.steps:
            raise TooLargeError("the words take too many steps; give fewer or shorter words")
        for class_ in range(other + 1):
            after = finder.after(found, node, class_)
            if after not in number_of:
                if len(states) == budget.states:
                    raise _too_large(budget.states)
                number_of[after] = len(states)
                states.append(after)
            ways[class_] = number_of[after]
        transitions.append(ways)
        if len(transitions) % _STATES_IN_A_ROW == 0:
            time.sleep(PAUSE_S)
    return Automaton(class_of, transitions, [found == all_found for found, _ in states])


class _Finder:
    """The trie of the words; its node is the longest end of a text that still may become a word."""

    def __init__(self, words: Sequence[Sequence[int]], max_states: int) -> None:
        self._children: list[dict[int, int]] = [{}]
        self._begins = [0]  # by node, the words of which it is a beginning and not all, as bits
        self._ends = [0]  # by node, the words that end there
        for i, word in enumerate(words):
            node = 0
            for class_ in word:
                self._begins[node] |= 1 << i
                if class_ not in self._children[node]:
                    if len(self._children) == max_states:
                        raise _too_large(max_states)
                    self._children[node][class_] = len(self._children)
                    self._children.append({})
                    self._begins.append(0)
                    self._ends.append(0)
                node = self._children[node][class_]
            self._ends[node] |= 1 << i
        self._shorter = [0] * len(self._children)  # by node, its longest end that is a node
        self._next = self._table()
        self._kept: dict[tuple[int, int], int] = {}

    def after(self, found: int, node: int, class_: int) -> tuple[int, int]:
        """The words that have been found and the node after one more unit."""
        node = self._next[node].get(class_, 0)
        found |= self._ends[node]
        return found, self._still_open(found, node)

    def _still_open(self, found: int, node: int) -> int:
        """The longest end that is the beginning of a word not found yet."""
        passed = []
        while node and not self._begins[node] & ~found:
            if (found, node) in self._kept:
                node = self._kept[found, node]
                break
            passed.append(node)
            node = self._shorter[node]
        self._kept.update(((found, x), node) for x in passed)
        return node

    def _table(self) -> list[dict[int, int]]:
        """By node, the node after a class: the longest end. Classes left out lead to the root."""
        table = [dict(self._children[0])] + [{}] * (len(self._children) - 1)
        pending = list(self._children[0].values())
        for node in pending:  # by depth; grows on the way
            shorter = self._shorter[node]
            self._ends[node] |= self._ends[shorter]
            for class_, child in self._children[node].items():
                self._shorter[child] = table[shorter].get(class_, 0)
                pending.append(child)
            table[node] = table[shorter] | self._children[node]
        return table


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"the automaton of the words is too large; at most {limit} states are allowed: give fewer "
        "or shorter words"
    )
