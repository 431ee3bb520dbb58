"""Dividing the rows of a beam search whose targets must contain words.

K rows, V vocabulary. Until the words are there, a target without them is likelier than one with
them: by likelihood alone, no row would ever begin a word before it has to. So rows compete within a
stage, which is how many tokens of the words are still missing (Post and Vilar 2018, "Fast lexically
constrained decoding with dynamic beam allocation").
"""

import numpy as np

from service.bundle.arrays import Float64Array, Int32Array, Int64Array
from service.bundle.text import EOS_ID, PAD_ID


def shared_out(scores: Float64Array, missing: Int32Array) -> Int64Array:
    """Places of 2 K extensions, [2 K]: first those that end, then the likeliest K that go on.

    `scores` are nats of every extension, [K, V], and `missing` the stage after it. An end needs to
    be among the K likeliest extensions of the last stage. The others are taken in turns: the
    likeliest of each stage, then the second of each. Where there are more stages than rows, the
    last stage comes first, and then those that paid least for a token of the words.
    """
    width, vocab_size = scores.shape
    flat, stages = scores.ravel(), missing.ravel()
    possible = np.flatnonzero(flat > -np.inf)
    order = possible[np.argsort(-flat[possible], kind="stable")]  # likeliest first
    by_stage = {stage: order[stages[order] == stage] for stage in np.unique(stages[order]).tolist()}
    last = by_stage.get(0, order[:0])[:width]
    ends = last[last % vocab_size == EOS_ID]
    lines = {stage: line[line % vocab_size != EOS_ID] for stage, line in by_stage.items()}
    lines = {stage: line[:width] for stage, line in lines.items() if len(line)}
    chosen = [
        line[turn] for turn in range(width) for line in _in_order(lines, flat) if turn < len(line)
    ][:width]
    goes_on = np.array(sorted(chosen, key=lambda place: (-flat[place], place)), np.int64)
    # A place that no target can have: its score is -inf.
    found = np.full(2 * width, PAD_ID, np.int64)
    found[: len(ends)] = ends
    found[len(ends) : len(ends) + len(goes_on)] = goes_on
    return found


def _in_order(lines: dict[int, Int64Array], scores: Float64Array) -> list[Int64Array]:
    """The lines of the stages, each likeliest first, by whose turn it is."""
    first = max(lines, default=0)  # none of the words is there, or the least part of them

    def price(stage: int) -> float:
        """What a token of the words has cost."""
        return float(scores[lines[first][0]] - scores[lines[stage][0]]) / (first - stage)

    between = sorted((x for x in lines if 0 < x < first), key=price)
    order = [stage for stage in (0, *between[:1], first, *between[1:]) if stage in lines]
    return [lines[stage] for stage in dict.fromkeys(order)]
