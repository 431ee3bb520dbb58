"""Guess numbers (see `service/bundle/guesses.py`): samples of a model, and the curve they make.

n samples, B rows, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from service.bundle.guesses import MAX_GUESS_POINTS, GuessCurve
from service.bundle.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from training.networks.mixture import AnyLanguageModel

Floats = npt.NDArray[np.float64]

# The curve ends where its standard error is more than this share of the estimate ...
MAX_RELATIVE_ERROR = 0.1
# ... and before the squares of numbers overflow.
_LEAST_LOGPROB = -300.0
# The last point has at least this many likelier samples: with fewer, their spread is unknown.
_LEAST_SAMPLES = 100
# Points are added until interpolation is off by at most this share of the standard error, to which
# so many guesses are added.
_FINE = 0.25
_LEAST_ERROR = 0.1
# Samples that are this close in nats may be one text, read in two batches.
_SAME = 1e-5
# Log-probabilities of one step over all rows: bounds the memory.
_MOST_VALUES = 1 << 21
_NEVER = [PAD_ID, BOS_ID, UNK_ID]  # without text: the service never writes them


@dataclass(frozen=True, slots=True)
class Samples:
    """Whole texts drawn from a model."""

    logprobs: Floats  # [n] log p, as `/score` gives it with the end
    drawn: Floats  # [n] log q, the probability of drawing the text
    ended: npt.NDArray[np.bool_]  # [n] whether the text ended within the longest length
    max_chars: int


@torch.no_grad()
def sample_texts(model: AnyLanguageModel, count: int, max_chars: int, seed: int) -> Samples:
    """Draw texts at temperature 1 with nothing cut off, as `/generate` does.

    The same seed and model give the same samples. The random generator of training is not touched.
    """
    was_training = model.training
    model.eval()
    rng = np.random.default_rng(seed)
    logprobs, drawn = np.zeros(count), np.zeros(count)
    ended = np.zeros(count, np.bool_)
    rows = max(1, min(count, _MOST_VALUES // model.vocab_size))
    for first in range(0, count, rows):
        active = np.arange(first, min(count, first + rows))  # [B] the texts that go on
        tokens = torch.full((len(active), 1), BOS_ID)
        states = model.initial_states(len(active))
        for _ in range(max_chars + 1):
            logits, states = model(tokens, states)  # [B, 1, V]
            logs = torch.log_softmax(logits[:, -1].double(), dim=-1)  # [B, V]
            own = logs.clone()
            own[:, _NEVER] = -torch.inf
            own = torch.log_softmax(own, dim=-1)
            chosen = _inverted(own.exp(), torch.from_numpy(rng.random(len(active))))  # [B]
            logprobs[active] += logs.gather(1, chosen[:, None])[:, 0].numpy()
            drawn[active] += own.gather(1, chosen[:, None])[:, 0].numpy()
            going_on = chosen != EOS_ID
            ended[active[~going_on.numpy()]] = True
            active = active[going_on.numpy()]
            if not len(active):
                break
            tokens = chosen[going_on][:, None]
            states = tuple(state[going_on] for state in states)
    model.train(was_training)
    return Samples(logprobs, drawn, ended, max_chars)


def _inverted(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulated probability exceeds the uniform number, [B]."""
    cumulated = probs.cumsum(dim=-1)
    threshold = uniform[:, None] * cumulated[:, -1:]
    return (cumulated > threshold).int().argmax(dim=-1)


def curve_of(
    samples: Samples, typical: Callable[[GuessCurve], float | None] = lambda _: None
) -> GuessCurve | None:
    """The curve of the samples; None if they are too few for one.

    `typical` gives what the manifest says of a typical text, from the curve without it.
    """
    usable = samples.ended & (samples.logprobs > _LEAST_LOGPROB)
    order = np.argsort(-samples.logprobs[usable], kind="stable")
    logprobs = samples.logprobs[usable][order]
    weights = np.exp(-samples.drawn[usable][order])
    count = len(samples.logprobs)
    firsts = np.flatnonzero(np.diff(logprobs, prepend=np.inf) < -_SAME)  # of each distinct text
    likelier = _sums_before(weights, firsts) / count
    # The variance of the mean of n numbers, all but the first of which are 0.
    squares = _sums_before(weights**2, firsts) / count
    errors = np.sqrt(np.maximum(squares - likelier**2, 0.0) / (count - 1))
    end = _end(errors <= MAX_RELATIVE_ERROR * (1.0 + likelier), firsts)
    if end is None:
        return None
    kept = _points(logprobs[firsts[:end]], likelier[:end], errors[:end])
    curve = GuessCurve(
        samples=count,
        max_chars=samples.max_chars,
        cut=int(count - samples.ended.sum()),
        logprobs=[round(x, 5) for x in logprobs[firsts[kept]].tolist()],
        guesses=[_short(x) for x in likelier[kept].tolist()],
        errors=[_short(x) for x in errors[kept].tolist()],
    )
    found = typical(curve)
    return curve.model_copy(update={"typical": None if found is None else _short(found)})


def _end(sure: npt.NDArray[np.bool_], likelier: npt.NDArray[np.int64]) -> int | None:
    """The first place that is unsure after a sure one; None where enough samples make none sure.

    Not the last sure place: that is one where chance has made the estimate high.
    """
    found = np.flatnonzero(sure & (likelier >= _LEAST_SAMPLES))
    if not len(found):
        return None
    return int(np.append(sure[found[0] :], False).argmin() + found[0])


def _sums_before(values: Floats, places: npt.NDArray[np.int64]) -> Floats:
    """The sum of the values before each place."""
    sums: Floats = np.concatenate([[0.0], np.cumsum(values)])[places]
    return sums


def _points(logprobs: Floats, likelier: Floats, errors: Floats) -> npt.NDArray[np.int64]:
    """The places that the curve keeps: the worst interpolated one is added, again and again.

    It ends where each is interpolated much better than it is known: the likeliest texts need a
    point each, the others few.
    """
    heights, known = np.log1p(likelier), errors + _LEAST_ERROR
    kept = np.unique([0, len(heights) - 1])
    while len(kept) < min(MAX_GUESS_POINTS, len(heights)):
        # np.interp wants rising places.
        found = np.interp(-logprobs, -logprobs[kept], heights[kept])
        off = np.abs(np.expm1(found) - likelier) / known
        worst = int(off.argmax())
        if off[worst] <= _FINE:
            break
        kept = np.insert(kept, np.searchsorted(kept, worst), worst)
    return kept


def _short(value: float) -> float:
    """To six digits, far more than the estimate is exact."""
    return float(f"{value:.6g}")
