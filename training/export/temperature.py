"""A labeler's temperature: one number that makes held-out labels likeliest (Guo et al. 2017).

N decisions, n characters of a text, L labels. A temperature divides every exponent of the model, so
the loss is convex in its inverse, and a search in one dimension finds the smallest.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from service.bundle.labeler import Labels
from training.data.labelled import LabelIds, LabelledSplit
from training.evaluation.labeler import Ints, read_texts
from training.evaluation.linear_chain import Floats
from training.networks.labeler import Labeler
from training.networks.linear_chain import LinearChain

# As in `evaluation.fitting`: between 1 / 4 and 4, and its logarithm has a normal prior, which only
# matters for texts that are labelled without a doubt.
_MOST = math.log(4.0)
_DEVIATION = 0.5
_ROUNDS = 30  # each shrinks the interval by the golden ratio, in the end to a millionth
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
# What the loss adds up for all texts, about; those beyond it are left out.
_MAX_VALUES = 1 << 24


def fit_temperature(model: Labeler, held_out: LabelledSplit, labels: Labels) -> float:
    """The temperature that gives the labels of `held_out` the smallest loss."""
    chosen = _affordable(model, held_out, labels)
    batches = _read(model.eval(), held_out, chosen, labels)
    decisions = sum(x.decisions(labels) for x in batches)

    def loss(logarithm: float) -> float:
        temperature = math.exp(logarithm)
        chain = tempered(model, temperature).chain
        chain = None if chain is None else chain.double()
        nats = sum(_nats(chain, x, labels, temperature) for x in batches)
        return (nats + (logarithm / _DEVIATION) ** 2 / 2) / decisions

    return round(math.exp(_smallest(loss)), 4)


def tempered(model: Labeler, temperature: float) -> Labeler:
    """A copy whose logits, and whose chain's numbers, are divided by the temperature."""
    found = copy.deepcopy(model).eval()
    parts = [found.output, *([] if found.chain is None else [found.chain])]
    with torch.no_grad():
        for parameter in (x for part in parts for x in part.parameters()):
            parameter.div_(temperature)
    return found


@dataclass(frozen=True, slots=True)
class _Batch:
    """Logits of texts, [L] or [n, L] each, and the labels in the data."""

    logits: Sequence[Floats]
    wanted: Sequence[LabelIds]

    def decisions(self, labels: Labels) -> int:
        """Texts or characters; of several labels, each label."""
        if labels.several:
            return len(self.wanted) * len(labels.names)
        return sum(map(len, self.wanted))


def _affordable(model: Labeler, held_out: LabelledSplit, labels: Labels) -> Sequence[int]:
    """The texts to fit on, evenly from all of the split: files are often sorted."""
    size = len(labels.names)
    values = len(held_out) * size
    if labels.scope == "character":
        values = sum(map(len, held_out.tokens)) * size * (1 if model.chain is None else size)
    count = max(1, len(held_out) * min(_MAX_VALUES, values) // max(1, values))
    return [i * len(held_out) // count for i in range(count)]


def _read(
    model: Labeler, held_out: LabelledSplit, chosen: Sequence[int], labels: Labels
) -> list[_Batch]:
    """What the model makes of the chosen texts, in batches of similar lengths."""

    @torch.no_grad()
    def read(tokens: Ints, lengths: Ints) -> Floats:
        found = model(torch.from_numpy(tokens), torch.from_numpy(lengths))
        return np.asarray(found.double().numpy())

    tokens = [held_out.tokens[i] for i in chosen]
    return [
        _Batch(logits, [held_out.labels[chosen[i]] for i in indices])
        for indices, logits in read_texts(read, tokens, labels, forward=bool(model.state_names))
    ]


@torch.no_grad()
def _nats(chain: LinearChain | None, batch: _Batch, labels: Labels, temperature: float) -> float:
    """The loss of a batch, as a sum; the chain's numbers are already divided."""
    if chain is not None:
        return _chain_nats(chain, batch, temperature)
    logits = torch.from_numpy(np.concatenate([np.atleast_2d(x) for x in batch.logits]))  # [N, L]
    if labels.several:
        chosen = torch.zeros_like(logits)
        for row, ids in zip(chosen, batch.wanted, strict=True):
            row[ids.tolist()] = 1.0
        loss = functional.binary_cross_entropy_with_logits
        return float(loss(logits / temperature, chosen, reduction="sum"))
    targets = torch.from_numpy(np.concatenate(batch.wanted).astype(np.int64))
    return float(functional.cross_entropy(logits / temperature, targets, reduction="sum"))


def _chain_nats(chain: LinearChain, batch: _Batch, temperature: float) -> float:
    lengths = torch.tensor([len(x) for x in batch.wanted])
    size = (len(lengths), int(lengths.max()))
    scores = torch.zeros(*size, batch.logits[0].shape[1], dtype=torch.float64)
    paths = torch.zeros(size, dtype=torch.int64)
    for i, (own, ids) in enumerate(zip(batch.logits, batch.wanted, strict=True)):
        scores[i, : len(own)] = torch.from_numpy(own)
        paths[i, : len(own)] = torch.from_numpy(ids.astype(np.int64))
    return -float(chain.logprob(scores / temperature, paths, lengths).sum())


def _smallest(loss: Callable[[float], float]) -> float:
    """Where the loss is smallest between -_MOST and _MOST (Kiefer 1953)."""
    low, high = -_MOST, _MOST
    points = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    losses = [loss(x) for x in points]
    for _ in range(_ROUNDS):
        if losses[0] <= losses[1]:
            high = points[1]
            points = [high - _GOLDEN * (high - low), points[0]]
            losses = [loss(points[0]), losses[0]]
        else:
            low = points[0]
            points = [points[1], low + _GOLDEN * (high - low)]
            losses = [losses[1], loss(points[1])]
    return (low + high) / 2
