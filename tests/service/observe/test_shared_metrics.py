"""Metrics of several processes, here of several places that one process takes in turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import values

from service.observe import metrics
from service.observe.engine_gauges import EngineGauges
from service.observe.metrics import (
    MAX_MODELS,
    OTHER_MODELS,
    EngineMetrics,
    Metrics,
    forget_own_gauges,
    take_place,
)

# The longest names that a manifest may have.
NAMES = [f"{i:03d}".ljust(64, "x") for i in range(120)]


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


def serve_many(numbers: Metrics, names: list[str]) -> None:
    """Show and use each of these models once."""
    for name in names:
        engine = EngineMetrics(numbers, name)
        engine.admitted(0.1)
        engine.stepped(0.1, 1)
        engine.wrote(0.1, 0.1, 3)
        engine.counted(prompt=2, completion=1, cached=0)
        numbers.show_model(name, "int8", "language_model", "0123456789ab")
    numbers.show_engines({name: EngineGauges(1, 0, 0, 0, 0.0) for name in names})


def tokens_by_label(numbers: Metrics) -> dict[str, float]:
    text = numbers.exposition()[0].decode()
    begin, end = 'unroll_tokens_total{kind="prompt",model="', '"} '
    found = (line.removeprefix(begin) for line in text.splitlines() if line.startswith(begin))
    return {label: float(count) for label, count in (line.split(end) for line in found)}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.usefixtures("folder")
def test_of_many_models_the_first_have_names_and_the_sums_hold(processes: int) -> None:
    numbers = Metrics()  # forked with the names that the models' folder has
    for name in NAMES:
        numbers.label_of(name)
    forget_own_gauges()
    for place in range(processes):
        take_place(place)
        serve_many(numbers, NAMES if place == 0 else NAMES[::-1])
    expected = dict.fromkeys(NAMES[:MAX_MODELS], 2.0 * processes)
    others = len(NAMES) - MAX_MODELS
    assert tokens_by_label(numbers) == {**expected, OTHER_MODELS: 2.0 * processes * others}
    rows = f'unroll_rows{{model="{OTHER_MODELS}",state="running"}} {float(others)}'
    assert processes > 1 or rows in lines(numbers)


def test_the_shared_metrics_of_many_models_fit_what_is_tried_at_the_start(folder: Path) -> None:
    Metrics()
    forget_own_gauges()
    take_place(0)
    numbers = Metrics()
    for route in range(60):
        for status in (200, 422, 429, 503):
            numbers.ended(f"/v2/models/{{name}}/route/{route}", status, 0.1, "queue-full")
    serve_many(numbers, NAMES)
    written = sum(file.stat().st_size for file in folder.glob("*_0.db"))
    assert written <= metrics._SHARED_BYTES
