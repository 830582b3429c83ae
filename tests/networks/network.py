"""Machines of a network of their own, each a network namespace with an address, and the wire between them.

The wire is here: what a namespace sends comes out of a TUN device, and is dropped, or delayed, on its way to another's.
That takes no `netem`, which not every kernel has, and each direction between two machines can be cut by itself. A
namespace is held by open files alone, so nothing is left when the tests end, however they do.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS = 0x8916, 0x891C, 0x8914
IFF_UP, IFF_RUNNING = 0x1, 0x40
DEVICE = b"wire"
LARGEST = 65_536  # bytes of a packet


class Machine:
    """A namespace with one device; what `command` gives runs in it, and ends with the tests."""

    def __init__(self, number: int) -> None:
        self.address = f"10.77.0.{number}"
        self.wire = self.namespace = -1
        failure: list[OSError] = []

        def make() -> None:
            try:
                self._make()
            except OSError as error:
                failure.append(error)

        thread = threading.Thread(target=make)  # it alone moves into the new namespace, and ends there
        thread.start()
        thread.join()
        if failure:
            raise failure[0]

    def _make(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"no network namespace can be made: {os.strerror(number)}")
        self.namespace = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        self.wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.wire, TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, address in ((SIOCSIFADDR, self.address), (SIOCSIFNETMASK, "255.255.255.0")):
                name = struct.pack("16sHxx4s8x", DEVICE, socket.AF_INET, socket.inet_aton(address))
                fcntl.ioctl(control, request, name)
            for device in (DEVICE, b"lo"):
                fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", device, IFF_UP | IFF_RUNNING))

    def command(self, command: Sequence[str]) -> list[str]:
        """To be started by a thread that lives as long as what it starts may."""
        within = f"--net=/proc/{os.getpid()}/fd/{self.namespace}"
        return ["nsenter", within, "setpriv", "--pdeathsig", "KILL", *command]

    def close(self) -> None:
        for descriptor in (self.wire, self.namespace):
            if descriptor >= 0:
                os.close(descriptor)


class Network:
    """Carries packets from machine to machine, in a thread."""

    def __init__(self, machines: Sequence[Machine], delay_s: float, jitter_s: float, loss: float, seed: int) -> None:
        """Each packet takes `delay_s`, more or less by up to `jitter_s`, so some overtake others; a share is lost."""
        self._machines = {socket.inet_aton(machine.address): machine for machine in machines}
        self._delay_s, self._jitter_s, self._loss = delay_s, jitter_s, loss
        self._chance = random.Random(seed)
        self._cuts: frozenset[tuple[Machine, Machine]] = frozenset()
        self.carried = self.lost = self.blocked = 0
        self._closing = False
        self._thread = threading.Thread(target=self._carry, name="wire")
        self._thread.start()

    @contextlib.contextmanager
    def cut(self, sender: Machine, receiver: Machine) -> Iterator[None]:
        """Nothing comes from one to the other; the other way all goes on."""
        self._cuts |= {(sender, receiver)}
        try:
            yield
        finally:
            self._cuts -= {(sender, receiver)}

    def close(self) -> None:
        self._closing = True
        self._thread.join()

    def _carry(self) -> None:
        under_way: list[tuple[float, int, Machine, bytes]] = []
        with selectors.DefaultSelector() as selector:
            for machine in self._machines.values():
                selector.register(machine.wire, selectors.EVENT_READ, machine)
            while not self._closing:
                rest = under_way[0][0] - time.monotonic() if under_way else 0.1
                for key, _ in selector.select(min(max(rest, 0.0), 0.1)):
                    self._take(key.data, under_way)
                while under_way and under_way[0][0] <= time.monotonic():
                    _, _, receiver, packet = heapq.heappop(under_way)
                    with contextlib.suppress(OSError):  # what finds no room is lost
                        os.write(receiver.wire, packet)

    def _take(self, sender: Machine, under_way: list[tuple[float, int, Machine, bytes]]) -> None:
        while True:
            try:
                packet = os.read(sender.wire, LARGEST)
            except BlockingIOError:
                return
            receiver = self._machines.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if receiver is None:
                continue
            if (sender, receiver) in self._cuts:
                self.blocked += 1
            elif self._chance.random() < self._loss:
                self.lost += 1
            else:
                self.carried += 1
                due = time.monotonic() + self._delay_s + self._jitter_s * self._chance.uniform(-1, 1)
                heapq.heappush(under_way, (due, self.carried, receiver, packet))


@contextlib.contextmanager
def network(
    machines: int, delay_s: float, jitter_s: float, loss: float, seed: int
) -> Iterator[tuple[Network, list[Machine]]]:
    """Skips the test where the system doesn't let us."""
    with contextlib.ExitStack() as stack:
        made: list[Machine] = []
        try:
            for number in range(1, machines + 1):
                made.append(Machine(number))
                stack.callback(made[-1].close)
        except OSError as error:
            pytest.skip(f"needs root and /dev/net/tun: {error}")
        wire = Network(made, delay_s, jitter_s, loss, seed)
        stack.callback(wire.close)
        yield wire, made
