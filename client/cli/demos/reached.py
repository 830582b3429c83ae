"""The server of a demo, as the demo's processes reach it."""

from dataclasses import dataclass, field

from dnc_serve.client.calls import DEFAULT_CONNECT_TIMEOUT_S
from dnc_serve.client.client import Client
from dnc_serve.client.tls import TLS
from dnc_serve.client.transport import Token


@dataclass(frozen=True)
class Reached:
    """What a process is told to find the server, and who it is."""

    targets: tuple[str, ...]
    token: Token | None = field(default=None, repr=False)
    tls: TLS | None = None
    timeout_s: float = 30.0
    connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S

    def client(self) -> Client:
        return Client(
            self.targets,
            token=self.token,
            tls=self.tls,
            timeout_s=self.timeout_s,
            connect_timeout_s=self.connect_timeout_s,
        )

    def __str__(self) -> str:
        return ", ".join(self.targets)
