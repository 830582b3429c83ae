"""The network between clients and servers: messages are late, lost, doubled, and overtake each other."""

import asyncio
from collections.abc import Callable
from typing import Any

from dnc_serve.handler.errors import ServeError
from tests.simulation.loop import VirtualLoop, outside
from tests.simulation.machines import Machine

TIMEOUT_S = 1.0


class Network:
    """`loss` is the share of messages that are lost, doubled or very late. `lasting` says whether what was answered
    survives a power loss; with disks that lie, nothing does."""

    def __init__(self, loop: VirtualLoop, machines: list[Machine], lasting: bool, log: Callable[..., None]) -> None:
        self.loop, self.machines, self.log = loop, machines, log
        self.loss = 0.0
        self.lies = any(one.lies for one in machines)  # what a disk called synced may be lost
        self._lasting = lasting
        self._number = 0

    def may_forget(self, since: float) -> bool:
        return not self._lasting and any(one.power_lost_at >= since for one in self.machines)

    def address_of(self, address: str) -> int:
        return next(number for number, one in enumerate(self.machines) if one.address == address)

    async def call(self, server: int, call: str, request: Any) -> Any:
        """The answer, a refusal, or None if none came in time."""
        self._number += 1
        number, machine = self._number, self.machines[server]
        answered: asyncio.Future[Any] = self.loop.create_future()

        def arrive() -> None:
            if machine.life is not None:
                machine.life.spawn(serve())

        async def serve() -> None:
            try:
                answer = await machine.answer(call, request)
            except ServeError as error:
                answer = error
            if call == "dump" and not isinstance(answer, ServeError):
                seen, _ = answer
                answer = seen.head, tuple(int(number) for number in seen.state)
            self._send(lambda: settle(answer))

        def settle(answer: Any) -> None:
            if not answered.done():
                answered.set_result(answer)

        self.log("send", number, machine.address, call, request)
        self._send(arrive)
        try:
            answer = await asyncio.wait_for(answered, TIMEOUT_S)
        except TimeoutError:
            answer = None
        refused = isinstance(answer, ServeError)
        self.log("took", number, f"{answer.reason}: {answer.message}" if refused else answer)
        return answer

    def _send(self, arrive: Callable[[], None]) -> None:
        chance = self.loop.chance
        for _ in range(1 + (chance.random() < self.loss)):
            if chance.random() < self.loss:
                continue
            late = chance.random() < self.loss
            delay = 30 * chance.random() ** 4 if late else 0.002 * chance.random()
            self.loop.call_later(delay, arrive, context=outside())
