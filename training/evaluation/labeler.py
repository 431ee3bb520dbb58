"""How good a labeler is on a split: its answers against the labels in the data.

B batch, S places (bos, tokens and eos), n characters of a text, L labels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from service.bundle.confidence import MAX_BINS
from service.bundle.labeler import FORBIDDEN, LabelMetric, Labels
from training.data.labelled import Ids, LabelIds, LabelledSplit
from training.data.labelled_batches import pad_texts
from training.evaluation.linear_chain import Chain, Floats, chain_of
from training.evaluation.reliability import calibration_error
from training.evaluation.tags import tags
from training.networks.labeler import Labeler

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
# Padded texts [B, S] and their lengths [B] to log-probabilities [B, L], or [B, S, L] of places:
# by PyTorch, or by a graph.
Reader: TypeAlias = Callable[[Ints, Ints], Floats]

# For these metrics less is better, for the others more.
ERRORS: tuple[LabelMetric, ...] = (
    "loss",
    "ece",
    "word_error_rate",
    "character_error_rate",
    "base_errors",
)
_BATCH_TEXTS = 256
_BATCH_LOGPROBS = 4_000_000  # of one batch: bounds what is held in memory


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer for one text, beside the text's labels in the data."""

    found: Ints  # the labels: [1], [any number], or [n]
    wanted: LabelIds
    nats: float  # -log P(wanted)
    decisions: int  # that the nats count: texts or characters; with several labels, each label
    confidences: Floats  # P of the likeliest label, [1], or of each character's found one, [n]
    right: Bools  # whether that label is right


def judged(
    labels: Labels,
    logprobs: Sequence[Floats],
    wanted: Sequence[LabelIds],
    chain: Chain | None = None,
) -> list[Judged]:
    """Judge the log-probabilities of texts: [L], or [n, L] for a text's characters.

    With several labels, they are log P of each label by itself; with a chain, its scores.
    """
    found = found_labels(labels, logprobs, chain)
    if labels.several:
        return [_several(*x) for x in zip(logprobs, found, wanted, strict=True)]
    if chain is not None:
        return _chained(chain, logprobs, found, wanted)
    rows = (np.atleast_2d(x) for x in logprobs)
    return [_one_each(*x) for x in zip(rows, found, wanted, strict=True)]


def found_labels(
    labels: Labels, logprobs: Sequence[Floats], chain: Chain | None = None
) -> list[Ints]:
    """The labels that are given to texts: the likeliest one, or a chain's likeliest path.

    With several labels, those that are more likely than not.
    """
    if labels.several:
        return [np.flatnonzero(x > np.log(0.5)) for x in logprobs]
    if chain is not None:
        return chain.likeliest(*_padded(logprobs))
    return [np.atleast_2d(x).argmax(axis=1) for x in logprobs]


def _several(logprobs: Floats, found: Ints, wanted: LabelIds) -> Judged:
    with np.errstate(divide="ignore"):
        others = np.log(-np.expm1(np.minimum(logprobs, 0.0)))  # log P that it is not a label
    chosen = np.zeros(len(logprobs), np.bool_)
    chosen[wanted] = True
    likeliest = [int(logprobs.argmax())]
    return Judged(
        found=found,
        wanted=wanted,
        nats=-float(np.maximum(np.where(chosen, logprobs, others), FORBIDDEN).sum()),
        decisions=len(logprobs),
        confidences=np.exp(logprobs[likeliest]),
        right=chosen[likeliest],
    )


def _one_each(logprobs: Floats, found: Ints, wanted: LabelIds) -> Judged:
    """Of `logprobs` [n, L], or [1, L] of a text."""
    rows = np.arange(len(logprobs))
    return Judged(
        found=found,
        wanted=wanted,
        nats=-float(np.maximum(logprobs[rows, wanted], FORBIDDEN).sum()),
        decisions=len(wanted),
        confidences=np.exp(logprobs[rows, found]),
        right=found == wanted,
    )


def _chained(
    chain: Chain, exponents: Sequence[Floats], found: Sequence[Ints], wanted: Sequence[LabelIds]
) -> list[Judged]:
    marginals, log_z = chain.marginals(*_padded(exponents))
    return [
        Judged(
            found=path,
            wanted=labels,
            nats=float(log_z[i]) - chain.path_score(exponents[i], labels.astype(np.int64)),
            decisions=len(labels),
            confidences=np.exp(np.minimum(marginals[i, np.arange(len(path)), path], 0.0)),
            right=path == labels,
        )
        for i, (path, labels) in enumerate(zip(found, wanted, strict=True))
    ]


def _padded(exponents: Sequence[Floats]) -> tuple[Floats, Ints]:
    """[B, n, L] and the lengths [B]."""
    lengths = np.array([len(x) for x in exponents])
    padded = np.zeros((len(exponents), int(lengths.max()), exponents[0].shape[1]))
    for row, x in zip(padded, exponents, strict=True):
        row[: len(x)] = x
    return padded, lengths


# --- metrics ------------------------------------------------------------------------------------


