"""`python -m bench.rooms`: where a server under load spends its time, by thread and by room.

    python -m bench.rooms --seconds 10 --row score

py-spy reads the stacks of the running server a few hundred times a second without ever pausing it,
so the server is as fast as without it. Threads that wait for a request or a lock in Python are
left out, even if the kernel has just woken them. One that waits for Python's own lock inside a C
function counts as working there, so onnxruntime gets a larger share than by the kernel's perf. A
stack that changes while it is read can be torn; the innermost frames, which this counts, are read
first.

A sample belongs to the place of its innermost frame. Frames of the standard library and of small
packages belong to whatever called them. Time inside onnxruntime is `runtime, in onnxruntime`: the
frames of its Python package. What uvloop does by itself, such as reading from sockets, has no
frames of its own and shows as `Runner.run` of asyncio.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.efficiency import generate_posts
from bench.load import mix
from bench.models import WORK, ensure
from bench.plain_clients import connected, posts, texts
from bench.report import machine, say
from bench.requests import CHARS, KINDS, add_settings, described, shape_of
from bench.server import unroll

MIXED = "mixed"  # the load of `bench.efficiency`
_MOST_REQUESTS_PER_S = 3000
_RATE = 250  # samples a second
_MARGIN_S = 2.0  # more load than samples, since py-spy takes a moment to begin
_FUNCTIONS = 15

# Places by the start of a file's path, the first that fits; "" stands for everything else.
PLACES: Mapping[str, str] = {
    "onnxruntime/": "runtime, in onnxruntime",
    "service/runtime/": "runtime, in Python",
    "service/http/": "http/",
    "service/endpoints/": "endpoints/",
    "service/tasks/": "tasks/",
    "service/scheduling/": "scheduling/",
    "service/decoding/": "decoding/",
    "service/observe/": "observe/ with logging and metrics",
    "logging/": "observe/ with logging and metrics",
    "prometheus_client/": "observe/ with logging and metrics",
    "opentelemetry/": "observe/ with logging and metrics",
    "service/bundle/": "bundle/",
    "service/": "rest of service/",
    "asyncio/": "asyncio and uvicorn",
    "uvicorn/": "asyncio and uvicorn",
    "uvloop/": "asyncio and uvicorn",
    "h11/": "h11 or httptools",
    "httptools/": "h11 or httptools",
    "fastapi/": "FastAPI and Starlette",
    "starlette/": "FastAPI and Starlette",
    "pydantic": "pydantic",
    "numpy/": "numpy",
}
_ELSEWHERE = "elsewhere"
_WAITING = {("Condition.wait", "threading.py"), ("EpollSelector.select", "selectors.py")}
_THREAD = re.compile(r"thread \([^)]*\): (.*)")
_FRAME = re.compile(r"(.*) \((.*?)(?::(\d+))?\)")


@dataclass(frozen=True, slots=True)
class Frame:
    """A function that was being called."""

    function: str
    file: str

    @property
    def place(self) -> str | None:
        """The room or library that it belongs to; None for the standard library and the like."""
        return next((x for start, x in PLACES.items() if self.file.startswith(start)), None)

    @property
    def is_own(self) -> bool:
        """Whether it is code of this project."""
        return self.file.startswith("service/")


@dataclass(frozen=True, slots=True)
class Sample:
    """A stack, and how often it was seen."""

    thread: str
    frames: Sequence[Frame]  # the outermost first
    count: int

    @property
    def place(self) -> str:
        """The place of the innermost frame that has one."""
        return next((x.place for x in reversed(self.frames) if x.place), _ELSEWHERE)

    @property
    def own_file(self) -> str:
        """The file of the innermost frame of this project."""
        return next((x.file for x in reversed(self.frames) if x.is_own), _ELSEWHERE)

    @property
    def function(self) -> str:
        """The innermost function."""
        frame = self.frames[-1]
        return f"{frame.function} ({frame.file})"


def main() -> None:
    """Start a server, load it, sample it and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.rooms",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--row", choices=[*KINDS, MIXED], default="score")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--shape", type=shape_of, default=(2, 128), help="such as 2x512")
    parser.add_argument("--seconds", type=float, default=10.0)
    add_settings(parser)
    options = parser.parse_args()
    settings = dict(options.set)
    name = ensure(WORK, *options.shape)
    raw = WORK / "rooms.txt"
    say(
        f"{machine()}; {name}, {options.clients} clients, {options.row}; "
        f"settings: {described(settings)}"
    )
    with unroll(WORK / "models" / name, WORK / "logs" / "rooms.log", **settings) as server:
        url, requests = _load(options.row, name, server.url, options.seconds)
        with (
            connected(url, requests, options.clients) as clients,
            sampling(server.pid, options.seconds, raw),
        ):
            span = clients.span(options.seconds + _MARGIN_S, server.pid)
    found = parsed(raw.read_text())
    say(
        f"{span.answers / span.seconds:,.0f} requests/s, "
        f"{1e6 * span.cpu_s_per_request:,.0f} µs of processor time a request"
    )
    for line in tables(found):
        say(line)


