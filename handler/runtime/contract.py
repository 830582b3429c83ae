"""What the supervisor asks of a runtime: TorchServe's, or the plain one."""

from typing import Protocol

from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.runtime.child import Child, Line, OnEnd, OnLine


class Runtime(Protocol):
    """What is started so that a worker serves."""

    @property
    def name(self) -> str:
        """The child, in messages."""

    @property
    def port_settings(self) -> tuple[str, ...]:
        """The settings of the child's own ports, on loopback."""

    @property
    def worker_patience_s(self) -> float:
        """How long the child may be without a worker that serves before it is killed."""

    @property
    def restarts(self) -> int:
        """How often in a row the child may end before it is given up."""

    @property
    def orphans(self) -> bool:
        """Whether the child starts others, which may outlive it."""

    def start(self, config: ServeConfig, on_line: OnLine, on_end: OnEnd) -> Child:
        """Starts the child. Raises FileNotFoundError for what isn't installed."""

    def addresses(self, config: ServeConfig) -> dict[str, str]:
        """The child's own endpoints, by their names in the `ready` line."""

    def load_failed(self, line: Line) -> bool:
        """Whether the child's log says here that the start has failed, while the child goes on."""

    def port_was_taken(self, cause: str) -> bool:
        """Whether this cause of an end is that another process has one of the child's ports."""
