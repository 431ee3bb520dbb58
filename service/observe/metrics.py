"""Prometheus metrics of the server, of one process or shared by several.

Every label has few values: only served models, existing routes and the reasons in errors.py. Of
many models, the first have their names in labels, the same ones in every process, and the others
share one.
Several server processes share their metrics through files in a folder, which the library maps into
memory. Each process has a place, and its successor goes on with the files of that place.
"""

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    values,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.observe.engine_gauges import IDLE, EngineGauges

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's own name for it

# Roughly the most that one process writes there.
_SHARED_BYTES = 2 * 2**20

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (5e-5, 1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Values of the label `model`: names, and one for all other models. No name begins with "_".
MAX_MODELS = 32
OTHER_MODELS = "_other"
# How the values of several processes combine in a gauge: their sum, maximum or minimum.
GaugeMode: TypeAlias = Literal["livesum", "livemax", "livemin"]
# Requests that end so have no client that still waits for the answer.
_CANCELLED = {"client-gone", "deadline-exceeded"}


@dataclass(slots=True)
class _Sharing:
    """How this process shares its metrics. The library wants to know before the first metric."""

    folder: Path | None = None
    place: str = "parent"  # part of the names of its files


_sharing = _Sharing()
# The library goes by its variable in the environment; here `share_metrics` decides.
values.ValueClass = values.MutexValue


def share_metrics(folder: Path) -> None:
    """Share the metrics made from now on, through this folder, with processes forked later."""
    for file in folder.glob("*.db"):
        file.unlink()  # of an earlier run
    os.environ[SHARED_FOLDER] = str(folder)
    _sharing.folder = folder
    values.ValueClass = values.MultiProcessValue(lambda: _sharing.place)  # type: ignore[no-untyped-call]


def forget_own_gauges() -> None:
    """Remove the gauges of this process, which does not serve itself."""
    if _sharing.folder is not None:
        for file in _sharing.folder.glob(f"gauge_*_{_sharing.place}.db"):
            file.unlink()


def take_place(place: int) -> None:
    """Go on with the shared counters of a place: those of the processes before in it."""
    _sharing.place = str(place)
    if _sharing.folder is not None:
        for file in _sharing.folder.glob(f"gauge_*_{place}.db"):
            # Not removed: a new file might find no room.
            gauges = MmapedDict(str(file))  # type: ignore[no-untyped-call]
            for key, _, _ in list(gauges.read_all_values()):  # type: ignore[no-untyped-call]
                gauges.write_value(key, 0.0, 0.0)  # type: ignore[no-untyped-call]
            gauges.close()  # type: ignore[no-untyped-call]


class EngineMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: "Metrics", name: str) -> None:
        model = metrics.label_of(name)
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
        """Count a request that has left the queue."""
        self._queue.observe(waited_s)

    def stepped(self, seconds: float, rows: int) -> None:
        """Count one step of `rows` rows."""
        self._step.observe(seconds)
        self._step_rows.observe(rows)

    def wrote(self, first_token_s: float, seconds: float, tokens: int) -> None:
        """Count finished work: `first_token_s` from its request, then `seconds` for the rest."""
        self._first_token.observe(first_token_s)
        if tokens > 1:
            self._per_token.observe(seconds / (tokens - 1))

    def counted(self, *, prompt: int, completion: int, cached: int) -> None:
        """Count the tokens of an answer."""
        for kind, count in (("prompt", prompt), ("completion", completion), ("cached", cached)):
            if count:
                self._tokens[kind].inc(count)

    def looked_up(self, *, hit: bool) -> None:
        """Count a lookup in the prefix cache."""
        self._lookups[hit].inc()

    def restarted(self) -> None:
        """Count a worker that was replaced."""
        self._restarts.inc()


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._named: set[str] = set()
        # The `_created` series are of no use here, and double what is scraped.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._shared = _sharing.folder
        self.registry = CollectorRegistry()
        # To find a labelled metric takes longer than to count in it.
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._add_requests()
        self._add_engines()
        self._add_gauges()
        if self._shared is None:
            ProcessCollector(registry=self.registry)

    def _add_requests(self) -> None:
        """The metrics of HTTP requests."""
        self.requests = self._counter("unroll_requests", "Answered requests.", ("route", "status"))
        self.request_seconds = self._histogram(
            "unroll_request_seconds",
            "From the head of a request to the end of its answer.",
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
        """The metrics of the engines, from the queue to the last token."""
        self.queue_seconds = self._histogram(
            "unroll_queue_seconds", "How long a request waited in the queue.", _SECONDS
        )
        self.first_token_seconds = self._histogram(
            "unroll_time_to_first_token_seconds",
            "From queueing a request to its first token.",
            _SECONDS,
        )
        self.token_seconds = self._histogram(
            "unroll_time_per_token_seconds",
            "Mean time between the tokens of an input's choices.",
            _TOKEN_SECONDS,
        )
        self.step_seconds = self._histogram(
            "unroll_step_seconds", "One step of an engine.", _SECONDS
        )
        self.step_rows = self._histogram("unroll_step_rows", "Rows in a step.", _ROWS)
        self.tokens = self._counter(
            "unroll_tokens", "Tokens read, written and cached.", ("model", "kind")
        )
        self.prefix_lookups = self._counter(
            "unroll_prefix_lookups", "Prefix cache lookups.", ("model", "result")
        )
        self.engine_restarts = self._counter(
            "unroll_engine_restarts", "Workers replaced after they died.", ("model",)
        )
        self.model_loads = self._counter(
            "unroll_model_loads", "Bundles loaded and unloaded.", ("result",)
        )
        self.open_seconds = self._histogram(
            "unroll_model_open_seconds", "Opening a model at its first use.", _SECONDS, ()
        )

    def _add_gauges(self) -> None:
        """The gauges; the mode says how the values of several processes combine."""
        self.rows = self._gauge("unroll_rows", "Rows in use.", "livesum", ("model", "state"))
        self.queue_requests = self._gauge("unroll_queue_requests", "Queued requests.", "livesum")
        self.queue_tokens = self._gauge("unroll_queue_tokens", "Queued tokens.", "livesum")
        self.stalled_seconds = self._gauge(
            "unroll_engine_stalled_seconds", "How long the current step has run.", "livemax"
        )
        self.model_info = self._gauge(
            "unroll_model_info",
            "A served model.",
            "livemax",
            ("model", "precision", "task", "version"),
        )
        self.known = self._gauge("unroll_models", "Served models, open or not.", "livemax", ())
        self.open = self._gauge("unroll_models_open", "Models that are open.", "livesum", ())
        self.open_bytes = self._gauge(
            "unroll_models_open_bytes", "Memory of open models, by estimate.", "livesum", ()
        )
        self._gauges: dict[str, EngineGauges] = {}  # as shown last, by label
        self._infos: dict[str, tuple[str, ...]] = {}  # labels shown, by model
        self.ready = self._gauge("unroll_ready", "1 if /readyz answers 200.", "livemin", ())

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
        """Whether several processes share their metrics."""
        return self._shared is not None

    def ended(self, route: str, status: int, seconds: float, outcome: str) -> None:
        """Count an answered request; `outcome` is the `type` of its error, or empty."""
        answered = self._answered.get((route, status))
        if answered is None:
            count = self.requests.labels(route, str(status))
            answered = self._answered[route, status] = (count, self.request_seconds.labels(route))
        count, times = answered
        count.inc()
        times.observe(seconds)
        if outcome:
            self.refused(outcome)

    def refused(self, reason: str) -> None:
        """Count a request that ended with an error of type `reason`."""
        kind = self.cancelled if reason in _CANCELLED else self.rejected
        kind.labels(reason).inc()

    def label_of(self, model: str) -> str:
        """The label of a model: its name, or the one that the others share."""
        if model not in self._named:
            if len(self._named) >= MAX_MODELS:
                return OTHER_MODELS
            self._named.add(model)
        return model

    def show_models(self, known: int, is_open: int, open_bytes: int) -> None:
        """Set the gauges of all models together."""
        self.known.set(known)
        self.open.set(is_open)
        self.open_bytes.set(open_bytes)

    def show_engines(self, engines: Mapping[str, EngineGauges]) -> None:
        """Set the gauges of the open models."""
        shown = {OTHER_MODELS: IDLE} if OTHER_MODELS in self._gauges else {}
        for model, gauges in engines.items():
            label = self.label_of(model)
            shown[label] = gauges.with_other(shown[label]) if label in shown else gauges
        for label, gauges in shown.items():
            self.show_engine(label, gauges)

    def show_engine(self, model: str, gauges: EngineGauges) -> None:
        """Set the gauges of a label."""
        if self._gauges.get(model) == gauges:
            return  # as on an idle server, once a second
        self._gauges[model] = gauges
        self.rows.labels(model, "running").set(gauges.running_rows)
        self.rows.labels(model, "queued").set(gauges.queued_rows)
        self.queue_requests.labels(model).set(gauges.queued_requests)
        self.queue_tokens.labels(model).set(gauges.queued_tokens)
        self.stalled_seconds.labels(model).set(gauges.stalled_s)

    def show_model(self, model: str, precision: str, task: str, version: str) -> None:
        """Show a served model in the place of its version before."""
        self.forget_model(model)
        if self.label_of(model) == OTHER_MODELS:
            return
        labels = (model, precision, task, version)
        self.model_info.labels(*labels).set(1)
        self._infos[model] = labels

    def forget_model(self, model: str) -> None:
        """Remove the gauges of a model that is no longer open."""
        if model not in self._named:
            return
        self._gauges.pop(model, None)
        if self._shared is not None:
            # Shared metrics cannot be removed; `_OfAllProcesses` leaves out what is 0 here.
            self.show_engine(model, IDLE)
            if model in self._infos:
                self.model_info.labels(*self._infos.pop(model)).set(0)
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
        """All metrics in Prometheus' text format, and their media type."""
        if self._shared is None:
            return generate_latest(self.registry), CONTENT_TYPE_LATEST
        whole = CollectorRegistry()
        whole.register(_OfAllProcesses(self._shared))
        return generate_latest(whole), CONTENT_TYPE_LATEST


def lacks_room(folder: Path, processes: int = 1) -> str | None:
    """Why a folder has no room for the shared metrics of `processes`, in one line; None if it has.

    The files are mapped into memory: a write without room on the disk would end the process.
    """
    needed = _SHARED_BYTES * processes
    try:
        # Really written, since a quota, for instance, does not show in the free space.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(needed))
    except OSError as error:
        what = f"{needed / 2**20:g} MiB of shared metrics cannot be written to {folder}"
        advice = f"make room, or name another folder in {SHARED_FOLDER}"
        return f"{what} ({error.strerror}); {advice}"
    return None


class _OfAllProcesses(Collector):
    """The metrics of all processes, without the gauges of models that none serves any more."""

    def __init__(self, folder: Path) -> None:
        self._collector = MultiProcessCollector(None, path=str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterator[Metric]:
        """Every metric."""
        families: list[Metric] = list(self._collector.collect())  # type: ignore[no-untyped-call]
        served = {
            sample.labels["model"]
            for family in families
            for sample in family.samples
            if sample.name == "unroll_model_info" and sample.value
        }
        for family in families:
            if family.type == "gauge":
                family.samples = [x for x in family.samples if _is_current(x, served)]
            yield family


def _is_current(sample: Sample, served: Collection[str]) -> bool:
    if sample.name == "unroll_model_info" and not sample.value:
        return False
    return sample.labels.get("model") in {None, OTHER_MODELS, *served}
