"""Send known requests from a node for a while, and compare every answer.

`sending` starts `python -m tests.cluster.load` there, since the test itself is on no node. It reads
a `Plan` as JSON from standard input; after `seconds`, or once its standard input closes, it writes
the `Outcome` of every request as a JSON list.
"""

import asyncio
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from tests.cluster.namespaces import Node

ROOT = Path(__file__).parents[2]
_END_S = 30.0
_ASK = """
import json, sys, urllib.error, urllib.request
url, body, headers = json.loads(sys.argv[1])
request = urllib.request.Request(url, None if body is None else body.encode(), headers)
try:
    answer = urllib.request.urlopen(request, timeout=20)
except urllib.error.HTTPError as error:
    answer = error
except OSError as error:
    print(json.dumps([0, str(error)]))
    sys.exit()
print(json.dumps([answer.status, answer.read().decode()]))
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A request whose answer is known."""

    path: str
    body: str
    answer: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send: `clients` loops, each with one connection, in turn over the cases."""

    urls: list[str]
    cases: list[Case]
    clients: int
    seconds: float
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: when by the clock of `time.monotonic`, and what came."""

    case: int
    start: float
    end: float
    status: int | None  # None if the connection failed
    is_right: bool
    error: str = ""


@contextmanager
def sending(
    node: Node, plan: Plan, folder: Path, *, is_cut: bool = True
) -> Iterator[list[Outcome]]:
    """Send requests from the node; after the block, the list is filled, oldest first.

    They end with the block, or, unless `is_cut`, after the time of the plan.
    """
    outcomes: list[Outcome] = []
    path = folder / "outcomes.json"
    with path.open("w") as output:
        process = node.start(
            [sys.executable, "-m", "tests.cluster.load"],
            env={"PYTHONPATH": str(ROOT)},
            output=output,
            input=subprocess.PIPE,
        )
        if process.stdin is None:
            raise RuntimeError("the process has no standard input")
        process.stdin.write(json.dumps(asdict(plan)) + "\n")
        process.stdin.flush()
        try:
            yield outcomes
        finally:
            if is_cut:
                process.stdin.close()
            process.wait(plan.seconds + plan.timeout_s + _END_S)
            process.stdin.close()
    found = [Outcome(**each) for each in json.loads(path.read_text())]
    outcomes += sorted(found, key=lambda each: each.start)


def ask(
    node: Node, url: str, body: str | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of one answer; the status is 0 if there is none. JSON is posted."""
    said = {"Content-Type": "application/json", **(headers or {})}
    command = [sys.executable, "-c", _ASK, json.dumps([url, body, said])]
    status, text = json.loads(node.run(command, timeout_s=60).stdout)
    return status, text


def plan_of(line: str) -> Plan:
    """The plan that a line of JSON holds."""
    fields = json.loads(line)
    return Plan(**{**fields, "cases": [Case(**each) for each in fields["cases"]]})


async def run(plan: Plan, ended: threading.Event) -> list[Outcome]:
    """Send requests until the time is over or `ended` is set."""
    give_up = time.monotonic() + plan.seconds
    order = itertools.cycle(range(len(plan.cases)))
    timeout = aiohttp.ClientTimeout(total=plan.timeout_s)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:

        async def client(number: int) -> list[Outcome]:
            outcomes = []
            url = plan.urls[number % len(plan.urls)]
            while time.monotonic() < give_up and not ended.is_set():
                case = next(order)
                outcomes.append(await _ask(session, url, case, plan.cases[case]))
                if outcomes[-1].status != 200:
                    await asyncio.sleep(0.05)  # not a flood where nobody listens
            return outcomes

        found = await asyncio.gather(*(client(number) for number in range(plan.clients)))
    return [outcome for each in found for outcome in each]


async def _ask(session: aiohttp.ClientSession, url: str, number: int, case: Case) -> Outcome:
    start, status = time.monotonic(), None
    try:
        headers = {"Content-Type": "application/json", **case.headers}
        async with session.post(url + case.path, data=case.body, headers=headers) as response:
            status = response.status
            text = (await response.read()).decode()
    except (aiohttp.ClientError, TimeoutError) as error:
        return Outcome(number, start, time.monotonic(), status, False, type(error).__name__)
    is_right = known(text) == case.answer
    return Outcome(
        number, start, time.monotonic(), status, is_right, "" if is_right else text[:200]
    )


def known(text: str) -> str:
    """An answer without the two things that depend on more than the request.

    These are the tokens read from a cache, and the comments that keep a quiet stream alive.
    """
    lines = (line for line in text.splitlines(keepends=True) if not line.startswith(":"))
    return re.sub(r'"cached_tokens":\d+', '"cached_tokens":0', "".join(lines))


def main() -> None:
    """Run the plan of standard input."""
    plan = plan_of(sys.stdin.readline())
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=[ended], daemon=True).start()
    outcomes: Sequence[Outcome] = asyncio.run(run(plan, ended))
    sys.stdout.write(json.dumps([asdict(each) for each in outcomes]))


def _wait_for_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


if __name__ == "__main__":
    main()
