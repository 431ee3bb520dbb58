"""Results of a benchmark: rows printed as a table and written as JSON."""

import datetime
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from training.loop.cpus import usable_cpus

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, with its ratio to another figure of the same run."""

    name: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None  # how many times better than `against`


def write(
    file: str, title: str, rows: Sequence[Row], versions: Mapping[str, str] | None = None
) -> None:
    """Write the rows to bench/results; `versions` are those of packages in other environments."""
    document = {
        "title": title,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": {x: version(x) for x in ("onnxruntime", "numpy", "fastapi", "uvicorn")}
        | {"python": platform.python_version(), **(versions or {})},
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / file).write_text(json.dumps(document, indent=1) + "\n")


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    lines = []
    for row in rows:
        line = f"{row.name:<58}{row.value:>12,.4g} {row.unit:<14}"
        if row.ratio is not None:
            line += f"{row.ratio:>9.3g} x  {row.against}"
        elif row.against is not None:
            line += f"  {row.against}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def machine() -> str:
    """The processor, and the number of cores that this process may use."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {usable_cpus()} cores, {platform.system()}"


def say(line: str) -> None:
    """Print one line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
