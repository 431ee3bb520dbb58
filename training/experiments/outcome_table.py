"""The table of a grid: printed for people, and written for programs to the grid's folder."""

import csv
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from training.experiments.grid import Grid
from training.experiments.outcomes import Row, State, rows_of, write_whole

TABLE_FILES = ("table.tsv", "table.json")


def write_tables(grid: Grid) -> None:
    """The table for programs, in the grid's folder: tab-separated, and as JSON."""
    rows = rows_of(grid)
    tsv, document = (grid.folder / name for name in TABLE_FILES)
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    figures = ["best_step", "steps", "parameters", "seconds", "cause", "folder"]
    writer.writerow(["index", *grid.options, "state", f"valid_{grid.select_by}", *figures])
    for row in rows:
        own = asdict(row)
        words = [json.dumps(x) if isinstance(x, list) else x for x in row.values.values()]
        writer.writerow([row.index, *words, row.state, row.measure, *(own[x] for x in figures)])
    write_whole(tsv, stream.getvalue())
    runs = [{k: v for k, v in asdict(row).items() if k != "rank"} for row in rows]
    write_whole(document, json.dumps({"select_by": grid.select_by, "runs": runs}, indent=2) + "\n")


def table(grid: Grid, rows: Sequence[Row]) -> str:
    """The table for people."""
    heads = [
        "",
        *(grid.options[key] for key in grid.varied),
        f"valid {grid.select_by}",
        "at step",
        "steps",
    ]
    lines = [[*heads, "parameters", "seconds", "state"]]
    for row in rows:
        seconds = None if row.seconds is None else round(row.seconds)
        measure = "" if row.measure is None else f"{row.measure:.4f}"
        figures = (row.best_step, row.steps, row.parameters, seconds)
        counts = ["" if x is None else f"{x:,}" for x in figures]
        state = row.state if row.cause is None else f"{row.state}: {row.cause}"
        lines.append(
            [
                str(row.index),
                *(str(row.values[key]) for key in grid.varied),
                measure,
                *counts,
                state,
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def best_of(rows: Sequence[Row], export: str) -> str | None:
    """The command that exports the best of the finished runs."""
    best = next((row for row in rows if row.state == State.FINISHED), None)
    if best is None:
        return None
    return f"the best is run {best.index}; next: {export} {shlex.quote(best.folder)}"


def _aligned(words: Sequence[str], widths: Sequence[int]) -> str:
    """Numbers to the right; the last column, the state, to the left."""
    *figures, state = words
    cells = [word.rjust(width) for word, width in zip(figures, widths, strict=False)]
    return "  ".join([*cells, state]).rstrip()
