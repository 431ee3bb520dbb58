"""The documents' tables are what the results say."""

import json
from typing import Any

from bench.report import RESULTS
from bench.summary import headlines, lines, updated
from tests.end_to_end.server import ROOT

README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "docs/benchmarks.md").read_text()
RESULTS_PAGE = (ROOT / "docs/results.md").read_text()


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())["rows"]


def test_the_benchmarks_page_has_the_whole_table() -> None:
    assert updated(BENCHMARKS, lines()) == BENCHMARKS


def test_the_readme_has_eight_rows_of_it() -> None:
    assert updated(README, headlines()) == README
    assert len(headlines()) == len(lines()[:4]) + 8
    assert set(headlines()) < set(lines())


def test_a_table_that_is_not_that_of_the_results_is_found() -> None:
    changed = README.replace("tokens/s", "tokens/h")
    assert updated(changed, headlines()) != changed


def test_the_results_page_has_what_attention_buys() -> None:
    for row in result("attention.json"):
        assert f"| {row['name']} | {100 * row['exact_match']:.1f} % |" in RESULTS_PAGE


def test_the_results_page_has_the_error_rates_of_every_language_and_their_mean() -> None:
    rows = result("g2p.json")
    keys = ("word_error_rate", "baseline_word_error_rate", "phoneme_error_rate")
    for key in keys:
        rates = [row[key] for row in rows]
        cells = " | ".join(f"{rate:.2f}" for rate in rates)
        mean = f"{sum(rates) / len(rates):.2f}"
        assert (
            f"| {cells} | {mean} |" in RESULTS_PAGE or f"| {cells} | **{mean}** |" in RESULTS_PAGE
        )
