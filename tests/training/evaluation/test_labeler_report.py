"""The figures of a labeler: tables, words, mistakes."""

import numpy as np
import pytest

from service.bundle.labeler import LabelerMeasurement, LabelerMetrics, Labels
from training.evaluation.labeler import judged
from training.evaluation.labeler_report import in_words, mistakes, table

TEXTS = Labels(names=["a", "b"], scope="text", several=False)
SEVERAL = Labels(names=["a", "b"], scope="text", several=True)
TAGS = Labels(names=["", "é"], scope="character", several=False, outside="", applied=True)


def metrics(**more: float) -> LabelerMetrics:
    values = {"loss": 0.25, "accuracy": 0.9, "macro_f1": 0.8, **more}
    return LabelerMetrics.model_validate(
        {
            "split": "test",
            "texts": 1000,
            "labels": 1200,
            "measurements": [
                LabelerMeasurement.model_validate({"name": name, "kind": kind, "values": found})
                for name, kind, found in (
                    ("PyTorch", "model", values),
                    ("majority", "baseline", {**values, "accuracy": 0.5}),
                )
            ],
        }
    )


def test_a_table_has_a_line_for_each_measurement() -> None:
    found = metrics()
    extra = LabelerMeasurement(
        name="a long name of a floor", kind="baseline", values={"ece": 0.125}
    )
    lines = table([found.model_copy(update={"measurements": [*found.measurements, extra]})])
    first, names, model, floor, last = lines.splitlines()
    assert first == "test: 1,000 texts, 1,200 labels"
    assert names.split() == ["loss", "accuracy", "macro_f1", "ece"]
    assert model.split() == ["PyTorch", "0.2500", "0.9000", "0.8000"]
    assert floor.split()[0] == "majority"
    assert last.endswith(" 0.1250")
    assert len(last) == len(names)


RIGHT = {
    "texts": (TEXTS, "texts", "90.0 % right (± 1.0), with a mean F1 of its labels of 80.0 %."),
    "several": (
        SEVERAL,
        "texts",
        "90.0 % exactly right (± 1.0), with a mean F1 of its labels of 80.0 %.",
    ),
    "tags": (TAGS, "characters", "90.0 % right, and 60.0 % of the texts entirely (± 1.5)."),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_the_share_that_is_right_stands_in_words(kind: str) -> None:
    labels, unit, right = RIGHT[kind]
    found, floor = in_words([metrics(exact_match=0.6)], labels)
    count = "1,200" if unit == "characters" else "1,000"
    start = f"Of {count} {unit} that it has never seen (test), it labels "
    assert found == f"{start}{right}"
    assert floor.startswith("Always the commonest label: 50.0 %")


def test_of_restored_texts_the_words_are_counted_as_well() -> None:
    found, _ = in_words([metrics(exact_match=0.6, word_error_rate=0.25)], TAGS)
    assert found.endswith(
        "90.0 % right, 75.0 % of the words, and 60.0 % of the texts entirely (± 1.5)."
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("word table", "The commonest spelling of each word in training"),
        ("naive_bayes (8,000 texts)", "Naive Bayes over character n-grams (8,000 texts)"),
    ],
)
def test_a_baseline_is_told_in_words(name: str, words: str) -> None:
    found = metrics()
    floor = found.measurements[1].model_copy(update={"name": name})
    renamed = found.model_copy(update={"measurements": [found.measurements[0], floor]})
    assert in_words([renamed], TEXTS)[1].startswith(f"{words}: ")


def test_mistakes_begin_with_the_worst_labels_and_count_what_was_taken_for_what() -> None:
    rows = [np.log([0.9, 0.1])] * 3 + [np.log([0.2, 0.8])]
    wanted = [np.array([x], np.int32) for x in (0, 1, 1, 1)]
    assert mistakes(judged(TEXTS, rows, wanted), TEXTS) == [
        "labels with the lowest F1:",
        "  a              F1 0.5000: given 3 times, 1 of them rightly; 1 in the data",
        "  b              F1 0.5000: given 1 time, 1 of them rightly; 3 in the data",
        "most frequent mistakes:",
        "  b taken for a: 2 times (66.7 %)",
    ]


def test_the_empty_label_is_named_and_no_mistakes_are_said_to_be_none() -> None:
    rows = [np.log([[0.9, 0.1], [0.9, 0.1]])]
    lines = mistakes(judged(TAGS, rows, [np.array([0, 1], np.int32)]), TAGS)
    assert lines[-1] == "  é taken for (none): 1 time (100.0 %)"
    assert mistakes(judged(TAGS, rows, [np.array([0, 0], np.int32)]), TAGS) == ["no mistakes"]
