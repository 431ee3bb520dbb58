"""`python -m bench.summary`: write the latest results into the tables of the documents.

docs/benchmarks.md gets the whole table, README.md its headlines, each between two markers.
"""

import json
from pathlib import Path
from typing import Any

from bench.report import RESULTS, say

_ROOT = Path(__file__).parents[1]
_BEGIN, _END = "<!-- python -m bench.summary -->\n", "<!-- end -->"
_MODEL = "lstm-2x512"
_SMALL = "lstm-2x128"
PYTORCH = (
    "FastAPI + the request as one PyTorch batch",
    "FastAPI + sorted PyTorch batches",
    "FastAPI + two sorted PyTorch batches at a time",
)
# The commands of the table, and the file by which each of them is dated.
_COMMANDS = {
    "make bench": "engine.json",
    "make bench-peers": "peers.json",
    "python -m bench.as_it_starts": "as-it-starts.json",
    "make bench-overload": "overload.json",
    "make bench-translate": "translate.json",
    "make bench-classify": "classify.json",
}
# Lines above the first row: the machine, an empty line, the table's head and its rule.
_HEAD = 4
# The rows for the README, by the start of their first cell.
_HEADLINES = (
    "int8 step, 2 × 512 units, 1 row",
    "`/generate`, 32 clients, 2 × 512 units",
    "`/generate`, 32 clients, 2 × 128 units, 8 to 256",
    "`/score`, 1,000 lines",
    "`/generate`, 1 client, first token",
    "`/translate`, 512 words",
    "`/translate`, 32 clients",
)


def headlines() -> list[str]:
    """The README's table: the machine and eight rows, as lines of Markdown."""
    whole = lines()
    rows = [x for x in whole[_HEAD:] if x.removeprefix("| ").startswith(_HEADLINES)]
    return whole[:_HEAD] + rows


def lines() -> list[str]:
    """The whole table, as lines of Markdown."""
    engine, peers, translate, classify = (
        _result(x) for x in ("engine.json", "peers.json", "translate.json", "classify.json")
    )
    dates = ", ".join(
        f"`{command}` on {_result(file)['date']}" for command, file in _COMMANDS.items()
    )
    table = [
        f"{engine['machine']}; {dates}.",
        "",
        "| what | measured | against |",
        "| --- | --- | --- |",
    ]
    for batch in (16, 64):
        row = _row(engine, f"{_MODEL}, {batch} rows: engine, int8", "bare step loop, int8")
        table.append(_line(f"engine, 2 × 512 units, {batch} rows that step together", row))
    for rows in ("1 row", "64 rows"):
        row = _row(engine, f"{_MODEL}, {rows}: bare step loop, int8", "bare step loop, fp32")
        table.append(_line(f"int8 step, 2 × 512 units, {rows}", row))
    for name, what in ((_MODEL, "2 × 512"), (_SMALL, "2 × 128")):
        row = _row(peers, f"{name}, 32 clients: Unroll")
        table.append(_line(f"`/generate`, 32 clients, {what} units, 8 to 256 tokens", row))
        row = _row(peers, f"{name}, 32 clients: Unroll, 8 tokens, p50")
        shown = f"`/generate`, 32 clients, {what} units, 8 tokens, p50"
        table.append(_line(shown, row))
    row = _row(peers, f"{_MODEL}: Unroll, one process, scoring 1,000 lines")
    table.append(_line("`/score`, 1,000 lines in one request", row))
    table += _way_of_a_request()
    for start, what in (
        (
            f"{_MODEL}: the same over the bare graph",
            "`/generate`, 1 client, 32 tokens, p50 over the bare graph",
        ),
        (f"{_MODEL}: /generate, 1 client, first token", "`/generate`, 1 client, first token, p50"),
        ("idle server with three models", "idle server with three models, processor"),
    ):
        table.append(_line(what, _row(engine, start, prefix=True)))
    for name, what in (
        ("512 words, beam 5: /translate", "`/translate`, 512 words in one request, beam 5"),
        ("32 clients, one word, beam 5: /translate", "`/translate`, 32 clients, one word, beam 5"),
        ("one client, one word, greedy, p50", "`/translate`, 1 client, one word, greedy, p50"),
    ):
        table.append(_line(what, _row(translate, name)))
    for name, what in (
        ("text-1x128: /classify, 1,000 texts", "`/classify`, 1,000 texts in one request, 1 × 128"),
        ("text-2x128: /classify, 1,000 texts", "`/classify`, 1,000 texts in one request, 2 × 128"),
        ("character-2x128: /tag, 200 texts", "`/tag`, 200 texts in one request, 2 × 128"),
    ):
        beside = [_row(classify, f"{name} in one request: Unroll", x) for x in PYTORCH]
        table.append(_line(f"{what} units both ways", *beside))
    memory = _result("memory.json")["rows"][0]
    table.append(_line("memory that scoring 100 MB of text in requests of 1 MB adds", memory))
    return table


