"""The benchmark of mixtures runs, and its rows are of one text."""

import pytest

from bench.mixture import table
from tests.training.helpers import split_of, tiny_model

TEXT = [4, 5, 6, 7, 4, 5, 6, 8, 9, 4, 5, 6, 10, 7]


def test_a_row_for_each_way_to_mix() -> None:
    train, fitting, held_out = (split_of([TEXT * n]) for n in (20, 6, 4))
    head, *rows, calibration = table(tiny_model(), train, fitting, held_out, 3)
    assert "nats" in head
    names = ["network", "temperature", "3-gram", "mixture, weight", "mixture, a weight", "all"]
    assert all(row.startswith(name) for row, name in zip(rows, names, strict=True))
    nats = [float(row.split()[-2]) for row in rows]
    assert min(nats[2:]) < nats[0]  # the n-gram has counted the text
    assert float(calibration.split()[-1]) == pytest.approx(1.0, abs=0.5)  # little text: a prior


def test_several_documents_are_refused() -> None:
    split = split_of([TEXT, TEXT])
    with pytest.raises(ValueError, match="one document"):
        table(tiny_model(), split, split, split, 3)
