"""What the server counts, on a registry of its own.

Seconds everywhere; no label holds a session id.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from dnc_serve.proto.reasons import REASONS

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TIERS = ("slot", "host", "store")
DOORS = ("stream", "unary", "torchserve")


class Metrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        """Sets everything to zero, on a new registry."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.step_duration = Histogram(
            "dnc_step_duration_seconds", "From a chunk's arrival at a door to its reply.", ["door"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.tick_duration = Histogram(
            "dnc_tick_duration_seconds",
            "One timestep of the rows that are stepped together.",
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_wait = Histogram(
            "dnc_queue_wait_seconds", "From a chunk's arrival to its first tick.", buckets=SECONDS, registry=registry
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
        self.replayed_elsewhere = Counter(
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
            ["name", "digest", "artifact", "note", "device"],
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
        # Looked up once: a label costs more than the observation.
        self.step_duration_at = {door: self.step_duration.labels(door) for door in DOORS}
        self.store_up.set(1)