def label_metrics(found: Sequence[Judged], labels: Labels) -> dict[LabelMetric, float]:
    """The metrics of the answers for a split.

    `loss`: nats per text or character; with several labels, per label of each text. `macro_f1`: the
    mean over the labels that the split has. A label that it lacks has no F1, but a text that gets
    that label is wrong. `ece`: 15 bins of equal mass.
    """
    decisions = sum(x.decisions for x in found)
    right = np.concatenate([x.right for x in found])
    whole = float(np.mean([np.array_equal(x.found, np.sort(x.wanted)) for x in found]))
    each = float(right.mean())
    confidences = np.concatenate([x.confidences for x in found])
    values: dict[LabelMetric, float] = {
        "loss": sum(x.nats for x in found) / decisions,
        "accuracy": whole if labels.several else each,
        **_f1_of_labels(found, labels),
        "ece": calibration_error(confidences, right, MAX_BINS),
    }
    if labels.scope == "character":
        values["exact_match"] = float(np.mean([x.right.all() for x in found]))
    if labels.outside is not None and not labels.applied:
        values["span_f1"] = span_f1(found, labels)
    return values


def _f1_of_labels(found: Sequence[Judged], labels: Labels) -> dict[LabelMetric, float]:
    hits, given, wanted = label_counts(found, labels)
    there = wanted > 0
    f1 = 2 * hits[there] / (given + wanted)[there]
    values: dict[LabelMetric, float] = {"macro_f1": float(f1.mean()) if len(f1) else 0.0}
    if labels.several:
        values["micro_f1"] = _f1(int(hits.sum()), int(given.sum()), int(wanted.sum()))
    return values


def label_counts(found: Sequence[Judged], labels: Labels) -> tuple[Ints, Ints, Ints]:
    """How often each label [L] was given rightly, given, and wanted."""
    hits = [
        np.intersect1d(x.found, x.wanted) if labels.several else x.found[x.right] for x in found
    ]
    columns = (hits, [x.found for x in found], [x.wanted for x in found])
    size = len(labels.names)
    right, given, wanted = (np.bincount(np.concatenate(x), minlength=size) for x in columns)
    return right, given, wanted


def span_f1(found: Sequence[Judged], labels: Labels) -> float:
    """F1 of whole tags: the same characters and the same label."""
    pairs = [
        (set(tags(x.found.tolist(), labels)), set(tags(x.wanted.tolist(), labels))) for x in found
    ]
    given, wanted = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    return _f1(sum(len(mine & theirs) for mine, theirs in pairs), given, wanted)


def _f1(hits: int, given: int, wanted: int) -> float:
    """F1 from counts; 1 if nothing was wanted and nothing given."""
    return 2 * hits / (given + wanted) if given + wanted else 1.0


def rank_of(metric: LabelMetric, values: dict[LabelMetric, float]) -> float:
    """The metric's value, turned so that less is better."""
    return values[metric] if metric in ERRORS else -values[metric]


# --- reading a split ----------------------------------------------------------------------------


def read_texts(
    read: Reader, tokens: Sequence[Ids], labels: Labels, *, forward: bool
) -> Iterator[tuple[Sequence[int], list[Floats]]]:
    """Log-probabilities of texts, [L] or [n, L] each, in batches of similar lengths.

    A batch comes with the indices of its texts. If texts are read forward, those after their ends.
    """
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    start = 0
    while start < len(order):
        longest = len(tokens[order[min(start + _BATCH_TEXTS, len(order)) - 1]]) + 2
        size = max(1, min(_BATCH_TEXTS, _BATCH_LOGPROBS // (longest * len(labels.names))))
        indices = order[start : start + size]
        start += size
        padded, lengths = pad_texts([tokens[i] for i in indices], forward=forward)
        logprobs = read(padded, lengths)
        if labels.scope == "character":  # without bos and eos
            yield indices, [x[1 : n - 1] for x, n in zip(logprobs, lengths, strict=True)]
        elif forward:
            yield indices, [x[n - 1] for x, n in zip(logprobs, lengths, strict=True)]
        else:
            yield indices, list(logprobs)


def judge_split(
    read: Reader,
    split: LabelledSplit,
    labels: Labels,
    *,
    forward: bool = False,
    chain: Chain | None = None,
) -> list[Judged]:
    """The answers for a split's texts, in order."""
    found: dict[int, Judged] = {}
    for indices, logprobs in read_texts(read, split.tokens, labels, forward=forward):
        wanted = [split.labels[i] for i in indices]
        found.update(zip(indices, judged(labels, logprobs, wanted, chain), strict=True))
    return [found[i] for i in range(len(split))]


def judge_network(
    model: Labeler, split: LabelledSplit, labels: Labels, device: torch.device
) -> list[Judged]:
    """The same by PyTorch, in evaluation mode."""
    was_training = model.training
    model.eval()
    chain = None if model.chain is None else chain_of(model.chain)
    forward = model.head.direction == "forward"
    read = network_reader(model, labels, device)
    found = judge_split(read, split, labels, forward=forward, chain=chain)
    model.train(was_training)
    return found


def network_reader(model: Labeler, labels: Labels, device: torch.device) -> Reader:
    """PyTorch's log-probabilities."""

    @torch.no_grad()
    def read(tokens: Ints, lengths: Ints) -> Floats:
        logits = model(*(torch.from_numpy(x).to(device) for x in (tokens, lengths)))
        if labels.several:
            found = functional.logsigmoid(logits)
        else:
            found = torch.log_softmax(logits, dim=-1)
        return np.asarray(found.double().cpu().numpy())

    return read