def _way_of_a_request() -> list[str]:
    """What a request costs beside what it must cost, and how the defaults do."""
    requests, efficiency, one, starts, overload = (
        _result(f"{x}.json")
        for x in ("requests", "efficiency", "one-client", "as-it-starts", "overload")
    )
    table = []
    for kind in (
        "/tokenize",
        "/score, 20 characters",
        "/generate, 1 token",
        "/generate, 64 tokens",
    ):
        path, comma, rest = kind.partition(",")
        row = _row(requests, f"{_SMALL}, 32 clients: {kind}: Unroll")
        table.append(
            _line(f"processor time of `{path}`{comma}{rest}, 32 clients, 2 × 128 units", row)
        )
    for name, what in ((_SMALL, "2 × 128"), ("lstm-1x336", "1 × 336"), (_MODEL, "2 × 512")):
        row = _row(efficiency, f"{name}, 32 clients, mixed lengths: Unroll, efficiency")
        table.append(_line(f"efficiency, 32 clients, {what} units, 8 to 256 tokens", row))
    for name, what in ((_SMALL, "2 × 128"), (_MODEL, "2 × 512")):
        row = _row(starts, f"{name}, 32 clients: default settings")
        table.append(
            _line(f"default settings beside the best others, 32 clients, {what} units", row)
        )
    for start, what in (
        (f"{_SMALL}, 1 client, 256 tokens: Unroll", "`/generate`, 1 client, 256 tokens, 2 × 128"),
        (f"{_SMALL}, idle server, first token", "`/generate`, idle server, first token, 2 × 128"),
        ("lstm-1x128, reading, 1 row: int8", "reading one text, int8 graph, 1 × 128"),
        ("lstm-1x128, reading, 1 row: the", "reading one text, the graph that is served, 1 × 128"),
    ):
        table.append(_line(f"{what} units", _row(one, start, prefix=True)))
    for start, what in (
        ("refused in under", "ten times the capacity: refusals in under 20 ms"),
        ("accepted, p99 over", "ten times the capacity: p99 of what is accepted, over its bound"),
    ):
        table.append(_line(what, _row(overload, start, prefix=True)))
    return table


def _result(file: str) -> Any:
    return json.loads((RESULTS / file).read_text())


def _row(document: Any, name: str, against: str | None = None, *, prefix: bool = False) -> Any:
    for row in document["rows"]:
        same = row["name"].startswith(name) if prefix else row["name"] == name
        if same and against in {None, row["against"]}:
            return row
    raise KeyError(name)


def _line(what: str, *rows: Any) -> str:
    """A measurement, and what it is beside each of its peers."""
    value = rows[0]["value"]
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"
    ratios = [f"{row['ratio']:.2g} × {row['against']}" for row in rows if row["ratio"] is not None]
    measured = f"{shown} {rows[0]['unit']}".strip()
    return f"| {what} | {measured} | {'; '.join(ratios)} |"


def updated(document: str, table: list[str]) -> str:
    """The document with this table between its markers. Raises ValueError without markers."""
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the document needs the markers {_BEGIN.strip()} and {_END}")
    return before + begin + "\n".join(table) + "\n" + end + after


def main() -> None:
    """Write both tables, and print the whole one."""
    for name, table in (("README.md", headlines()), ("docs/benchmarks.md", lines())):
        path = _ROOT / name
        path.write_text(updated(path.read_text(), table))
    for line in lines():
        say(line)


if __name__ == "__main__":
    main()
