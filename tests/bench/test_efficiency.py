"""Efficiency: what is read from the metrics, and the arithmetic of a round."""

import pytest

from bench.efficiency import Round, Work, between, parsed, rows_of
from bench.plain_clients import Span
from service.observe.metrics import EngineMetrics, Metrics


def test_the_work_is_what_the_metrics_of_the_service_count() -> None:
    metrics = Metrics()
    for model in ("one", "two"):
        engine = EngineMetrics(metrics, model)
        engine.stepped(0.001, rows=4)
        engine.stepped(0.001, rows=7)
        engine.counted(prompt=20, completion=64, cached=3)
    work = parsed(metrics.exposition()[0].decode())
    assert work == Work(steps=4, stepped_rows=22, tokens=2 * (20 - 3 + 64))
    assert work.rows == 5.5
    assert work - Work(1, 2, 3) == Work(3, 20, 159)


def test_between_two_numbers_of_rows_the_cost_is_on_a_line() -> None:
    costs = {4: 40.0, 5: 60.0, 6: 61.0}
    assert between(costs.__getitem__, 4.25) == 45.0
    assert between(costs.__getitem__, 5.0) == 60.0


def test_efficiency_is_what_graph_and_route_need_of_the_processor_time() -> None:
    def rounds(cpu_s: float) -> list[Round]:
        span = Span(1.0, cpu_s, 0.1, [0.1] * 1000)
        return [Round(span, Work(100, 1600, 64_000), graph_s=0.3, route_s=0.1)]

    rows = {row.name: row for row in rows_of("here", {"ours": rounds(0.8), "other": rounds(1.6)})}
    ours = rows["here: ours, efficiency"]
    assert ours.value == pytest.approx(0.5)
    assert ours.against == "other"
    assert ours.ratio == pytest.approx(2.0)
    assert rows["here: other, efficiency"].value == pytest.approx(0.25)
    assert rows["here: ours, the bare graph"].value == pytest.approx(300)
    assert rows["here: ours, an empty route"].value == pytest.approx(100)
    assert rows["here: ours, rows"].value == 16
    (alone,) = (x for x in rows_of("here", {"ours": rounds(0.8)}) if "efficiency" in x.name)
    assert alone.ratio is None
