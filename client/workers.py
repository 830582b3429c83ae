"""A server with several workers: which of them has a session, and whether it can be called directly.

Any worker answers for all of them, so nothing here has to be right: a call that comes to another one is passed on.
Called directly are those that have answered at their own addresses, which a proxy, a container or a firewall may hide.
One that doesn't answer any more is called as by any client, until it has been found again. With a token and without TLS
none is called directly: whoever listens at an address that only a server named would get the token.
"""

import asyncio
from collections.abc import Callable

import grpc.aio

from dnc_serve.client.errors import DncError
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from dnc_serve.proto.dnc.v1 import dnc_pb2_grpc
from dnc_serve.proto.workers import owner_of

# How long a worker may take to answer for the first time.
PROBE_S = 1.0
# One that has gone is looked for after these pauses, the last of them again and again.
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

Metadata = tuple[tuple[str, str], ...]


class Workers:
    """What is known of the workers behind each of a client's targets."""

    def __init__(
        self, stub: Callable[[str], dnc_pb2_grpc.DncServiceStub], metadata: Callable[[], Metadata], *, direct: bool
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._direct = direct
        self._addresses: dict[str, list[str]] = {}  # by worker; empty for one that is not called directly
        self._searches: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def address(self, target: str, session_id: str) -> str:
        """Where a session's calls to a target go."""
        addresses = self._addresses.get(target)
        return (addresses[owner_of(session_id, len(addresses))] or target) if addresses else target

    def lost(self, target: str, address: str) -> bool:
        """A worker doesn't answer: others are asked for its sessions, until it is found. False if it is none."""
        addresses = self._addresses.get(target, [])
        if address not in addresses or self._closed:
            return False
        addresses[addresses.index(address)] = ""
        if target not in self._searches:
            self._searches[target] = asyncio.create_task(self._search(target))
        return True

    async def learn(self, target: str, told: pb.Workers) -> bool:
        """Takes up what a target says of its workers; returns whether all of them answer."""
        if not self._direct:
            return True
        numbers = range(len(told.addresses))
        answered = await asyncio.gather(*(self._answers(target, told, number) for number in numbers))
        self._addresses[target] = list(answered)
        return all(answered)

    async def _answers(self, target: str, told: pb.Workers, number: int) -> str:
        """A worker's address, if it is that worker who answers there."""
        if not (address := _beside(target, told.addresses[number])):
            return ""
        model = await self._model(address)
        same = model is not None and (model.workers.machine, model.workers.number) == (told.machine, number)
        return address if same else ""

    async def _search(self, target: str) -> None:
        pauses = iter(PAUSES_S)
        found = False
        while not found:
            await asyncio.sleep(next(pauses, PAUSES_S[-1]))
            model = await self._model(target)
            found = model is not None and await self.learn(target, model.workers)
        del self._searches[target]

    async def _model(self, address: str) -> pb.GetModelResponse | None:
        try:
            model: pb.GetModelResponse = await self._stub(address).GetModel(
                pb.GetModelRequest(), timeout=PROBE_S, metadata=self._metadata()
            )
        except (grpc.aio.AioRpcError, DncError):
            return None
        return model

    def close(self) -> None:
        """Looks for nobody any more."""
        self._closed = True
        for search in self._searches.values():
            search.cancel()


def _beside(target: str, address: str) -> str:
    """A worker's address as seen from here: without a host, it is that of the target. Empty if that is none."""
    if not address.startswith(":"):
        return address
    if target.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")):
        return ""
    return target.rpartition(":")[0] + address
