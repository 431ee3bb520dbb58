"""Targets from an n-gram model: what it expects at each place of the training text.

A network learns a short text by heart. A well-smoothed n-gram model knows how unlikely that text
is to occur again, and passes this on when it provides a share of each target: knowledge
distillation (Hinton, Vinyals and Dean 2015) from modified Kneser-Ney (`training.evaluation.ngram`).
An n-gram model of the same text would know it by heart too, so each part of the text gets its
targets from a model of the other parts.

N tokens, T time, V vocabulary.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from training.data.corpus import Split
from training.errors import ConfigError
from training.evaluation import ngram

ORDER = 6
_PARTS = 8  # each gets its targets from a model of the other seven
_PIECES = 16 * _PARTS  # a long text is cut into this many, so that every part has some of it
_MAX_VALUES = 1 << 26  # 256 MiB

Floats = npt.NDArray[np.float32]


def ngram_targets(split: Split, vocab_size: int, *, seed: int = 0) -> Floats:
    """[N, V] probabilities of each token, given those before it in its text.

    Raises ConfigError for a text that is too short or too long.
    """
    if len(split.ids) * vocab_size > _MAX_VALUES:
        raise ConfigError(
            f"training.ngram_targets: {len(split.ids):,} tokens to train on are too many; with a "
            f"vocabulary of {vocab_size:,}, at most {_MAX_VALUES // vocab_size:,} are allowed. "
            "Leave the option out: a text this long does not need it"
        )
    ids = np.asarray(split.ids, np.int64)
    starts = np.asarray(split.starts, np.int64)
    bounds = _bounds(starts)
    parts = np.random.default_rng(seed).permutation(len(bounds) - 1) % _PARTS
    found = np.zeros((len(ids), vocab_size), np.float32)
    for part in range(_PARTS):
        others = [ids[bounds[i] : bounds[i + 1]] for i in np.flatnonzero(parts != part)]
        offsets = np.cumsum([0, *map(len, others)])
        if not others:
            raise ConfigError("training.ngram_targets: there is too little text to train on")
        model = ngram.fit(np.concatenate(others), offsets, vocab_size, ORDER)[-1]
        own = [(int(bounds[i]), int(bounds[i + 1])) for i in np.flatnonzero(parts == part)]
        # Each piece is scored with the tokens before it in its text as history.
        befores = [max(_text_begin(starts, begin), begin - ORDER + 1) for begin, _ in own]
        expected = model.distributions(
            np.concatenate([ids[i:end] for i, (_, end) in zip(befores, own, strict=True)])
        )
        place = 0
        for before, (begin, end) in zip(befores, own, strict=True):
            place += end - before
            found[begin:end] = expected[place - (end - begin) : place]
    return found


def _text_begin(starts: npt.NDArray[np.int64], place: int) -> int:
    """The start of the text that holds a place."""
    return int(starts[np.searchsorted(starts, place, side="right") - 1])


def _bounds(starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The ends of all texts, and of the pieces of those that are a large share of the whole."""
    total = int(starts[-1])
    cuts = [
        np.arange(begin, end, max(1, total // _PIECES))
        if _PARTS * 2 * (end - begin) > total
        else np.array([begin])
        for begin, end in pairwise(starts.tolist())
    ]
    return np.append(np.concatenate(cuts), total)
