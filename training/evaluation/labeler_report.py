"""The final figures, as tables and in words: a labeler beside its floors."""

from collections import Counter
from collections.abc import Sequence

import torch

from service.bundle.labeler import LabelerMeasurement, LabelerMetrics, Labels
from training.data.labelled import LabelledCorpus, LabelledSplit
from training.evaluation.labeler import Judged, judge_network, label_counts
from training.evaluation.metrics import share_error
from training.evaluation.restore_report import floors_of, split_values
from training.networks.labeler import Labeler

_WORST = 10  # lines of a list of mistakes
_FLOORS = {
    "majority": "Always the commonest label",
    "naive_bayes": "Naive Bayes over character n-grams",
    "logistic_regression": "Logistic regression over character n-grams",
    "window": "The commonest label among the same neighbours",
    "copy": "The text as it is",
    "word table": "The commonest spelling of each word in training",
}


def measure_splits(
    model: Labeler, corpus: LabelledCorpus, splits: Sequence[LabelledSplit], device: torch.device
) -> list[LabelerMetrics]:
    """The model in PyTorch, and the floors, on each of the splits."""
    judged = [judge_network(model, split, corpus.labels, device) for split in splits]
    return measure_judged(judged, corpus, splits)


def measure_judged(
    judged: Sequence[Sequence[Judged]], corpus: LabelledCorpus, splits: Sequence[LabelledSplit]
) -> list[LabelerMetrics]:
    """The same, of a model's answers to the texts of each split."""
    floors = floors_of(corpus)
    found = []
    for own, split in zip(judged, splits, strict=True):
        values = split_values(own, split, corpus.labels)
        model = LabelerMeasurement(name="PyTorch", kind="model", values=values)
        found.append(split_metrics(split, [model, *floors.measure(split)]))
    return found


def measure_floors(corpus: LabelledCorpus) -> list[LabelerMetrics]:
    """The floors alone, on every held-out set."""
    floors = floors_of(corpus)
    return [split_metrics(split, floors.measure(split)) for split in corpus.held_out]


def split_metrics(split: LabelledSplit, measurements: list[LabelerMeasurement]) -> LabelerMetrics:
    """What was measured on a split."""
    return LabelerMetrics(
        split=split.name,
        texts=len(split),
        labels=max(1, sum(len(ids) for ids in split.labels)),
        measurements=measurements,
    )


def table(metrics: Sequence[LabelerMetrics]) -> str:
    """The measurements as lines of text, one part for each held-out set."""
    lines = []
    for found in metrics:
        names = list(dict.fromkeys(name for x in found.measurements for name in x.values))
        wide = max(18, *(len(x.name) + 2 for x in found.measurements))
        lines += [
            f"{found.split}: {found.texts:,} texts, {found.labels:,} labels",
            " " * wide + "".join(f"{name:>{_width(name)}}" for name in names),
        ]
        for x in found.measurements:
            cells = [
                f"{x.values[n]:>{_width(n)}.4f}" if n in x.values else " " * _width(n)
                for n in names
            ]
            lines.append(f"{x.name:<{wide}}{''.join(cells)}".rstrip())
    return "\n".join(lines)


def _width(name: str) -> int:
    return max(11, len(name) + 2)


def in_words(metrics: Sequence[LabelerMetrics], labels: Labels) -> list[str]:
    """How often the model is right on each held-out set, beside the floors."""
    lines = []
    for found in metrics:
        mine = [x for x in found.measurements if x.kind == "model"][-1]
        lines.append(
            f"{_unseen(found, labels)} ({found.split}), it labels {_right(mine, found, labels)}."
        )
        lines += [
            f"{_by(x.name)}: {_right(x, found, labels)}."
            for x in found.measurements
            if x.kind == "baseline"
        ]
    return lines


def _by(floor: str) -> str:
    """A floor in words; if it learned from a part of the texts, their number follows."""
    if floor in _FLOORS:
        return _FLOORS[floor]
    name, space, part = floor.partition(" ")
    return f"{_FLOORS.get(name, f'By {name}')}{space}{part}"


def _unseen(found: LabelerMetrics, labels: Labels) -> str:
    if labels.scope == "character":
        return f"Of {found.labels:,} characters that it has never seen"
    return f"Of {found.texts:,} texts that it has never seen"


def _right(measured: LabelerMeasurement, found: LabelerMetrics, labels: Labels) -> str:
    """The share that is right, with its standard error if the texts are independent."""
    values = measured.values
    share = values["accuracy"]
    if labels.scope == "character":
        whole = values["exact_match"]
        wrong = values.get("word_error_rate")  # of restored texts
        words = "" if wrong is None else f"{100 - 100 * wrong:.1f} % of the words, "
        error = share_error(whole, found.texts)
        return (
            f"{100 * share:.1f} % right, {words}and {100 * whole:.1f} % of the texts entirely "
            f"(± {100 * error:.1f})"
        )
    error = share_error(share, found.texts)
    exactly = "exactly " if labels.several else ""
    return (
        f"{100 * share:.1f} % {exactly}right (± {100 * error:.1f}), with a mean F1 of its labels "
        f"of {100 * values['macro_f1']:.1f} %"
    )


def mistakes(found: Sequence[Judged], labels: Labels) -> list[str]:
    """Lines with the labels that have the lowest F1, and the most frequent mistakes."""
    hits, given, wanted = label_counts(found, labels)
    totals = given + wanted
    missed = [i for i in range(len(labels.names)) if totals[i] > 2 * hits[i]]
    if not missed:
        return ["no mistakes"]
    lines = ["labels with the lowest F1:"]
    worst = sorted(missed, key=lambda i: hits[i] / totals[i])[:_WORST]
    lines += [
        f"  {_shown(labels.names[i]):<14} F1 {2 * hits[i] / totals[i]:.4f}: given "
        f"{_times(given[i])}, {hits[i]:,} of them rightly; {wanted[i]:,} in the data"
        for i in worst
    ]
    if labels.several:
        return lines
    pairs = Counter(
        (int(x.wanted[i]), int(x.found[i])) for x in found for i in (~x.right).nonzero()[0]
    )
    lines.append("most frequent mistakes:")
    for (label, taken), count in pairs.most_common(_WORST):
        share = 100 * count / wanted[label]
        lines.append(
            f"  {_shown(labels.names[label])} taken for {_shown(labels.names[taken])}: "
            f"{_times(count)} ({share:.1f} %)"
        )
    return lines


def _times(count: int) -> str:
    return f"{count:,} {'time' if count == 1 else 'times'}"


def _shown(name: str) -> str:
    """A label for people; the empty one leaves a character as it is."""
    return name or "(none)"
