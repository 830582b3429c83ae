"""The listening side of the streaming endpoint: its port, TLS, health and reflection."""

import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from dnc_serve.handler.addresses import host_port, split_address, why_not_free
from dnc_serve.handler.api.readable import ReadableServer
from dnc_serve.handler.api.reflection import add_reflection
from dnc_serve.handler.api.transport import Certificates
from dnc_serve.handler.config import ServeConfig
from dnc_serve.handler.place import Place
from dnc_serve.proto.dnc.v1 import dnc_pb2, dnc_pb2_grpc
from dnc_serve.proto.inference import inference_pb2, inference_pb2_grpc

SERVICES = (
    dnc_pb2.DESCRIPTOR.services_by_name["DncService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# A socket's path may have 107 bytes.
MAX_FOLDER_LENGTH = 100


class Listener:
    """Binds first, opens when there is something to serve, and says that it serves when that was proven."""

    def __init__(self, config: ServeConfig, place: Place | None = None) -> None:
        self._config = config
        self._place = place
        self._server = grpc.aio.server(
            options=[
                # Two servers would otherwise share a port silently. A machine's workers do it on purpose: a connection
                # comes in at any that listens, and where one is down, at the others.
                ("grpc.so_reuseport", int(place is not None)),
                ("grpc.max_receive_message_length", int(config.max_message_bytes)),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 16 << 10),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        self._health = health.aio.HealthServicer()
        self._private_folder = ""
        self.private_address = ""
        self.address = ""

    def bind(self) -> None:
        """Takes the port; raises OSError if somebody else has it."""
        self.address = host_port(self._config.host, self._listen(self._config.port))
        if self._config.listen:
            self._bind_socket(Path(self._config.listen.removeprefix("unix:")))
        # The self-test comes in through a socket that only this user can open, and that is removed afterwards.
        self._private_folder = tempfile.mkdtemp(prefix="dnc-")
        if len(self._private_folder) > MAX_FOLDER_LENGTH:
            raise OSError(
                f"TMPDIR is {tempfile.gettempdir()!r}, too long for a socket: expected a folder whose path has at "
                f"most {MAX_FOLDER_LENGTH - 13} characters"
            )
        self.private_address = f"unix:{quote(self._private_folder)}/endpoint"
        self._server.add_insecure_port(self.private_address)

    def _listen(self, port: int) -> int:
        config = self._config
        address = host_port(config.host, port)
        try:
            if config.tls_certificate:
                return self._server.add_secure_port(address, Certificates(config).credentials())
            return self._server.add_insecure_port(address)
        except RuntimeError as exc:
            reason = why_not_free(config.host, port)
            raise OSError(
                f"the streaming endpoint can't listen at {address} (host, port): {reason.strerror if reason else exc}"
            ) from exc

    def _bind_socket(self, path: Path) -> None:
        """Takes a socket's place, unless somebody listens there: gRPC would take it from a server that lives."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
                raise OSError(f"something listens already at {path} (listen)")
            except (FileNotFoundError, ConnectionRefusedError):  # nobody, or one that was killed
                pass
        if path.exists() and not path.is_socket():
            raise OSError(f"the streaming endpoint can't listen at {path} (listen): it is no socket")
        try:
            self._server.add_insecure_port(f"unix:{quote(str(path))}")
            path.chmod(0o660)
        except (RuntimeError, OSError) as exc:
            raise OSError(f"the streaming endpoint can't listen at {path} (listen): {exc}") from exc

    async def open(
        self, service: dnc_pb2_grpc.DncServiceServicer, inference: inference_pb2_grpc.GRPCInferenceServiceServicer
    ) -> None:
        """Answers calls; the health service says NOT_SERVING still.

        The port that a machine's workers share is opened no sooner: before, connections would only wait in it.
        """
        if self._place is not None:
            self._listen(split_address(self._place.address)[1])
        readable = ReadableServer(self._server)
        dnc_pb2_grpc.add_DncServiceServicer_to_server(service, readable)
        inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, readable)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, (*SERVICES, health.SERVICE_NAME))
        await self.set_health(NOT_SERVING)
        await self._server.start()

    def close_private(self) -> None:
        """Nobody comes in past TLS any more."""
        shutil.rmtree(self._private_folder, ignore_errors=True)

    async def set_health(self, status: Any) -> None:
        """What the health service answers, for the server as a whole and for each of our services."""
        for name in ("", *SERVICES):
            await self._health.set(name, status)

    async def leave(self) -> None:
        """The health service says NOT_SERVING from now on."""
        await self._health.enter_graceful_shutdown()

    async def close(self, grace_s: float) -> None:
        """Calls under way may end within the grace time."""
        await self._server.stop(grace_s)
        self.close_private()
