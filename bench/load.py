"""A load generator: closed loops (a number of clients) and open loops (a rate), with latencies.

All requests go to the loopback address, with limits on their number and time. The clients share the
machine with the server, so they do as little as possible: keep-alive connections, bodies encoded
beforehand, answers not parsed. Their own processor time is reported.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np
import psutil

LENGTHS = (8, 16, 32, 64, 256)  # tokens of an answer, each equally often
MOST_WARM_UP_S = 20.0
_PROMPT_LENGTHS = (8, 40)
_LETTERS = "abcdefghijklmnopqrstuvwxyz     "


@dataclass(frozen=True, slots=True)
class Request:
    """A text that a client requests."""

    prompt: str
    max_tokens: int
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The URL to post to, and the body for a request."""

    url: str
    body: Callable[[Request], bytes]
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """The times of one request (seconds of one clock) and its status."""

    request: Request
    start: float
    end: float
    status: int
    retry_after_s: float = 0.0  # from Retry-After; 0 without one

    @property
    def latency_s(self) -> float:
        """The time from sending to the last byte."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Run:
    """The answers in a time span, and the processor time and memory used."""

    answers: Sequence[Answer]
    begin: float
    end: float
    server_cpu_s: float
    client_cpu_s: float
    server_memory_bytes: int

    @property
    def good(self) -> list[Answer]:
        """The answers with status 200."""
        return [x for x in self.answers if x.status == 200]

    @property
    def refused(self) -> int:
        """The number of answers with status 429."""
        return sum(x.status == 429 for x in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second in the span. A request partly outside counts in proportion."""
        total = 0.0
        for answer in self.good:
            inside = min(answer.end, self.end) - max(answer.start, self.begin)
            if inside > 0:
                total += answer.request.max_tokens * inside / answer.latency_s
        return total / (self.end - self.begin)

    def latencies_s(self, max_tokens: int | None = None) -> list[float]:
        """Latencies of the requests that ended in the span, of one length or of all."""
        return [
            x.latency_s
            for x in self.good
            if self.begin <= x.end <= self.end and max_tokens in {None, x.request.max_tokens}
        ]

    def cpu_s_per_1000_tokens(self) -> float:
        """The server's processor time for 1,000 tokens."""
        return 1000 * self.server_cpu_s / max(1.0, self.tokens_per_s * (self.end - self.begin))

    def client_cores(self) -> float:
        """The number of processor cores that the clients kept busy."""
        return self.client_cpu_s / (self.end - self.begin)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: `percent` of the values are at most this; NaN without values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = max(1, int(np.ceil(percent / 100.0 * len(ordered))))
    return ordered[rank - 1]


def mix(count: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Request]:
    """A reproducible list of requests, with every length equally often and in random order."""
    rng = np.random.default_rng(seed)
    chosen = np.resize(np.array(lengths), count)
    rng.shuffle(chosen)
    requests = []
    for number, max_tokens in enumerate(chosen.tolist()):
        size = int(rng.integers(*_PROMPT_LENGTHS, endpoint=True))
        prompt = "".join(rng.choice(list(_LETTERS), size))
        requests.append(Request(prompt, max_tokens, seed=number))
    return requests


