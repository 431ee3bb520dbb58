"""Fitting how output layers adapt, by trying it on text that nothing was trained on.

N tokens of the text, V vocabulary, H hidden, R numbers of a feature, C tokens of a chunk.

A trial reads the text as the graph does, a chunk at a time (see `graphs.adapting`), in float32.
Rate, decay and the factor of the logits are found one after another, each on a small grid around
the best so far; after each of them the weights and the exponent of the mixture are fitted again.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from service.bundle.language_model import MAX_ADAPT_BYTES
from training.data.corpus import Split
from training.evaluation.fitting import Shares, fit_shares, fit_temperature
from training.graphs.adapting_places import SLOTS
from training.networks.adapting import Adaptation
from training.networks.mixture import AnyLanguageModel, mixed

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
# Of the text; more would take more than a minute, or memory where the vocabulary is large.
_MAX_TOKENS = 25_000
_MAX_LOGITS = 1 << 23
_LEAST_GAIN = 0.002  # as a share of the loss: what adapts less is not worth its state
_CHUNK = 32
_RATES = (0.1, 0.25, 0.6, 1.5)  # divided by the mean squared length of the features: stable
_FINE = (0.75, 1.0, 1.35)
_SCALES = (0.94, 1.0, 1.06)
_DECAYS = (0.0, 1e-4, 1e-3)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Text:
    """A text as the networks and an n-gram predict it without adapting."""

    documents: Sequence[slice]
    targets: Ints  # [N] the token that comes
    hidden: Sequence[Floats]  # [N, H] of each network
    logits: Sequence[Floats]  # [N, V] of each network
    probs: Tensor | None  # [N, V] of an n-gram


@dataclass(frozen=True, slots=True)
class _Trial:
    """Numbers to try, and the loss that they give."""

    rate: float
    decay: float
    scale: float
    weights: Sequence[float] = ()
    exponent: float = 1.0
    loss: float = math.inf  # nats a token


def fit_adaptation(
    model: AnyLanguageModel, shares: Shares, split: Split, rank: int | None
) -> Adaptation | None:
    """The adaptation under which the split's text is likeliest; None where it gains too little.

    `model` as it is without adapting, its n-gram counted without the split. The rank is lowered
    where a row's states would be larger than a bundle may have them.
    """
    most = _highest_rank(len(model.networks), model.vocab_size)
    if most < 1:
        _LOG.warning(
            "the vocabulary is too large for an output layer that adapts: adapting is left out"
        )
        return None
    text = _read(model, split.first(min(_MAX_TOKENS, _MAX_LOGITS // model.vocab_size)))
    projections = [_projection(x, min(rank or most, most)) for x in text.hidden]
    features = [h if p is None else h @ p.T for h, p in zip(text.hidden, projections, strict=True)]
    static = _tried(text, features, _Trial(0.0, 0.0, 1.0, shares.weights, shares.exponent))
    # A mixture with an exponent has networks that are much less sure of themselves than they should
    # be. The errors to learn from must be those of calibrated networks.
    targets = torch.from_numpy(text.targets)
    sure = [1.0 / fit_temperature(torch.from_numpy(x), targets) for x in text.logits]
    logits = [np.float32(a) * x for a, x in zip(sure, text.logits, strict=True)]
    best = _search(replace(text, logits=logits), features, static)
    _LOG.info(
        "adapting: %.4f nats a token on the text of the fit, %.4f without", best.loss, static.loss
    )
    if not best.loss < (1.0 - _LEAST_GAIN) * static.loss:
        _LOG.warning("adapting gains too little on the text of the fit, so it is left out")
        return None
    return Adaptation(
        rate=best.rate,
        decay=best.decay,
        projections=projections,
        scales=[best.scale * x for x in sure],
        weights=best.weights,
        exponent=best.exponent,
    )


def _highest_rank(networks: int, vocab_size: int) -> int:
    """The most numbers of a feature with which a row's states stay within MAX_ADAPT_BYTES."""
    floats = (MAX_ADAPT_BYTES // 4 - 1) // networks - SLOTS * vocab_size
    return floats // (vocab_size + SLOTS)


def _search(text: _Text, features: Sequence[Floats], static: _Trial) -> _Trial:
    """One number after another, on small grids."""
    size = max(float(np.square(x).sum(axis=1).mean()) for x in features)
    start = _mixed(text, features, replace(static, loss=math.inf))
    first = (replace(start, rate=x / size) for x in _RATES)
    best = _mixed(text, features, _best(text, features, first))
    for grid in (_rates, _scales, _scales, _decays, _rates):
        best = _mixed(text, features, _best(text, features, grid(best), best))
    return best


def _rates(best: _Trial) -> Iterator[_Trial]:
    return (replace(best, rate=best.rate * x) for x in _FINE if x != 1.0)


def _scales(best: _Trial) -> Iterator[_Trial]:
    return (replace(best, scale=best.scale * x) for x in _SCALES if x != 1.0)


def _decays(best: _Trial) -> Iterator[_Trial]:
    return (replace(best, decay=x) for x in _DECAYS if x != best.decay)


def _best(
    text: _Text, features: Sequence[Floats], trials: Iterator[_Trial], known: _Trial | None = None
) -> _Trial:
    found = [_tried(text, features, trial) for trial in trials]
    return min(found if known is None else [known, *found], key=lambda x: x.loss)


def _tried(text: _Text, features: Sequence[Floats], trial: _Trial) -> _Trial:
    """The trial with its loss."""
    logits = _logits(text, features, trial)
    logprobs = mixed(logits, text.probs, trial.weights, trial.exponent)
    picked = logprobs.gather(1, torch.from_numpy(text.targets)[:, None])
    return replace(trial, loss=-float(picked.double().mean()))


def _mixed(text: _Text, features: Sequence[Floats], trial: _Trial) -> _Trial:
    """The trial with the weights and the exponent that suit it, where it has several parts."""
    if len(trial.weights) == 1:
        return trial
    probs = [torch.softmax(x, dim=-1) for x in _logits(text, features, trial)]
    probs += [] if text.probs is None else [text.probs]
    weights, exponent = fit_shares(probs, torch.from_numpy(text.targets))
    found = _tried(text, features, replace(trial, weights=weights, exponent=exponent))
    return min(trial, found, key=lambda x: x.loss)


def _logits(text: _Text, features: Sequence[Floats], trial: _Trial) -> list[Tensor]:
    return [torch.from_numpy(adapted_logits(text, i, f, trial)) for i, f in enumerate(features)]


def adapted_logits(text: _Text, i: int, features: Floats, trial: _Trial) -> Floats:
    """Logits [N, V] of network i while it adapts, from `features` [N, R]."""
    found = np.empty_like(text.logits[i])
    kept = 1.0 - trial.decay
    for document in text.documents:
        weights = np.zeros((found.shape[1], features.shape[1]), np.float32)  # [V, R]
        for first in range(document.start, document.stop, _CHUNK):
            own = slice(first, min(first + _CHUNK, document.stop))
            powers = (kept ** np.arange(own.stop - first + 1)).astype(np.float32)
            queries = features[own] * powers[:-1, None]  # [C, R]
            keys = features[own] * (np.float32(trial.rate) / powers[1:, None])
            found[own] = np.float32(trial.scale) * text.logits[i][own] + queries @ weights.T
            errors = _errors(found[own], queries @ keys.T, text.targets[own])
            weights = (weights - errors.T @ keys) * powers[-1]
    return found


def _errors(logits: Floats, similar: Floats, targets: Ints) -> Floats:
    """p - e_y [C, V] of each token of a chunk in turn; `logits` [C, V] become what they are."""
    errors = np.empty_like(logits)
    for t, target in enumerate(targets):
        logits[t] -= similar[t, :t] @ errors[:t]
        own = np.exp(logits[t] - logits[t].max())
        errors[t] = own / own.sum()
        errors[t, target] -= 1.0
    return errors


@torch.no_grad()
def _read(model: AnyLanguageModel, split: Split) -> _Text:
    """Document by document, as the states begin anew with each."""
    documents: list[slice] = []
    found: list[list[Tensor]] = [[] for _ in model.networks]
    probs: list[Tensor] = []
    targets: list[Ints] = []
    start = 0
    for first, last in zip(split.starts[:-1], split.starts[1:], strict=True):
        ids = np.asarray(split.ids[first:last], np.int64)
        tokens = torch.from_numpy(ids[None, :-1])
        targets.append(ids[1:])
        for own, network in zip(found, model.networks, strict=True):
            own.append(network.outputs(tokens, network.initial_states(1))[0][0])
        if model.ngram is not None:
            probs.append(model.ngram.probabilities(tokens, model.ngram.initial_states(1))[0][0])
        documents.append(slice(start, start + len(ids) - 1))
        start += len(ids) - 1
    joined = [torch.cat(x) for x in found]
    return _Text(
        documents,
        np.concatenate(targets),
        [x.numpy() for x in joined],
        [n.output(x).numpy() for n, x in zip(model.networks, joined, strict=True)],
        torch.cat(probs) if probs else None,
    )


def _projection(hidden: Floats, rank: int) -> Floats | None:
    """The first principal directions [R, H] of `hidden` [N, H], about zero; None: all of them."""
    if rank >= hidden.shape[1]:
        return None
    _, directions = np.linalg.eigh(hidden.T.astype(np.float64) @ hidden)
    return np.ascontiguousarray(directions.T[::-1][:rank], np.float32)
