"""`python -m bench.classify`: `/classify` and `/tag` beside PyTorch on the same random weights.

All servers run at the same time and take turns, round after round, another first in every round,
with texts that are new in every round; a ratio is the median of the rounds' own ratios. Before
anything is timed, both sides must give the same likeliest labels.

The peers are FastAPI services with PyTorch (`bench.torch_labels`): one runs the request as one
padded batch, the other two sort its texts first and run one batch after another, or two at a time.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.http import post
from bench.label_models import ensure, texts_of, weights_of
from bench.load import Endpoint, Request, closed_loop, cpu_s, percentile
from bench.report import Row, machine, say, table, write
from bench.server import Server, free_port, running, unroll
from service.bundle.labeler import LabelerBundle
from service.bundle.store import read_bundle
from service.bundle.text import BOS_ID, EOS_ID
from service.runtime.labeler import OnnxLabelerSession
from service.runtime.runs import pad_sources

WORK = Path(__file__).parent / ".work"
UNROLL = "Unroll"
UNROLL_FP32 = "Unroll, fp32"
OURS: Mapping[str, Mapping[str, object]] = {UNROLL: {}, UNROLL_FP32: {"precision": "fp32"}}
# By the way in which `bench.torch_labels` makes batches.
PEERS = {
    "request": "FastAPI + the request as one PyTorch batch",
    "sorted": "FastAPI + sorted PyTorch batches",
    "two": "FastAPI + two sorted PyTorch batches at a time",
}
CLASSIFIERS = ("text-1x128", "text-2x128")
TAGGERS = ("character-2x128",)
CLASSIFIED_TEXTS, TAGGED_TEXTS = 1000, 200
# Shares of texts, or characters, with the same likeliest label as in PyTorch.
MOST_DIFFERENT = {UNROLL: 0.06, UNROLL_FP32: 0.001}
# Of the request that gets one text.
_ROUNDS_OF_ONE = 9
_MS = 1000.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A running server, and how to read its answers."""

    label: str
    pid: int
    url: str
    body: Callable[[Sequence[str]], dict[str, Any]]
    labels: Callable[[Any], list[list[str]]]  # of each text or character of an answer, likeliest


