"""What an n-gram model of the other texts expects at each place of the training text.

Little text teaches a network by heart what is in it; an n-gram model that is smoothed well knows
how much less likely it is to come again. Given a share of each target, it hands that on: knowledge
distillation (Hinton, Vinyals and Dean 2015) from modified Kneser-Ney
(`training.evaluation.ngram`). A model of the text itself would only know it by heart as well, so
each part is told by a model of the others.

N tokens, T time, V vocabulary.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from training.data.corpus import Split
from training.errors import ConfigError
from training.evaluation import ngram

ORDER = 6
_PARTS = 8  # each is told by a model of the seven others
_PIECES = 16 * _PARTS  # of all the text, where one text is so long that all parts need some of it
_MAX_VALUES = 1 << 26  # 256 MiB

Floats = npt.NDArray[np.float32]


def ngram_targets(split: Split, vocab_size: int, *, seed: int = 0) -> Floats:
    """[N, V] probabilities of the token at each place, given those before it in its text.

    Raises ConfigError for a text that is too long: much of it needs no such help.
    """
    if len(split.ids) * vocab_size > _MAX_VALUES:
        raise ConfigError(
            f"training.ngram_targets: {len(split.ids):,} tokens to train on, of {vocab_size:,} "
            f"kinds, are too many; at most {_MAX_VALUES // vocab_size:,} of so many kinds may be"
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
        # Each with what stands before it in its text: of the others nothing reaches into it.
        befores = [max(_text_begin(starts, begin), begin - ORDER + 1) for begin, _ in own]
        told = model.distributions(
            np.concatenate([ids[i:end] for i, (_, end) in zip(befores, own, strict=True)])
        )
        place = 0
        for before, (begin, end) in zip(befores, own, strict=True):
            place += end - before
            found[begin:end] = told[place - (end - begin) : place]
    return found


def _text_begin(starts: npt.NDArray[np.int64], place: int) -> int:
    """Where the text begins that a place is in."""
    return int(starts[np.searchsorted(starts, place, side="right") - 1])


def _bounds(starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where texts begin and end, and pieces of those that are a large share of all."""
    total = int(starts[-1])
    cuts = [
        np.arange(begin, end, max(1, total // _PIECES))
        if _PARTS * 2 * (end - begin) > total
        else np.array([begin])
        for begin, end in pairwise(starts.tolist())
    ]
    return np.append(np.concatenate(cuts), total)
