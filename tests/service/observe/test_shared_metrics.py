"""Metrics of several processes, here of several places that one process takes in turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import values

from service.observe import metrics
from service.observe.engine_gauges import EngineGauges
from service.observe.metrics import Metrics, forget_own_gauges, take_place


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(metrics.SHARED_FOLDER, "")
    monkeypatch.setattr(metrics, "_sharing", metrics._Sharing())
    before = values.ValueClass
    (tmp_path / "counter_0.db").write_bytes(b"of an earlier run")
    metrics.share_metrics(tmp_path)
    yield tmp_path
    values.ValueClass = before


def lines(numbers: Metrics) -> set[str]:
    text = numbers.exposition()[0].decode()
    return {line for line in text.splitlines() if not line.startswith("#")}


@pytest.mark.usefixtures("folder")
def test_counters_add_up_and_outlive_a_process_and_gauges_do_not() -> None:
    Metrics()  # the supervisor's
    forget_own_gauges()
    for place in (0, 1, 0):  # the third is the successor of the first
        take_place(place)
        numbers = Metrics()
        numbers.refused("queue-full")
        numbers.ready.set(1)
        numbers.show_model("m", "int8", "language_model", "abc")
        numbers.show_engine("m", EngineGauges(2, 0, 0, 0, 0.0))
    found = lines(numbers)
    assert 'unroll_rejected_total{reason="queue-full"} 3.0' in found
    assert "unroll_ready 1.0" in found
    # Of two processes at a time, and not of three.
    assert 'unroll_rows{model="m",state="running"} 4.0' in found


@pytest.mark.usefixtures("folder")
def test_what_a_process_showed_before_it_ended_is_gone_with_its_successor() -> None:
    numbers = Metrics()
    forget_own_gauges()
    take_place(0)
    numbers.show_model("m", "int8", "language_model", "old")
    numbers.show_engine("m", EngineGauges(2, 0, 0, 0, 0.0))
    take_place(0)
    assert not any("unroll_rows" in line or "old" in line for line in lines(numbers))


@pytest.mark.usefixtures("folder")
def test_models_and_versions_that_are_gone_are_not_shown() -> None:
    numbers = Metrics()
    forget_own_gauges()
    take_place(0)
    for name in ("m", "n"):
        numbers.show_model(name, "int8", "language_model", "old")
        numbers.show_engine(name, EngineGauges(1, 0, 0, 0, 0.0))
    numbers.show_model("m", "int8", "language_model", "new")
    numbers.forget_model("n")
    found = [line for line in lines(numbers) if 'model="' in line]
    assert not [line for line in found if 'model="n"' in line or "old" in line]
    assert [line for line in found if "new" in line]