def main() -> int:
    """Measure, print and write bench/results/classify.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    say(machine())
    rows: list[Row] = []
    for name in (*CLASSIFIERS, *TAGGERS):
        found = _rows(name, options.rounds)
        say(table(found))
        rows += found
        write("classify.json", "Labels beside batches in PyTorch", rows)
    return 0


def _rows(name: str, rounds: int) -> list[Row]:
    ensure(WORK, name)
    path = "/tag" if name in TAGGERS else "/classify"
    with _subjects(name, path) as subjects:
        _check_same(subjects)
        if name in TAGGERS:
            return _lists(name, subjects, "/tag", TAGGED_TEXTS, rounds)
        rows = _lists(name, subjects, "/classify", CLASSIFIED_TEXTS, rounds)
        return rows + _one_text(name, subjects)


@contextmanager
def _subjects(name: str, path: str) -> Iterator[list[Subject]]:
    """Unroll and its peers on one model."""
    logs = WORK / "logs"
    with ExitStack() as stack:
        found = []
        for label, settings in OURS.items():
            log = logs / f"labels-{label}.log"
            server = stack.enter_context(unroll(WORK / "models" / name, log, **settings))
            found.append(_unroll_subject(label, name, path, server))
        for way, label in PEERS.items():
            port = free_port()
            command = [sys.executable, "-m", "bench.torch_labels", str(weights_of(WORK, name))]
            command += ["--port", str(port), "--way", way]
            environment = {"OMP_WAIT_POLICY": "passive"}
            log = logs / f"torch-labels-{way}.log"
            server = stack.enter_context(running(command, port, "/readyz", log, environment))
            found.append(_peer_subject(label, path, server))
        yield found


def _unroll_subject(label: str, name: str, path: str, server: Server) -> Subject:
    def body(texts: Sequence[str]) -> dict[str, Any]:
        options = {"top": 1} if path == "/classify" else {}
        return {"model": name, "text": list(texts), **options}

    def labels(answer: Any) -> list[list[str]]:
        results = answer["results"]
        if path == "/classify":
            return [[x["labels"][0]["label"]] for x in results]
        return [_of_characters(x) for x in results]

    return Subject(label, server.pid, f"{server.url}{path}", body, labels)


def _of_characters(result: Any) -> list[str]:
    """A label for each character: tags are runs, and what has no tag has the label `l0`."""
    found = ["l0"] * len(result["text"])
    for tag in result["tags"]:
        found[tag["start"] : tag["end"]] = [tag["label"]] * (tag["end"] - tag["start"])
    return found


def _peer_subject(label: str, path: str, server: Server) -> Subject:
    def body(texts: Sequence[str]) -> dict[str, Any]:
        return {"text": list(texts), "top": 1}

    def labels(answer: Any) -> list[list[str]]:
        return [[x["label"] for x in result] for result in answer["results"]]

    return Subject(label, server.pid, f"{server.url}{path}", body, labels)


def _check_same(subjects: Sequence[Subject]) -> None:
    """Both sides find the same labels. Raises RuntimeError if they do not."""
    texts = texts_of(CLASSIFIED_TEXTS, seed=1)
    answers = [x.labels(post(x.url, x.body(texts))[1]) for x in subjects]
    expected = np.concatenate(answers[-1])
    for subject, answer in zip(subjects[:-1], answers[:-1], strict=True):
        different = float(np.mean(np.concatenate(answer) != expected))
        say(f"{subject.label}: {different:.2%} of the labels are not those of {subjects[-1].label}")
        if different > MOST_DIFFERENT.get(subject.label, 0.0):
            raise RuntimeError(f"{subject.label} finds other labels than {subjects[-1].label}")


def _lists(name: str, subjects: Sequence[Subject], path: str, count: int, rounds: int) -> list[Row]:
    """Many texts in one request."""
    seconds: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    used: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    for number in range(1 + rounds):
        texts = texts_of(count, seed=100 + number)
        # Each is first, and last, as often as the others.
        first = number % len(subjects)
        for subject in [*subjects[first:], *subjects[:first]]:
            before = cpu_s(subject.pid)
            took, _ = post(subject.url, subject.body(texts))
            # The first round warms everybody up.
            if number:
                seconds[subject.label].append(took)
                used[subject.label].append(cpu_s(subject.pid) - before)
    rows = []
    for subject in subjects:
        mine = seconds[subject.label]
        label = f"{name}: {path}, {count:,} texts in one request: {subject.label}"
        speed = count / statistics.median(mine)
        if subject.label in OURS:
            rows += [
                Row(label, speed, "texts/s", peer, _median_ratio(seconds[peer], mine))
                for peer in PEERS.values()
            ]
        else:
            rows.append(Row(label, speed, "texts/s"))
        processor = _MS * statistics.mean(used[subject.label])
        rows.append(Row(f"{label}, processor", processor, "ms"))
    return rows


def _one_text(name: str, subjects: Sequence[Subject]) -> list[Row]:
    """One client with one text in each request: the median time, and that over the bare graph."""
    session, texts = _session(name), texts_of(2000, seed=50)
    requests = [Request(text, 1, i) for i, text in enumerate(texts)]
    bare: list[float] = []
    p50s: dict[str, list[float]] = {subject.label: [] for subject in subjects}
    for _ in range(_ROUNDS_OF_ONE):
        bare.append(session(texts[:200]))
        for subject in subjects:
            endpoint = Endpoint(subject.url, lambda x, by=subject: _body_of_one(by, x))  # type: ignore[misc]
            run = closed_loop(endpoint, requests, clients=1, duration_s=0.4, warm_up_s=0.1)
            p50s[subject.label].append(percentile(run.latencies_s(), 50))
    over = [http - graph for http, graph in zip(p50s[UNROLL], bare, strict=True)]
    rows = [
        Row(f"{name}: the bare graph, one text, p50", _MS * statistics.median(bare), "ms"),
        Row(f"{name}: the same over the bare graph", _MS * statistics.median(over), "ms"),
    ]
    for subject in subjects:
        p50 = _MS * statistics.median(p50s[subject.label])
        rows.append(Row(f"{name}: /classify, 1 client, one text, p50: {subject.label}", p50, "ms"))
    return rows


def _body_of_one(subject: Subject, request: Request) -> bytes:
    return json.dumps(subject.body([request.prompt])).encode()


def _session(name: str) -> Callable[[Sequence[str]], float]:
    """A function that runs the graph on texts, one by one: the median of the seconds."""
    bundle = read_bundle(ensure(WORK, name))
    if not isinstance(bundle, LabelerBundle):
        raise TypeError(name)
    session = OnnxLabelerSession(bundle, "int8")

    def run(texts: Sequence[str]) -> float:
        seconds = []
        for text in texts:
            ids = np.array([BOS_ID, *bundle.text.encode(text), EOS_ID], np.int64)
            tokens, lengths = pad_sources([ids]), np.array([len(ids)], np.int32)
            begin = time.perf_counter()
            session.label(tokens, lengths)
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)

    return run


def _median_ratio(theirs: Sequence[float], mine: Sequence[float]) -> float:
    return statistics.median(b / a for a, b in zip(mine, theirs, strict=True))


if __name__ == "__main__":
    sys.exit(main())
