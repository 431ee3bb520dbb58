"""`python -m bench.side_by_side`: compare Unroll with other ways to serve the same weights.

For each model, all servers run at the same time and take turns under the same load, round after
round, so that other work on the machine affects all of them. A ratio is the median of the ratios of
the rounds. Before anything is timed, each peer must write the same greedy texts as Unroll.
"""

import argparse
import json
import signal
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.environments import environment_of, pins_of, python_of
from bench.http import generate_endpoint, post, text_of
from bench.load import LENGTHS, Endpoint, Request, Run, closed_loop, mix, open_loop, percentile
from bench.models import SHAPES, WORK, ensure, name_of
from bench.peers.clients import PEERS, Peer
from bench.report import RESULTS, Row, machine, say, table, write
from bench.server import Server, free_port, running, unroll
from service.runtime.cpus import usable_cpus

UNROLL = "Unroll"  # one process for each processor
UNROLL_ALONE = "Unroll, one process"
UNROLL_FP32 = "Unroll, one process, fp32"
OURS: Mapping[str, Mapping[str, object]] = {
    UNROLL: {"workers": usable_cpus()},
    UNROLL_ALONE: {"workers": 1},
    UNROLL_FP32: {"workers": 1, "precision": "fp32"},
}
# With more clients, a server that decodes each request by itself only makes them wait.
MOST_CLIENTS_OF_A_LOOP = 32
TITLE = "Unroll and its peers on the same weights"
SCORE_TOLERANCE = 1e-4  # nats a character, since both are sums in single precision
MAIN_MODELS = ((2, 512), (2, 128))
OTHER_MODELS = ((1, 128), (1, 256), (2, 256), (1, 512), (1, 1024), (2, 1024))
CLIENTS = (32, 1, 8, 128)
# Lengths with the same mean of 64 tokens and a growing spread.
SPREADS: Mapping[str, tuple[int, ...]] = {
    "all 64": (64,),
    "32 and 96": (32, 96),
    "8 and 120": (8, 120),
    "8 and, one in five, 288": (8, 8, 8, 8, 288),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A running server and how to send requests to it."""

    label: str
    batches: bool
    server: Server
    endpoint: Endpoint
    text: Callable[[bytes], str] | None  # None for Unroll
    # Seconds for a list of texts, and their log-probabilities.
    score: Callable[[Sequence[str]], tuple[float, list[float]]] | None


def main() -> None:
    """Measure, print and write `peers.json`."""
    parser = argparse.ArgumentParser(prog="python -m bench.side_by_side", description=__doc__)
    parser.add_argument("--only", default=",".join(PEERS), help="peers, separated by commas")
    parser.add_argument("--models", help="models, separated by commas, such as lstm-2x512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each turn")
    parser.add_argument("--quick", action="store_true", help="one model, and 32 clients only")
    options = parser.parse_args()
    peers = [PEERS[name] for name in options.only.split(",")]
    wanted = options.models.split(",") if options.models else [name_of(*x) for x in SHAPES]
    if unknown := set(wanted) - {name_of(*x) for x in SHAPES}:
        parser.error(f"no such models: {', '.join(sorted(unknown))}")
    main_models = [x for x in MAIN_MODELS if name_of(*x) in wanted]
    if not main_models:
        parser.error("--models needs one of lstm-2x512 and lstm-2x128: it ranks the peers")
    for peer in peers:
        say(f"environment of {peer.label}: {python_of(peer.name, WORK)}")
    say(f"{machine()}; {options.rounds} rounds of {options.seconds:g} s")
    # A signal ends the servers as well, and the results so far are kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows: list[Row] = []
    bench = Bench(peers, options.rounds, options.seconds)
    for shape in main_models[:1] if options.quick else main_models:
        for part in bench.main_rows(shape, (32,) if options.quick else CLIENTS):
            say(table(part))
            rows += part
            write("peers.json", TITLE, rows, versions_of(peers))
    if not options.quick:
        for shape in (x for x in OTHER_MODELS if name_of(*x) in wanted):
            part = bench.other_rows(shape)
            say(table(part))
            rows += part
            write("peers.json", TITLE, rows, versions_of(peers))
    say(f"written: {RESULTS / 'peers.json'}")


class Bench:
    """A run of the benchmark: its peers, rounds and turns."""

    def __init__(self, peers: Sequence[Peer], rounds: int, seconds: float) -> None:
        self._peers = list(peers)
        self._rounds = rounds
        self._seconds = seconds
        self._mixes = 0
        self._best: list[str] = []  # labels of the fastest peers, set by the first model

    def main_rows(self, shape: tuple[int, int], clients: Sequence[int]) -> Iterator[list[Row]]:
        """Measure everything for one model."""
        name = ensure(WORK, *shape)
        with self._subjects(name, self._peers) as subjects:
            _check_greedy(subjects)
            _check_scores(subjects)
            for count in clients:
                label = f"{name}, {count} client{'s' * (count > 1)}"
                able = [x for x in subjects if x.batches or count <= MOST_CLIENTS_OF_A_LOOP]
                runs = self._turns(able, LENGTHS, clients=count)
                if count == 32:
                    self._rank(runs)
                yield self._run_rows(label, able, runs)
            yield self._first_tokens(name, subjects)
            yield self._scores(name, subjects)
            chosen = [x for x in subjects if x.label == UNROLL or x.label in self._best]
            yield self._spreads(name, chosen)
            yield self._open_loops(name, chosen)

    def other_rows(self, shape: tuple[int, int]) -> list[Row]:
        """Measure one more size, with the two fastest peers only."""
        name = ensure(WORK, *shape)
        peers = [x for x in self._peers if x.label in self._best]
        with self._subjects(name, peers) as subjects:
            _check_greedy(subjects)
            timed = [x for x in subjects if x.label not in {UNROLL_ALONE, UNROLL_FP32}]
            runs = self._turns(timed, LENGTHS, clients=32)
            return self._run_rows(f"{name}, 32 clients", timed, runs)

    @contextmanager
    def _subjects(self, name: str, peers: Sequence[Peer]) -> Iterator[list[Subject]]:
        models, logs = WORK / "models" / name, WORK / "logs"
        with ExitStack() as stack:
            subjects = []
            for number, (label, settings) in enumerate(OURS.items()):
                log = logs / f"unroll-{number}.log"
                server = stack.enter_context(unroll(models, log, **settings))
                subjects.append(_unroll_subject(label, name, server))
            for peer in peers:
                port = free_port()
                command = [
                    str(python_of(peer.name, WORK)),
                    str(Path(__file__).parent / "peers" / peer.name / "server.py"),
                    "--weights",
                    str((WORK / "weights" / name).resolve()),
                    "--port",
                    str(port),
                ]
                environment = environment_of(peer.name)
                log = logs / f"{peer.name}.log"
                server = stack.enter_context(
                    running(command, port, peer.ready_path, log, environment)
                )
                subjects.append(_peer_subject(peer, server))
            yield subjects

    def _turns(
        self, subjects: Sequence[Subject], lengths: Sequence[int], *, clients: int
    ) -> dict[str, list[Run]]:
        runs: dict[str, list[Run]] = {subject.label: [] for subject in subjects}
        for _ in range(self._rounds):
            # New prompts in every round, so that Unroll's prefix cache does not help.
            self._mixes += 1
            for subject in subjects:
                run = closed_loop(
                    subject.endpoint,
                    mix(4096, lengths, seed=self._mixes),
                    clients=clients,
                    duration_s=self._seconds,
                    server_pid=subject.server.pid,
                )
                _check_answers(subject, run)
                runs[subject.label].append(run)
        return runs

    def _rank(self, runs: Mapping[str, Sequence[Run]]) -> None:
        theirs = [label for label in runs if label not in OURS]
        theirs.sort(key=lambda label: -_median(x.tokens_per_s for x in runs[label]))
        # The fastest of all, and the fastest that batches.
        batching = [
            label for label in theirs if any(p.label == label and p.batches for p in self._peers)
        ]
        self._best = list(dict.fromkeys([*theirs[:1], *batching[:1], *theirs[1:2]]))[:2]

    def _run_rows(
        self, where: str, subjects: Sequence[Subject], runs: Mapping[str, Sequence[Run]]
    ) -> list[Row]:
        """Speeds, latencies, processor and memory of every subject under one load."""
        rows = []
        for subject in subjects:
            mine = runs[subject.label]
            label = f"{where}: {subject.label}"
            speed = _median(run.tokens_per_s for run in mine)
            rows.append(Row(label, speed, "tokens/s", *self._against_best(subject, subjects, runs)))
            for length in LENGTHS:
                latencies = [x for run in mine for x in run.latencies_s(length)]
                for percent in (50, 99):
                    value = 1000 * percentile(latencies, percent)
                    against: tuple[str | None, float | None] = (None, None)
                    if subject.label == UNROLL and percent == 50 and length == LENGTHS[0]:
                        against = self._quicker_than_batching(subjects, runs, length)
                    rows.append(Row(f"{label}, {length} tokens, p{percent}", value, "ms", *against))
            cost = _median(run.cpu_s_per_1000_tokens() for run in mine)
            rows.append(Row(f"{label}, processor", cost, "s/1000 tokens"))
            clients_cost = _median(run.client_cores() for run in mine)
            rows.append(Row(f"{label}, processor of the clients", clients_cost, "cores"))
            memory = max(run.server_memory_bytes for run in mine) / 2**20
            rows.append(Row(f"{label}, resident memory", memory, "MiB"))
        return rows

    def _against_best(
        self, subject: Subject, subjects: Sequence[Subject], runs: Mapping[str, Sequence[Run]]
    ) -> tuple[str | None, float | None]:
        if subject.label not in {UNROLL, UNROLL_ALONE}:
            return None, None
        theirs = [x.label for x in subjects if x.label not in OURS]
        best = max(theirs, key=lambda label: _median(x.tokens_per_s for x in runs[label]))
        pairs = zip(runs[subject.label], runs[best], strict=True)
        return best, _median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs)

    def _quicker_than_batching(
        self, subjects: Sequence[Subject], runs: Mapping[str, Sequence[Run]], length: int
    ) -> tuple[str | None, float | None]:
        def p50(run: Run) -> float:
            return percentile(run.latencies_s(length), 50)

        theirs = [x.label for x in subjects if x.batches and x.label not in OURS]
        if not theirs:
            return None, None
        best = min(theirs, key=lambda label: _median(map(p50, runs[label])))
        pairs = zip(runs[UNROLL], runs[best], strict=True)
        return best, _median(p50(other) / p50(ours) for ours, other in pairs)

    def _first_tokens(self, name: str, subjects: Sequence[Subject]) -> list[Row]:
        """The latency of a one-token answer from an idle server: the time to the first token."""
        runs = self._turns(subjects, (1,), clients=1)
        return [
            Row(
                f"{name}, 1 client: {label}, first token, p50",
                1000 * percentile([x for run in mine for x in run.latencies_s()], 50),
                "ms",
            )
            for label, mine in runs.items()
        ]

    def _scores(self, name: str, subjects: Sequence[Subject]) -> list[Row]:
        """1,000 lines in one request."""
        seconds: dict[str, list[float]] = {x.label: [] for x in subjects if x.score is not None}
        for number in range(self._rounds):
            lines = [text_of(20 + i % 60, 1000 * number + i) for i in range(1000)]
            for subject in subjects:
                if subject.score is not None:
                    seconds[subject.label].append(subject.score(lines)[0])
        theirs = [label for label in seconds if label not in OURS]
        best = min(theirs, key=lambda label: _median(seconds[label]), default=None)
        rows = []
        for label, mine in seconds.items():
            against: tuple[str | None, float | None] = (None, None)
            if label in {UNROLL, UNROLL_ALONE} and best is not None:
                pairs = zip(seconds[best], mine, strict=True)
                against = best, _median(other / ours for other, ours in pairs)
            speed = 1000 / statistics.median(mine)
            rows.append(Row(f"{name}: {label}, scoring 1,000 lines", speed, "lines/s", *against))
        return rows

    def _spreads(self, name: str, subjects: Sequence[Subject]) -> list[Row]:
        rows = []
        for spread, lengths in SPREADS.items():
            runs = self._turns(subjects, lengths, clients=32)
            for subject in subjects:
                speed = _median(run.tokens_per_s for run in runs[subject.label])
                against = self._against_best(subject, subjects, runs)
                label = f"{name}, 32 clients, lengths {spread}: {subject.label}"
                rows.append(Row(label, speed, "tokens/s", *against))
        return rows

    def _open_loops(self, name: str, subjects: Sequence[Subject]) -> list[Row]:
        """Requests at random times, at 60 % of the capacity of each subject."""
        mean = statistics.mean(LENGTHS)
        runs = self._turns(subjects, LENGTHS, clients=32)
        rows = []
        for paced in subjects:
            capacity = _median(run.tokens_per_s for run in runs[paced.label])
            rate = 0.6 * capacity / mean
            for subject in subjects:
                if _median(x.tokens_per_s for x in runs[subject.label]) < 0.9 * capacity:
                    continue  # above its capacity, its queue would only grow
                self._mixes += 1
                run = open_loop(
                    subject.endpoint,
                    mix(4096, seed=self._mixes),
                    rate_per_s=rate,
                    duration_s=self._seconds,
                    server_pid=subject.server.pid,
                )
                _check_answers(subject, run)
                label = f"{name}, open loop at {rate:.0f} requests/s: {subject.label}"
                rows.append(Row(label, run.tokens_per_s, "tokens/s"))
                for percent in (50, 99):
                    value = 1000 * percentile(run.latencies_s(LENGTHS[0]), percent)
                    rows.append(Row(f"{label}, {LENGTHS[0]} tokens, p{percent}", value, "ms"))
        return rows


def versions_of(peers: Sequence[Peer]) -> dict[str, str]:
    """The main packages of each peer, from its pinned requirements."""
    return {peer.label: ", ".join(pins_of(peer.name)) for peer in peers}


def _unroll_subject(label: str, name: str, server: Server) -> Subject:
    def score(texts: Sequence[str]) -> tuple[float, list[float]]:
        seconds, answer = post(f"{server.url}/score", {"model": name, "text": list(texts)})
        return seconds, [result["logprob"] for result in answer["results"]]

    return Subject(label, True, server, generate_endpoint(server, name), None, score)


def _peer_subject(peer: Peer, server: Server) -> Subject:
    def score(texts: Sequence[str]) -> tuple[float, list[float]]:
        begin = time.perf_counter()
        answer = _post_bytes(f"{server.url}{peer.score_path}", peer.score_body(texts))
        return time.perf_counter() - begin, peer.score_of(answer)

    endpoint = Endpoint(f"{server.url}{peer.path}", peer.body)
    can_score = score if peer.score_path else None
    return Subject(peer.label, peer.batches, server, endpoint, peer.text, can_score)


def _check_greedy(subjects: Sequence[Subject]) -> None:
    """Check that every peer writes the same greedy texts as Unroll in fp32."""
    requests = [Request(text_of(8 + 5 * i, i), 24, 0, temperature=0.0) for i in range(4)]
    expected = []
    for subject in subjects:
        if subject.label == UNROLL_FP32:
            bodies = [subject.endpoint.body(x) for x in requests]
            answers = [_post_bytes(subject.endpoint.url, x) for x in bodies]
            expected = [_unroll_text(x) for x in answers]
    for subject in subjects:
        if subject.text is None:
            continue
        for request, wanted in zip(requests, expected, strict=True):
            got = subject.text(_post_bytes(subject.endpoint.url, subject.endpoint.body(request)))
            if got != wanted:
                raise RuntimeError(f"{subject.label} writes another text: {got!r}, not {wanted!r}")


def _check_scores(subjects: Sequence[Subject]) -> None:
    """Check that every peer that scores finds the same log-probabilities as Unroll in fp32."""
    texts = [text_of(20 + i, i) for i in range(8)]
    scoring = {x.label: x.score for x in subjects if x.score is not None}
    expected = scoring.pop(UNROLL_FP32)(texts)[1]
    for label in OURS:
        scoring.pop(label, None)
    for label, score in scoring.items():
        for text, got, wanted in zip(texts, score(texts)[1], expected, strict=True):
            if abs(got - wanted) > SCORE_TOLERANCE * len(text):
                raise RuntimeError(f"{label} scores {text!r} as {got}, not as {wanted}")


def _check_answers(subject: Subject, run: Run) -> None:
    bad = {x.status for x in run.answers} - {200}
    if bad:
        raise RuntimeError(f"{subject.label} answered with {bad}")


def _unroll_text(answer: bytes) -> str:
    return str(json.loads(answer)["results"][0]["choices"][0]["text"])


def _post_bytes(url: str, body: bytes) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        content: bytes = answer.read()
    return content


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