def arrivals(rate_per_s: float, duration_s: float, seed: int = 0) -> list[float]:
    """Arrival times of a Poisson process, in seconds."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1.0 / rate_per_s, size=int(rate_per_s * duration_s * 2) + 16)
    times = np.cumsum(gaps)
    return [float(x) for x in times[times < duration_s]]


def closed_loop(
    endpoint: Endpoint,
    requests: Sequence[Request],
    *,
    clients: int,
    duration_s: float,
    warm_up_s: float = 1.0,
    server_pid: int | None = None,
) -> Run:
    """A number of clients, each of which sends its next request when the last one was answered.

    A client that gets 429 waits for as long as Retry-After says.

    All clients begin at once, so the first answers are faster than in the steady state. The warm-up
    therefore lasts until every client has had an answer, for at most `MOST_WARM_UP_S`. Without it,
    a server whose queue was longer than the span looked up to 1.9 times as fast, with latencies
    down to a fifth.
    """
    answered: set[int] = set()
    warm = asyncio.Event()

    async def client(number: int, ask: "_Asker") -> None:
        position = number
        while time.perf_counter() < ask.until:
            retry_after_s = await ask(requests[position % len(requests)])
            answered.add(number)
            if len(answered) == clients:
                warm.set()
            position += clients
            if retry_after_s and time.perf_counter() < ask.until:
                await asyncio.sleep(retry_after_s)

    def clients_of(ask: "_Asker") -> list[asyncio.Task[None]]:
        return [asyncio.create_task(client(i, ask)) for i in range(clients)]

    drive = _drive(
        endpoint,
        clients_of,
        warm,
        duration_s=duration_s,
        warm_up_s=warm_up_s,
        server_pid=server_pid,
    )
    return asyncio.run(drive)


def open_loop(
    endpoint: Endpoint,
    requests: Sequence[Request],
    *,
    rate_per_s: float,
    duration_s: float,
    warm_up_s: float = 1.0,
    server_pid: int | None = None,
) -> Run:
    """Requests at random times, whether or not earlier ones have been answered."""
    times = arrivals(rate_per_s, duration_s + warm_up_s)

    async def one(at: float, request: Request, ask: "_Asker") -> None:
        await asyncio.sleep(at)
        await ask(request)

    def tasks_of(ask: "_Asker") -> list[asyncio.Task[None]]:
        return [
            asyncio.create_task(one(at, requests[i % len(requests)], ask))
            for i, at in enumerate(times)
        ]

    warm = asyncio.Event()
    warm.set()
    drive = _drive(
        endpoint, tasks_of, warm, duration_s=duration_s, warm_up_s=warm_up_s, server_pid=server_pid
    )
    return asyncio.run(drive)


class _Asker:
    """Sends requests and records their answers."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        self._session = session
        self._endpoint = endpoint
        self._headers = {"Content-Type": endpoint.content_type}
        self.answers: list[Answer] = []
        self.until = float("inf")  # no request is sent after this time

    async def __call__(self, request: Request) -> float:
        """Send a request; the seconds in Retry-After, or 0 without one."""
        body = self._endpoint.body(request)
        start = time.perf_counter()
        async with self._session.post(self._endpoint.url, data=body, headers=self._headers) as got:
            await got.read()
            status = got.status
            retry_after_s = float(got.headers.get("Retry-After", 0.0))
        self.answers.append(Answer(request, start, time.perf_counter(), status, retry_after_s))
        return retry_after_s


async def _drive(
    endpoint: Endpoint,
    tasks_of: Callable[[_Asker], list[asyncio.Task[None]]],
    warm: asyncio.Event,
    *,
    duration_s: float,
    warm_up_s: float,
    server_pid: int | None,
) -> Run:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        ask = _Asker(session, endpoint)
        latest = time.perf_counter() + MOST_WARM_UP_S
        tasks = tasks_of(ask)
        await asyncio.sleep(warm_up_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(warm.wait(), latest - time.perf_counter())
        begin = time.perf_counter()
        ask.until = begin + duration_s
        server_before, client_before = cpu_s(server_pid), time.process_time()
        await asyncio.sleep(max(0.0, begin + duration_s - time.perf_counter()))
        end = time.perf_counter()
        server_after, client_after = cpu_s(server_pid), time.process_time()
        memory = memory_bytes(server_pid)
        # Requests still open count in proportion; wait for them before the next measurement.
        await asyncio.gather(*tasks)
    return Run(
        ask.answers, begin, end, server_after - server_before, client_after - client_before, memory
    )


def cpu_s(pid: int | None) -> float:
    """Processor time of a process and its descendants."""
    # The clock of a process counts nanoseconds, its times in /proc hundredths of a second. Its
    # number is that of clock_getcpuclockid(3) in Linux.
    return sum(time.clock_gettime(~process.pid << 3 | 2) for process in _tree(pid))


def memory_bytes(pid: int | None) -> int:
    """Resident memory of a process and its descendants; of shared pages, each has its part (PSS).

    Several processes of a server share the models that their parent has opened.
    """
    return sum(p.memory_full_info().pss for p in _tree(pid))


def workers_of(pid: int) -> list[psutil.Process]:
    """A server's process and its workers: those below it that are forks of it.

    Others come and go, such as the one in which a new bundle is tried.
    """
    command = psutil.Process(pid).cmdline()
    found = []
    for process in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline() == command:
                found.append(process)
    return found


def _tree(pid: int | None) -> list[psutil.Process]:
    if pid is None:
        return []
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
