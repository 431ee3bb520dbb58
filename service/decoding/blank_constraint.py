"""The constraint on a target that holds the texts of several blanks, with marks between them.

B blanks, L + 1 lengths of a text so far, S states of a rule, C classes of characters. A state of
the whole is (blank, length, state of the rule), in this order: state 0 is the first, as it must be.
"""

from dataclasses import dataclass

import numpy as np

from service.bundle.arrays import BoolArray, Int32Array, Int64Array
from service.bundle.infill import Infill
from service.bundle.text import SPECIAL_TOKENS
from service.decoding.constraints import Constraint

_FAR = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class BlankTexts:
    """Which texts an open blank may have."""

    least: int  # characters
    most: int
    rule: Constraint | None = None  # None: any characters


def blank_constraint(
    tokens: tuple[str, ...], infill: Infill, count: int, blank: BlankTexts
) -> Constraint | None:
    """The texts of `count` such blanks; None: there are none.

    `tokens` is the vocabulary, of which all after the special ones and the marks are characters.
    """
    rule = _any_character(len(tokens)) if blank.rule is None else blank.rule
    never = rule.following.shape[1] - 1
    class_of = np.where(rule.class_of == never, never + 1, rule.class_of)
    class_of[: len(SPECIAL_TOKENS)] = never + 1
    for mark in (infill.seam, infill.edge):
        class_of[tokens.index(mark)] = never + 1
    class_of[tokens.index(infill.blank)] = never
    accepts, following = rule.distance == 0, rule.following[:, :never]  # [S + 1], [S + 1, C]
    distance = _distances(accepts, following, blank)  # [L + 1, S + 1]
    if distance[0, 0] == _FAR:
        return None
    return _joined(distance, following, class_of, count, blank)


def _any_character(vocab_size: int) -> Constraint:
    """Any text of characters: one state, one class, and the dead state."""
    return Constraint(
        following=np.array([[0, 1], [1, 1]], np.int32),
        class_of=np.zeros(vocab_size, np.int64),
        distance=np.array([0, _FAR], np.int32),
        is_closed=np.array([False, False]),
    )


def _distances(accepts: BoolArray, following: Int32Array, blank: BlankTexts) -> Int32Array:
    """Fewest characters to the end of a text, by its length so far and its state."""
    distance = np.full((blank.most + 1, len(accepts)), _FAR, np.int32)
    for length in range(blank.most, -1, -1):
        if length < blank.most and following.shape[1]:
            nearest = distance[length + 1][following].min(axis=1)
            distance[length] = np.where(nearest < _FAR, nearest + 1, _FAR)
        if length >= blank.least:
            distance[length][accepts] = 0
    return distance


def _joined(
    within: Int32Array, following: Int32Array, class_of: Int64Array, count: int, blank: BlankTexts
) -> Constraint:
    """The texts of all blanks, one after another."""
    states, classes = following.shape
    size = (blank.most + 1) * states  # of one blank
    dead = count * size
    # Class C is the mark between two texts, C + 1 is never allowed.
    after = np.full((count, blank.most + 1, states, classes + 2), dead, np.int32)
    distance = np.full((count, blank.most + 1, states), _FAR, np.int32)
    for i in range(count):
        first, left = i * size, count - 1 - i
        for length in range(blank.most):
            lives = within[length + 1][following] < _FAR
            then = first + (length + 1) * states + following
            after[i, length, :, :classes] = np.where(lives, then, dead)
        if left:
            after[i, ..., classes] = np.where(within == 0, first + size, dead)
        # The texts that are left, and a mark before each.
        rest = left * (int(within[0, 0]) + 1)
        distance[i] = np.where(within < _FAR, within + rest, _FAR)
    table = np.vstack([after.reshape(dead, -1), np.full((1, classes + 2), dead, np.int32)])
    far = np.append(distance.ravel(), np.int32(_FAR))
    return Constraint(table, class_of, far, (far == 0) & (table == dead).all(axis=1))
