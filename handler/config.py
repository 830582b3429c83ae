"""`ServeConfig`: every setting of a server, and what its value may be.

The class takes no value from the environment or a file: `load_config` of `settings.py` does.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from dnc_serve.handler.addresses import host_port, is_every_address, is_loopback, parse_host, split_address
from dnc_serve.handler.named_models import NamedModel, named_models, read_models
from dnc_serve.handler.store.redis_url import EXPECTED, SCHEMES, parse_redis_url

ENVIRONMENT_PREFIX = "DNC_"
# The text of a tokens file, for those who keep secrets in the environment.
TOKENS_VARIABLE = "DNC_TOKENS_TEXT"
# More of them would wait for the interpreter's lock more than step.
MOST_STEP_THREADS = 8
MAX_SOCKET_LENGTH = 107  # as the system has it
MOST_WORKERS = 64
COMPILED = "compiled"  # the folder of row kernels in the state folder


def default_state_dir() -> Path:
    """Where programs keep what must outlive them, by the XDG rules."""
    home = Path(os.environ.get("XDG_STATE_HOME", ""))
    # A relative one is to be ignored, they say.
    return (home if home.is_absolute() else Path.home() / ".local" / "state") / "dnc-serve"


def _store(value: str) -> str:
    if value != "sqlite":
        if value.partition("://")[0] not in SCHEMES:
            raise ValueError(f"expected sqlite, {EXPECTED}")
        parse_redis_url(value)
    return value


def _host_port(value: str) -> str:
    return host_port(*split_address(value)) if value else value


def _device(value: str) -> str:
    kind, separator, index = value.partition(":")
    if not (value in ("auto", "cpu", "cuda") or (kind == "cuda" and separator and index.isdecimal())):
        raise ValueError("expected auto, cpu, cuda or cuda:INDEX")
    return value


def _workers(value: Any) -> Any:
    if value == "auto":
        # Of each worker's cores, one has its endpoints and journal, another steps.
        return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // 2))
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if isinstance(value, bool | float) or not 1 <= number <= MOST_WORKERS:
        raise ValueError(f"expected auto, or a number from 1 to {MOST_WORKERS}")
    return number


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as exc:  # ~NAME of an unknown user
        raise ValueError(f"expected a path ({exc})") from exc


def _unix(value: str) -> str:
    scheme, _, path = value.partition(":")
    if not value:
        return value
    if scheme != "unix" or not path.strip("/"):
        raise ValueError("expected unix:PATH")
    absolute = str(_absolute(Path(path)))
    if len(os.fsencode(absolute)) > MAX_SOCKET_LENGTH:
        raise ValueError(f"expected a path of at most {MAX_SOCKET_LENGTH} bytes")
    return f"unix:{absolute}"


def _file(value: str) -> str:
    return str(_absolute(Path(value))) if value else ""


# Absolute, for the worker runs in a folder of TorchServe's.
Folder = Annotated[Path, AfterValidator(_absolute)]
File = Annotated[str, AfterValidator(_file)]
Port = Annotated[int, Field(ge=0, le=65535)]
# Bounded so that nothing that is computed from them overflows, in Python, C, SQLite or Redis.
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Size = Annotated[ByteSize, Field(ge=1, le=2**50)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86_400.0, allow_inf_nan=False)]


class ServeConfig(BaseSettings):
    """The settings of one server. Sizes are bytes and may be written as "256MiB"; a port of 0 is a free one."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, frozen=True, extra="forbid", validate_default=True, protected_namespaces=()
    )

    # What is served.
    model: Annotated[tuple[str, ...], NoDecode, BeforeValidator(read_models)] = Field(
        default=("copy",),
        description="[NAME=]SOURCE: a bundled name, a run, an artifact folder or a .mar; may be repeated, each with a "
        "NAME, and the first is the default",
    )
    model_folder: File = Field(
        default="",
        description="folder in which new versions appear as NAME/VERSION, to be loaded while the server runs",
    )
    nr_cells: Count | None = Field(
        default=None, description="memory slots of a run that is exported; as trained if not set"
    )
    device: Annotated[str, AfterValidator(_device)] = Field(
        default="auto", description="auto (what TorchServe assigns, or a GPU if there is one), cpu, cuda or cuda:INDEX"
    )
    code: Literal["auto", "kernel", "torchscript", "program"] = Field(
        default="auto",
        description="what steps the model: auto (a DNC's row kernel on a CPU, else what the artifact has), kernel, "
        "torchscript or program",
    )
    step_threads: Count = Field(
        default_factory=lambda: max(1, min(MOST_STEP_THREADS, len(os.sched_getaffinity(0)) - 1)),
        description="threads that step long chunks, each a batch of its own",
    )

    # Where it listens.
    host: Annotated[str, AfterValidator(parse_host)] = Field(
        default="127.0.0.1", description="address of the streaming endpoint and of the metrics"
    )
    port: Port = Field(default=8500, description="port of the streaming endpoint")
    listen: Annotated[str, AfterValidator(_unix)] = Field(
        default="", description="unix:PATH, a socket for clients on this machine at which the endpoint listens too"
    )
    metrics_port: Port = Field(default=8502, description="port of the Prometheus metrics")
    http_port: Port | None = Field(
        default=None, description="port of Triton's protocol over HTTP, /v2; it is not served if not set"
    )
    # Free ones, so that several servers share a machine: few people use these endpoints.
    torchserve_http_port: Port = Field(default=0, description="TorchServe's HTTP inference port, on loopback")
    torchserve_management_port: Port = Field(default=0, description="TorchServe's HTTP management port, on loopback")
    torchserve_metrics_port: Port = Field(default=0, description="TorchServe's HTTP metrics port, on loopback")
    torchserve_grpc_port: Port = Field(default=0, description="TorchServe's gRPC inference port, on loopback")
    torchserve_grpc_management_port: Port = Field(
        default=0, description="TorchServe's gRPC management port, on loopback"
    )
    advertise: Annotated[str, AfterValidator(_host_port)] = Field(
        default="",
        description="host:port under which clients and other servers reach the streaming endpoint; what is bound "
        "if not set",
    )

    # Who may come in.
    tokens: File = Field(default="", description="file of bearer tokens; without one, no token is asked for")
    tls_certificate: File = Field(default="", description="PEM file of the certificate chain")
    tls_key: File = Field(default="", description="PEM file of the private key")
    tls_client_ca: File = Field(
        default="", description="PEM file of the authority whose client certificates are accepted"
    )
    state_keys: File = Field(
        default="",
        description="file of the keys that sign states which callers keep (StepWithState): 64 hex digits a line, the "
        "first one signs, all are accepted",
    )
    state_max_age_s: float = Field(
        default=0.0, ge=0, le=10 * 365 * 86_400.0, description="seconds after which such a state is refused; 0: never"
    )
    insecure: bool = Field(
        default=False, description="allow an endpoint beyond loopback that asks for neither TLS nor credentials"
    )

    # What a session may hold and how long it lives.
    max_sessions: Count = Field(default=100_000, description="sessions alive at once")
    slots: Count = Field(default=256, description="sessions whose state is on the device")
    host_bytes: Size = Field(default=ByteSize(256 * 2**20), description="bytes of session states in host memory")
    idle_timeout_s: Seconds = Field(
        default=7 * 86_400.0, description="seconds without a commit after which a session ends"
    )
    max_age_s: float = Field(
        default=0.0, ge=0, le=10 * 365 * 86_400.0, description="seconds after which it ends anyway; 0: never"
    )
    tombstone_days: Seconds = Field(default=7.0, description="days for which the end of a session is remembered")
    max_tombstones: Count = Field(default=100_000, description="ended sessions that are remembered")

    sequence_end: Literal["delete", "keep"] = Field(
        default="delete",
        description="what becomes of a session whose sequence has ended, by Triton's protocol: delete or keep",
    )

    # What may be under way at once.
    max_chunk_timesteps: Count = Field(default=4096, description="timesteps of one chunk")
    max_queued_chunks: Count = Field(default=64, description="chunks waiting in one session's queue")
    max_queued_chunks_total: Count = Field(default=8192, description="chunks waiting in all queues")
    max_queued_bytes: Size = Field(
        default=ByteSize(256 * 2**20), description="bytes of these chunks and of their answers"
    )
    max_message_bytes: Size = Field(default=ByteSize(4 * 2**20), description="bytes of one gRPC message")
    max_streams: Count = Field(default=1024, description="streams open at once")
    reply_window_chunks: Count = Field(default=64, description="latest replies of a session that are kept in memory")
    reply_window_bytes: Size = Field(default=ByteSize(2**20), description="bytes of these replies, for each session")

    # What survives.
    state_dir: Folder = Field(default_factory=default_state_dir, description="folder of the sessions' store and caches")
    store: Annotated[str, AfterValidator(_store)] = Field(
        default="sqlite",
        description="sqlite, redis://…, rediss://…, unix://…, redis+sentinel://… or rediss+sentinel://…",
    )
    store_replicas: int = Field(
        default=0,
        ge=0,
        le=100,
        description="replicas of a shared store that must have synced what is called durable, beside their primary",
    )
    durability: Literal["off", "async", "sync"] = Field(
        default="async", description="what a reply waits for: off, async, sync"
    )
    sync_interval_ms: float = Field(
        default=20.0, gt=0, le=60_000, description="milliseconds within which async mode syncs to disk"
    )
    snapshot_every_timesteps: Count = Field(default=1024, description="timesteps of a session between two snapshots")
    snapshot_every_bytes: Size = Field(
        default=ByteSize(2**20), description="bytes of its records between two snapshots"
    )
    history_bytes: Size = Field(
        default=ByteSize(256 * 2**20), description="bytes of records older than the last snapshot"
    )
    history_hours: float = Field(default=24.0, ge=0, le=87_600, description="hours for which such records are kept")
    lease_s: float = Field(
        default=10.0, ge=0.1, le=3600, description="seconds for which a server owns a session in a shared store"
    )

    # TorchServe and its own endpoint; of no effect with the plain runtime.
    batch_size: Count = Field(default=64, description="calls that TorchServe hands over at once")
    max_batch_delay_ms: Count = Field(default=1, description="milliseconds that TorchServe waits for such a batch")
    response_timeout_s: int = Field(
        default=120, ge=2, le=86_400, description="seconds after which TorchServe gives a worker up"
    )

    # Operation.
    runtime: Literal["torchserve", "plain"] = Field(
        default="torchserve",
        description="what starts and watches the worker: torchserve, or plain (`dnc serve` itself, without Java)",
    )
    workers: Annotated[int, BeforeValidator(_workers)] = Field(
        default=1,
        description="processes that share the machine's sessions, behind one address: a number, or auto (by cores); "
        "with the plain runtime",
    )
    grace_s: Seconds = Field(default=20.0, description="seconds from the first SIGTERM to the end of all processes")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged: debug, info, warning or error"
    )
    otlp_endpoint: str = Field(default="", description="OpenTelemetry collector (OTLP over gRPC) that gets the traces")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            missing, given = ("tls_key", "tls_certificate") if self.tls_certificate else ("tls_certificate", "tls_key")
            raise ValueError(f"{missing} is ''; expected a file, because {given} is set")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_certificate is ''; expected a file, because tls_client_ca is set")
        has_tokens = self.tokens or os.environ.get(TOKENS_VARIABLE)
        if self.listen and self.tls_client_ca and not has_tokens:
            raise ValueError(
                "tokens is ''; expected a file, because at the socket (listen) no certificate is asked for"
            )
        protected = self.tls_certificate and (has_tokens or self.tls_client_ca)
        if not is_loopback(self.host) and not protected and not self.insecure:
            raise ValueError(
                f"host is {self.host!r}; expected a loopback address (127.0.0.1, ::1, localhost), or tls_certificate "
                "with tokens or tls_client_ca, or insecure, which allows an unprotected endpoint"
            )
        if self.workers > 1 and self.runtime != "plain":
            raise ValueError(
                f"workers is {self.workers} and runtime is {self.runtime!r}; expected plain, because TorchServe hands "
                "each call to any of its workers, and a session is in one"
            )
        if self.workers > 1 and self.store != "sqlite":
            raise ValueError(
                f"workers is {self.workers}; expected 1 with a shared store: start several servers instead, each with "
                "its address"
            )
        if self.store != "sqlite" and not self.advertise and is_every_address(self.host):
            raise ValueError(
                f"advertise is '' and host is {self.host!r}; expected host:port, because with a shared store clients "
                "are sent to the server that has a session, and nobody is reached at all addresses"
            )
        if self.store_replicas and self.store == "sqlite":
            raise ValueError(f"store_replicas is {self.store_replicas}; expected 0, because store is 'sqlite'")
        for name in ("http_port", "listen"):
            if self.workers > 1 and getattr(self, name) not in (None, ""):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} and workers is {self.workers}; expected 1, because what comes "
                    "in there is not passed on to the worker that has the session"
                )
        if self.nr_cells is not None and len(self.model) > 1:
            raise ValueError(
                f"nr_cells is {self.nr_cells} and model is given {len(self.model)} times; expected one model, or "
                "artifacts that `dnc export --nr-cells` made"
            )
        own = [name for name in PORTS if getattr(self, name)]
        for name in own:
            for other in own[: own.index(name)]:
                if getattr(self, name) == getattr(self, other):
                    raise ValueError(f"{name} is {getattr(self, name)}; expected another port than that of {other}")
        return self

    @property
    def models(self) -> tuple[NamedModel, ...]:
        """What is served, the default first."""
        return named_models(self.model)

    def share(self, parts: int) -> "ServeConfig":
        """The settings of one of several workers, or models: each has its share of what all of them may hold, rounded
        up."""
        return self.model_copy(update={name: -(-getattr(self, name) // parts) for name in SHARED})

    @property
    def ports(self) -> tuple[str, ...]:
        """The settings of the ports that are listened at."""
        return tuple(name for name in PORTS if self.runtime == "torchserve" or name not in TORCHSERVE_PORTS)

    @property
    def compiled_dir(self) -> Path:
        """Where compiled models are kept."""
        return self.state_dir / COMPILED

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: a worker or a test must not see another value than the one it was given."""
        return (init_settings,)


PORTS = tuple(name for name in ServeConfig.model_fields if name == "port" or name.endswith("_port"))
# What a machine's workers, and a worker's models, have together. Streams are not among it: a client's may all come in
# at one worker, and one may carry sessions of all models.
SHARED = (
    "step_threads", "max_sessions", "slots", "host_bytes", "max_tombstones", "max_queued_chunks_total",
    "max_queued_bytes", "history_bytes",
)  # fmt: skip
# The largest answer by TorchServe; beyond its own limit it drops the connection to its worker.
TORCHSERVE_MAX_BYTES = 256 * 2**20
TORCHSERVE_PORTS = tuple(name for name in PORTS if name.startswith("torchserve_"))


def flag(name: str) -> str:
    """How a setting is called on the command line."""
    return "--" + name.replace("_", "-")
