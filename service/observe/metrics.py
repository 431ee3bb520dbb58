"""What is measured while serving, for Prometheus.

Every label has few values: models are those that are served, routes those that exist, reasons those
of errors.py. Several server processes share their numbers through files in a folder that
`PROMETHEUS_MULTIPROC_DIR` names; the library reads the variable when it is imported.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

# That one process writes there at most, roughly.
_SHARED_BYTES = 2 * 2**20

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# How a gauge of several processes is told as one: their sum, their largest or their least.
GaugeMode: TypeAlias = Literal["livesum", "livemax", "livemin"]
# These end without an answer that anybody reads, or would wait for.
_CANCELLED = {"client-gone", "deadline-exceeded"}


@dataclass(frozen=True, slots=True)
class EngineGauges:
    """Where an engine stands at one moment."""

    running_rows: int
    queued_rows: int
    queued_requests: int
    queued_tokens: int
    stalled_s: float


class EngineMetrics:
    """Those of one model, its label bound."""

    def __init__(self, metrics: "Metrics", model: str) -> None:
        self._queue = metrics.queue_seconds.labels(model)
        self._first_token = metrics.first_token_seconds.labels(model)
        self._per_token = metrics.token_seconds.labels(model)
        self._step = metrics.step_seconds.labels(model)
        self._step_rows = metrics.step_rows.labels(model)
        kinds = ("prompt", "completion", "cached")
        self._tokens = {kind: metrics.tokens.labels(model, kind) for kind in kinds}
        self._lookups = {
            hit: metrics.prefix_lookups.labels(model, "hit" if hit else "miss")
            for hit in (False, True)
        }
        self._restarts = metrics.engine_restarts.labels(model)

    def admitted(self, waited_s: float) -> None:
        """A request left the queue."""
        self._queue.observe(waited_s)

    def stepped(self, seconds: float, rows: int) -> None:
        """One step of so many rows."""
        self._step.observe(seconds)
        self._step_rows.observe(rows)

    def wrote(self, first_token_s: float, seconds: float, tokens: int) -> None:
        """Work has written its tokens: the first so long after it was asked for."""
        self._first_token.observe(first_token_s)
        if tokens > 1:
            self._per_token.observe(seconds / (tokens - 1))

    def counted(self, *, prompt: int, completion: int, cached: int) -> None:
        """The tokens of an answer."""
        for kind, count in (("prompt", prompt), ("completion", completion), ("cached", cached)):
            if count:
                self._tokens[kind].inc(count)

    def looked_up(self, *, hit: bool) -> None:
        """A prefix was looked for among those that were read before."""
        self._lookups[hit].inc()

    def restarted(self) -> None:
        """A worker was replaced."""
        self._restarts.inc()


class Metrics:
    """The numbers of one application, in a registry of its own."""

    def __init__(self) -> None:
        # When a series began is of no use here, and doubles what is scraped.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._shared = os.environ.get(SHARED_FOLDER)
        self.registry = CollectorRegistry()
        self._add_requests()
        self._add_engines()
        self._add_gauges()
        if self._shared is None:
            ProcessCollector(registry=self.registry)

    def _add_requests(self) -> None:
        """Of HTTP, whichever model answers."""
        self.requests = self._counter("unroll_requests", "Answered requests.", ("route", "status"))
        self.request_seconds = self._histogram(
            "unroll_request_seconds",
            "From a request's head to its answer's end.",
            _SECONDS,
            ("route",),
        )
        self.rejected = self._counter(
            "unroll_rejected", "Requests that were refused or failed.", ("reason",)
        )
        self.cancelled = self._counter(
            "unroll_cancelled", "Requests that ended before their answer.", ("reason",)
        )

    def _add_engines(self) -> None:
        """Of the models' work, from the queue to the last token."""
        self.queue_seconds = self._histogram(
            "unroll_queue_seconds", "What a request waited for a place.", _SECONDS
        )
        self.first_token_seconds = self._histogram(
            "unroll_time_to_first_token_seconds",
            "From asking an engine to the first token.",
            _SECONDS,
        )
        self.token_seconds = self._histogram(
            "unroll_time_per_token_seconds",
            "Between the tokens of an input's choices, on average.",
            _TOKEN_SECONDS,
        )
        self.step_seconds = self._histogram(
            "unroll_step_seconds", "One step of an engine.", _SECONDS
        )
        self.step_rows = self._histogram("unroll_step_rows", "Rows that a step had.", _ROWS)
        self.tokens = self._counter(
            "unroll_tokens", "Tokens read, written, and known before.", ("model", "kind")
        )
        self.prefix_lookups = self._counter(
            "unroll_prefix_lookups", "Prefixes looked for.", ("model", "result")
        )
        self.engine_restarts = self._counter(
            "unroll_engine_restarts", "Workers replaced after they died.", ("model",)
        )
        self.model_loads = self._counter(
            "unroll_model_loads", "Bundles loaded and unloaded.", ("result",)
        )

    def _add_gauges(self) -> None:
        """Of this moment; of several processes the sum, the worst, or whether all or any."""
        self.rows = self._gauge("unroll_rows", "Rows in use.", "livesum", ("model", "state"))
        self.queue_requests = self._gauge("unroll_queue_requests", "Requests that wait.", "livesum")
        self.queue_tokens = self._gauge("unroll_queue_tokens", "Tokens that wait.", "livesum")
        self.stalled_seconds = self._gauge(
            "unroll_engine_stalled_seconds", "How long the step has run that runs.", "livemax"
        )
        self.model_info = self._gauge(
            "unroll_model_info",
            "A served model.",
            "livemax",
            ("model", "precision", "task", "version"),
        )
        self.ready = self._gauge("unroll_ready", "Whether /readyz says 200.", "livemin", ())

    def _counter(self, name: str, what: str, labels: Sequence[str]) -> Counter:
        return Counter(name, what, labels, registry=self.registry)

    def _histogram(
        self, name: str, what: str, buckets: Sequence[float], labels: Sequence[str] = ("model",)
    ) -> Histogram:
        return Histogram(name, what, labels, buckets=buckets, registry=self.registry)

    def _gauge(
        self, name: str, what: str, mode: GaugeMode, labels: Sequence[str] = ("model",)
    ) -> Gauge:
        return Gauge(name, what, labels, registry=self.registry, multiprocess_mode=mode)

    @property
    def is_shared(self) -> bool:
        """Whether several processes tell their numbers together."""
        return self._shared is not None

    def ended(self, route: str, status: int, seconds: float, outcome: str) -> None:
        """A request was answered; `outcome` is the `type` of its error, or empty."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)
        if outcome:
            self.refused(outcome)

    def refused(self, reason: str) -> None:
        """A request ended with an error of that `type`."""
        kind = self.cancelled if reason in _CANCELLED else self.rejected
        kind.labels(reason).inc()

    def show_engine(self, model: str, gauges: EngineGauges) -> None:
        """Set a model's gauges."""
        self.rows.labels(model, "running").set(gauges.running_rows)
        self.rows.labels(model, "queued").set(gauges.queued_rows)
        self.queue_requests.labels(model).set(gauges.queued_requests)
        self.queue_tokens.labels(model).set(gauges.queued_tokens)
        self.stalled_seconds.labels(model).set(gauges.stalled_s)

    def forget_model(self, model: str) -> None:
        """Show nothing more of the moment of a model that is served no longer."""
        if self._shared is not None:
            # What several processes share knows no removal.
            self.show_engine(model, EngineGauges(0, 0, 0, 0, 0.0))
            return
        for gauge in (
            self.rows,
            self.queue_requests,
            self.queue_tokens,
            self.stalled_seconds,
            self.model_info,
        ):
            gauge.remove_by_labels({"model": model})

    def exposition(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text format, and its media type."""
        if self._shared is None:
            return generate_latest(self.registry), CONTENT_TYPE_LATEST
        _forget_ended_processes(Path(self._shared))
        whole = CollectorRegistry()
        MultiProcessCollector(whole, path=self._shared)  # type: ignore[no-untyped-call]
        return generate_latest(whole), CONTENT_TYPE_LATEST


def forget_this_process() -> None:
    """Take back the gauges of a process that serves nothing: the parent of those that do."""
    mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]


def lacks_room(folder: Path, processes: int = 1) -> str | None:
    """Why so many processes cannot share their numbers in a folder, in a line; None where they can.

    Their files are mapped into memory: one that finds no room on its disk ends the process.
    """
    needed = _SHARED_BYTES * processes
    try:
        # Written, since not every limit on space is told beforehand.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(needed))
    except OSError as error:
        what = f"{needed / 2**20:g} MiB of shared metrics cannot be written in {folder}"
        advice = f"make room, or name another folder in {SHARED_FOLDER}"
        return f"{what} ({error.strerror}); {advice}"
    return None


def _forget_ended_processes(folder: Path) -> None:
    """Drop the gauges of server processes that ended, however they did; their counters stay."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in folder.glob("gauge_live*.db")}:
        try:
            os.kill(pid, 0)  # nothing is sent: it tells whether there is one
        except ProcessLookupError:
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
