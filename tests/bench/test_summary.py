"""The README's table is what the results say."""

from bench.summary import lines
from tests.end_to_end.server import ROOT


def test_the_readme_has_the_table_of_the_results() -> None:
    assert "\n".join(lines()) in (ROOT / "README.md").read_text()
