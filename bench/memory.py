"""`python -m bench.memory`: measure how much resident memory scoring a long text adds.

Sends 100 MB of text in requests of 1 MB, each a list of lines, like a client that sends a file in
chunks.
"""

import argparse

from bench.http import post, text_of
from bench.load import memory_bytes
from bench.models import WORK, ensure
from bench.report import RESULTS, Row, machine, say, table, write
from bench.server import unroll

_LINE_CHARS = 1024
_LINES = 1024
_WARM_UP_REQUESTS = 1


def main() -> None:
    """Measure, print and write `memory.json`."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    options = parser.parse_args()
    say(machine())
    name = ensure(WORK, 1, 128)
    texts = [text_of(_LINE_CHARS, i) for i in range(_LINES)]
    body = {"model": name, "text": texts}
    with unroll(WORK / "models" / name, WORK / "logs" / "memory.log") as server:
        idle = memory_bytes(server.pid)
        highest = first = 0
        for number in range(options.megabytes):
            post(f"{server.url}/score", body)
            highest = max(highest, memory_bytes(server.pid))
            if number < _WARM_UP_REQUESTS:
                first = memory_bytes(server.pid)
    label = f"{name}: memory added by scoring {options.megabytes} MB in requests of 1 MB"
    rows = [
        Row(label, (highest - idle) / 2**20, "MiB"),
        Row(f"{name}: of that, after the first request", (highest - first) / 2**20, "MiB"),
    ]
    say(table(rows))
    write("memory.json", "memory that a long text adds", rows)
    say(f"written: {RESULTS / 'memory.json'}")


if __name__ == "__main__":
    main()