def _load(row: str, name: str, url: str, seconds: float) -> tuple[str, Iterator[bytes]]:
    """Where to send which requests."""
    if row == MIXED:
        requests = mix(round(_MOST_REQUESTS_PER_S * (seconds + _MARGIN_S)))
        return f"{url}/generate", generate_posts(f"{url}/generate", name, requests)
    kind = KINDS[row]
    bodies = (kind.body(name, text) for text in texts(CHARS, 1))
    return f"{url}{kind.path}", posts(f"{url}{kind.path}", bodies)


@contextmanager
def sampling(pid: int, seconds: float, raw: Path) -> Iterator[None]:
    """Sample a process and its descendants while the block runs. Raises RuntimeError."""
    command = [
        str(Path(sys.executable).with_name("py-spy")),
        "record",
        "--nonblocking",
        "--subprocesses",
        "--threads",
    ]
    command += ["--rate", str(_RATE), "--duration", str(max(1, round(seconds)))]
    command += ["--format", "raw", "--output", str(raw), "--pid", str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as sampler:
        yield
        told, _ = sampler.communicate()
    if sampler.returncode:
        raise RuntimeError(told.decode(errors="replace"))


def parsed(raw: str) -> list[Sample]:
    """The samples in py-spy's raw format: `thread (1): name;function (file:line);… count`."""
    samples = []
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        parts = stack.split(";")
        found = [_THREAD.fullmatch(part) for part in parts]
        position = next((i for i, match in enumerate(found) if match), None)
        if position is None or position + 1 == len(parts):
            continue  # a process without a frame of Python
        thread = found[position]
        frames = [_frame_of(part) for part in parts[position + 1 :]]
        if (frames[-1].function, frames[-1].file) in _WAITING:
            continue
        samples.append(Sample(thread_kind(thread[1] if thread else ""), frames, int(count)))
    return samples


def _frame_of(text: str) -> Frame:
    match = _FRAME.fullmatch(text)
    return Frame(match[1], match[2]) if match else Frame(text, "")


def thread_kind(name: str) -> str:
    """What a thread of this name does."""
    if name.startswith("engine-"):
        return "engine"
    return "event loop" if name == "MainThread" else "others"


def tables(samples: Sequence[Sample]) -> list[str]:
    """Shares of all samples by place and thread, by own file, and of the heaviest functions."""
    total = sum(sample.count for sample in samples)
    if not total:
        return ["no samples"]
    threads = [x for x in ("event loop", "engine", "others") if any(y.thread == x for y in samples)]
    by_place = Counter[tuple[str, str]]()
    for sample in samples:
        by_place[sample.place, sample.thread] += sample.count
    places = _counted(samples, lambda sample: sample.place)
    lines = [f"{total:,} samples of threads that did not wait", ""]
    lines.append(f"{'% of the samples':<36}" + "".join(f"{x:>12}" for x in [*threads, "all"]))
    for place, count in [*places.most_common(), ("all", total)]:
        cells = [
            by_place[place, x] if place != "all" else sum(by_place[y, x] for y in places)
            for x in threads
        ]
        lines.append(f"{place:<36}" + "".join(f"{100 * x / total:>12.1f}" for x in [*cells, count]))
    for title, key in (
        ("with all that it calls, by innermost own file", lambda sample: sample.own_file),
        ("heaviest functions, by themselves", lambda sample: sample.function),
    ):
        lines += ["", title]
        for what, count in _counted(samples, key).most_common(_FUNCTIONS):
            lines.append(f"{100 * count / total:>6.1f} %  {what}")
    return lines


def _counted(samples: Sequence[Sample], key: Callable[[Sample], str]) -> Counter[str]:
    counts = Counter[str]()
    for sample in samples:
        counts[key(sample)] += sample.count
    return counts


if __name__ == "__main__":
    main()
