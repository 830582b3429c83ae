"""What the server counts, on a registry of its own.

Seconds everywhere; no label holds a session id.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

# With one of these, prometheus_client keeps numbers in files for several processes, and can't ask for any; we are one.
for _name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
    os.environ.pop(_name, None)

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector  # noqa: E402
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily  # noqa: E402
from prometheus_client.registry import Collector  # noqa: E402
from prometheus_client.samples import Exemplar  # noqa: E402

from dnc_serve.handler.engine.observer import Committed, Observer  # noqa: E402
from dnc_serve.handler.engine.requests import Applied, Chunk, Reset  # noqa: E402
from dnc_serve.handler.engine.session import Session  # noqa: E402
from dnc_serve.proto.reasons import REASONS  # noqa: E402

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TIERS = ("slot", "host", "store")
ENDPOINTS = ("stream", "unary", "torchserve", "inference")


class ChunkHistogram(Collector):
    """A histogram that is told many values at once: one of `prometheus_client` takes 2 µs for each.

    With a label, it has a series for each of the values that `series` lists.
    """

    def __init__(self, name: str, documentation: str, label: str = "", series: Sequence[str] = ("",)) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._counts = {one: [0] * (len(SECONDS) + 1) for one in series}
        self._sums = dict.fromkeys(series, 0.0)
        self._exemplars: dict[tuple[str, int], Exemplar] = {}  # the latest of each bucket

    def observe(self, series: str, value: float, trace_id: str = "") -> None:
        """Counts a value; with the trace that it was seen in, if it was traced."""
        bucket = bisect_left(SECONDS, value)
        self._counts[series][bucket] += 1
        self._sums[series] += value
        if trace_id:
            self._exemplars[series, bucket] = Exemplar({"trace_id": trace_id}, value, time.time())

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else [])

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label] if self._label else [])
        for series, counts in self._counts.items():
            total, buckets = 0, []
            for bucket, (bound, count) in enumerate(zip([*map(str, SECONDS), "+Inf"], list(counts), strict=True)):
                total += count
                exemplar = self._exemplars.get((series, bucket))
                buckets.append((bound, total, exemplar) if exemplar else (bound, total))
            family.add_metric([series] if self._label else [], buckets, self._sums[series])
        yield family


class ModelCollector(Collector):
    """A few series for each model."""

    def __init__(self, models: "Mapping[tuple[str, str], ModelMetrics]") -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        sessions = GaugeMetricFamily("dnc_model_sessions", "Sessions alive of a model.", labels=["model", "version"])
        chunks = CounterMetricFamily("dnc_model_chunks", "Chunks of a model answered.", labels=["model", "version"])
        timesteps = CounterMetricFamily(
            "dnc_model_timesteps", "Timesteps of a model applied.", labels=["model", "version"]
        )
        seconds = CounterMetricFamily(
            "dnc_model_step_seconds",
            "From these chunks' arrival to their replies, in all.",
            labels=["model", "version"],
        )
        for key, model in list(self._models.items()):
            sessions.add_metric([*key], model.sessions())
            chunks.add_metric([*key], model.chunks)
            timesteps.add_metric([*key], model.timesteps)
            seconds.add_metric([*key], model.step_s)
        yield from (sessions, chunks, timesteps, seconds)


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], ModelMetrics] = {}  # by name and version
        self.start_over()

    def of(self, model: str, version: str = "1") -> "ModelMetrics":
        """What listens to the engine of this version of a model."""
        return self.models.setdefault((model, version), ModelMetrics(self))

    def start_over(self) -> None:
        """Sets everything to zero, on a new registry."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        for model in self.models.values():
            model.start_over()
        registry.register(ModelCollector(self.models))
        self.step_duration = ChunkHistogram(
            "dnc_step_duration_seconds", "From a chunk's arrival at an endpoint to its reply.", "endpoint", ENDPOINTS
        )  # fmt: skip
        self.queue_wait = ChunkHistogram("dnc_queue_wait_seconds", "From a chunk's arrival to its first tick.")
        registry.register(self.step_duration)
        registry.register(self.queue_wait)
        self.tick_duration = Histogram(
            "dnc_tick_duration_seconds",
            "One timestep of the sessions stepped together.",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "dnc_batch_size", "Sessions stepped together.", buckets=ROWS, registry=registry
        )  # fmt: skip
        self.timesteps = Counter("dnc_timesteps", "Timesteps applied.", registry=registry)
        self.sessions = Gauge("dnc_sessions", "Sessions alive.", ["tier"], registry=registry)
        self.state_bytes = Gauge("dnc_session_state_bytes", "Bytes of session states.", ["tier"], registry=registry)
        self.evictions = Counter(
            "dnc_session_evictions",
            "Sessions moved down a tier (slot, host) or ended (idle, age).",
            ["reason"],
            registry=registry,
        )
        self.resets = Counter("dnc_resets", "Resets applied.", ["scope"], registry=registry)
        self.steps_replayed = Counter(
            "dnc_steps_replayed", "Chunks answered from their stored reply.", registry=registry
        )  # fmt: skip
        self.timesteps_recovered = Counter(
            "dnc_timesteps_recovered", "Timesteps replayed from the journal.", registry=registry
        )
        self.replays_elsewhere = Counter(
            "dnc_replayed_elsewhere",
            "Replays by another artifact than the one that the session was computed with.",
            registry=registry,
        )
        self.snapshot_fallbacks = Counter(
            "dnc_snapshot_fallbacks", "Damaged snapshots passed over in a recovery.", registry=registry
        )
        self.errors = Counter("dnc_errors", "Refusals.", ["reason"], registry=registry)
        self.journal_commit = Histogram(
            "dnc_journal_commit_seconds", "One group commit, as durable as the mode promises.",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.snapshot_duration = Histogram(
            "dnc_snapshot_seconds", "Taking and writing the snapshots of one turn.", buckets=SECONDS, registry=registry
        )
        self.journal_bytes = Gauge("dnc_journal_bytes", "Bytes that records and snapshots take.", registry=registry)
        self.store_up = Gauge("dnc_store_up", "Whether the last write to the store succeeded.", registry=registry)
        self.queued = Gauge("dnc_queued_chunks", "Chunks waiting for their first tick.", registry=registry)
        self.streams = Gauge("dnc_streams", "Open streams.", registry=registry)
        self.draining = Gauge("dnc_draining", "Whether the server is leaving.", registry=registry)
        self.build_info = Gauge(
            "dnc_build_info", "Versions.", ["version", "torch", "python", "grpc"], registry=registry
        )  # fmt: skip
        self.model_info = Gauge(
            "dnc_model_info",
            "The model being served, the code that steps it, and why that is not the row kernel.",
            ["name", "version", "digest", "artifact", "note", "device"],
            registry=registry,
        )
        for tier in TIERS:
            self.sessions.labels(tier)
            self.state_bytes.labels(tier)
        for scope in ("experience", "all"):
            self.resets.labels(scope)
        for reason in ("slot", "host", "idle", "age"):
            self.evictions.labels(reason)
        for reason in REASONS:
            self.errors.labels(reason)
        self.store_up.set(1)

    def total(self, sample: str) -> float:
        """The sum of a sample over all its labels."""
        families = self.registry.restricted_registry([sample]).collect()
        return sum(one.value for family in families for one in family.samples if one.name == sample)


class ModelMetrics(Observer):
    """Counts what one model's engine tells: with that of all, and for itself in a few numbers."""

    def __init__(self, metrics: Metrics) -> None:
        self._all = metrics
        self.sessions: Callable[[], int] = lambda: 0  # how many are alive
        self.start_over()

    def start_over(self) -> None:
        """Sets its own numbers to zero."""
        self.timesteps = self.chunks = self.ticks = 0
        self.step_s = self.queue_s = self.tick_s = 0.0

    def stepped(self, rows: int, tick_s: float) -> None:
        self.ticks += 1
        self.tick_s += tick_s
        self._all.tick_duration.observe(tick_s)
        self._all.batch_size.observe(rows)

    def committed(self, group: Sequence[Committed]) -> None:
        metrics = self._all
        timesteps, now = 0, time.perf_counter()
        for _, request, _ in group:
            if isinstance(request, Chunk):
                timesteps += len(request.inputs)
                step_s, queue_s = now - request.arrived_at, request.started_at - request.arrived_at
                metrics.step_duration.observe(request.endpoint, step_s, request.trace_id)
                metrics.queue_wait.observe("", queue_s)
                self.chunks += 1
                self.step_s += step_s
                self.queue_s += queue_s
                if request.reset_experience:
                    metrics.resets.labels("experience").inc()
            elif isinstance(request, Reset):
                metrics.resets.labels(request.scope).inc()
        if timesteps:
            self.timesteps += timesteps
            metrics.timesteps.inc(timesteps)

    def replied_again(self, session: Session, chunk: Chunk, applied: Applied) -> None:
        step_s = time.perf_counter() - chunk.arrived_at
        self._all.steps_replayed.inc()
        self._all.step_duration.observe(chunk.endpoint, step_s)
        self.chunks += 1
        self.step_s += step_s

    def recovered(self, timesteps: int) -> None:
        self._all.timesteps_recovered.inc(timesteps)

    def replayed_elsewhere(self, session: Session) -> None:
        self._all.replays_elsewhere.inc()

    def fell_back(self, snapshots: int) -> None:
        self._all.snapshot_fallbacks.inc(snapshots)

    def evicted(self, tier: str) -> None:
        self._all.evictions.labels(tier).inc()

    def ended(self, session: Session, why: str) -> None:
        if why in ("idle", "age"):
            self._all.evictions.labels(why).inc()

    def wrote(self, seconds: float) -> None:
        self._all.journal_commit.observe(seconds)
        self._all.store_up.set(1)

    def snapshotted(self, seconds: float) -> None:
        self._all.snapshot_duration.observe(seconds)

    def store_failed(self) -> None:
        self._all.store_up.set(0)
