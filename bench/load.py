"""Traffic: a fixed mix of requests, sent by so many clients or at such a rate, and what came of it.

Everything goes to the loopback address and is bounded in count and time. The clients share the
machine with the server, so they do as little as they can: keep-alive connections, bodies encoded
beforehand, answers not parsed; what they cost is reported.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np
import psutil

LENGTHS = (8, 16, 32, 64, 256)  # tokens an answer, equally often
MOST_WARM_UP_S = 20.0
_PROMPT_LENGTHS = (8, 40)
_LETTERS = "abcdefghijklmnopqrstuvwxyz     "


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for."""

    prompt: str
    max_tokens: int
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to ask."""

    url: str
    body: Callable[[Request], bytes]
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """When a request went out and came back, in seconds of one clock."""

    request: Request
    start: float
    end: float
    status: int
    retry_after_s: float = 0.0  # for how long the server asks to stay away; 0 where it does not

    @property
    def latency_s(self) -> float:
        """From sending to the last byte."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Run:
    """The answers of a time span, and what it cost."""

    answers: Sequence[Answer]
    begin: float
    end: float
    server_cpu_s: float
    client_cpu_s: float
    server_rss_bytes: int

    @property
    def good(self) -> list[Answer]:
        """Those with an answer."""
        return [x for x in self.answers if x.status == 200]

    @property
    def refused(self) -> int:
        """Those that were turned away."""
        return sum(x.status == 429 for x in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of the span. A request that crosses an end of it counts with its share inside."""
        total = 0.0
        for answer in self.good:
            inside = min(answer.end, self.end) - max(answer.start, self.begin)
            if inside > 0:
                total += answer.request.max_tokens * inside / answer.latency_s
        return total / (self.end - self.begin)

    def latencies_s(self, max_tokens: int | None = None) -> list[float]:
        """Of the requests that ended in the span, of one length or of all."""
        return [
            x.latency_s
            for x in self.good
            if self.begin <= x.end <= self.end and max_tokens in {None, x.request.max_tokens}
        ]

    def cpu_s_per_1000_tokens(self) -> float:
        """Of the server."""
        return 1000 * self.server_cpu_s / max(1.0, self.tokens_per_s * (self.end - self.begin))

    def client_cores(self) -> float:
        """Processors that the clients kept busy."""
        return self.client_cpu_s / (self.end - self.begin)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed (nearest rank); NaN without values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = max(1, int(np.ceil(percent / 100.0 * len(ordered))))
    return ordered[rank - 1]


def mix(count: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Request]:
    """A fixed list of requests; every length equally often, in random order."""
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
    """Times of a Poisson process."""
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
    """So many clients, each sending its next request when the last was answered.

    One that is refused stays away for as long as the refusal says (Retry-After).

    All begin at once, so the first answers come sooner than those of a steady state: the warm-up
    lasts until every client has had one, `MOST_WARM_UP_S` at most. Without that a server whose
    queue is longer than the span seemed up to 1.9 times as fast and answers 5 times as soon.
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
    """Requests at random times, whether or not the ones before were answered."""
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
    """Sends a request and notes what came of it."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        self._session = session
        self._endpoint = endpoint
        self._headers = {"Content-Type": endpoint.content_type}
        self.answers: list[Answer] = []
        self.until = float("inf")  # no request goes out after it

    async def __call__(self, request: Request) -> float:
        """Seconds that the server asks to stay away for; 0 where it answered."""
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
        memory = rss_bytes(server_pid)
        # What is under way counts with its share; it ends before the next measurement begins.
        await asyncio.gather(*tasks)
    return Run(
        ask.answers, begin, end, server_after - server_before, client_after - client_before, memory
    )


def cpu_s(pid: int | None) -> float:
    """Processor time of a process and its descendants."""
    times = [process.cpu_times() for process in _tree(pid)]
    return float(sum(x.user + x.system for x in times))


def rss_bytes(pid: int | None) -> int:
    """Resident memory of a process and its descendants; what they share counts for each."""
    return sum(p.memory_info().rss for p in _tree(pid))


def _tree(pid: int | None) -> list[psutil.Process]:
    if pid is None:
        return []
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
