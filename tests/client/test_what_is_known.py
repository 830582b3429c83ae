"""What an error says of what was applied is so."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dnc_serve.client import AsyncClient, Client, NotFinite, ReplyGone, StepConflict, Unauthenticated
from dnc_serve.client.arrays import Float32
from tests.client.relay import relay_to
from tests.handler.door import open_door
from tests.handler.harness import INPUT_SIZE, random_inputs

NOTHING = "nothing that was sent after it was applied"
UNKNOWN = "may or may not have been applied"
PIECE = 64  # timesteps that the server takes at once
NAN = np.full((1, INPUT_SIZE), np.nan, np.float32)


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def long_with_a_fault(at: int) -> Float32:
    inputs = random_inputs(1, at + PIECE)
    inputs[at] = np.nan
    return inputs


def test_of_a_long_step_that_fails_what_was_applied_is_said(client: Client) -> None:
    """And the same holds for all that fails after it: the session stands where that step has left it."""
    at = 10_000
    applied = at // PIECE * PIECE
    with client.session() as session:
        with pytest.raises(NotFinite) as caught:
            session.step(long_with_a_fault(at))
        assert f"was answered up to position {applied}; {NOTHING}" in caught.value.message
        assert f"{applied} timesteps of this step were applied before" in caught.value.message
        assert (session.position, session.info().position) == (0, applied)
        for inputs, error in ((NAN, NotFinite), (random_inputs(2, 3), StepConflict)):
            with pytest.raises(error) as again:
                session.step(inputs)
            assert f"the server has applied what was sent up to position {applied}" in again.value.message
            assert "nothing" not in again.value.message
        assert session.resync().position == applied
        with pytest.raises(NotFinite, match=f"up to position {applied}; {NOTHING}"):
            session.step(NAN)


def test_whoever_is_overtaken_is_told_nothing_of_the_others_timesteps(address: str) -> None:
    with Client(address) as one, Client(address) as other:
        mine, theirs = one.session("overtaken"), other.session("overtaken")
        theirs.step(random_inputs(3, 5_000))
        with pytest.raises(StepConflict) as caught:
            mine.step(random_inputs(4, 2))
        assert f"was answered up to position 0; {NOTHING}" in caught.value.message
        theirs.delete()


def test_of_replies_that_are_gone_nobody_says_that_nothing_was_applied(small_artifact: Path, tmp_path: Path) -> None:
    """The same long step once more, where no journal keeps what its first pieces were answered."""
    with (
        open_door(small_artifact, tmp_path, durability="off", max_chunk_timesteps=PIECE) as door,
        Client(door.addresses.grpc) as client,
        client.session() as session,
    ):
        inputs = long_with_a_fault(10_000)
        with pytest.raises(NotFinite):
            session.step(inputs)
        applied = session.info().position
        with pytest.raises(ReplyGone, match=f"the server has applied what was sent up to position {applied}"):
            session.step(inputs)


async def test_what_was_sent_before_a_refusal_may_have_been_applied(address: str) -> None:
    """The answer is lost with its connection, and the next one is refused."""
    fails = False

    def token() -> str:
        if fails:
            raise OSError("the vault is closed")
        return "token"

    async with relay_to(address) as relay, AsyncClient(relay.address, token=token) as client:
        session = await client.session()
        await session.step(random_inputs(5, 4))
        fails = True
        relay.cut_after(8)
        with pytest.raises(Unauthenticated, match=f"the vault is closed.*position 4; what was sent after it {UNKNOWN}"):
            await session.step(random_inputs(6, 3))
        fails = False
        assert (session.position, (await session.info()).position) == (4, 7)
        await session.step(random_inputs(6, 3))  # the same one: it is applied once
        assert (session.position, (await session.info()).position) == (7, 7)
        with pytest.raises(NotFinite, match=f"up to position 7; {NOTHING}"):
            await session.step(NAN)
        fails = True
        await session._opened._stream.close()  # type: ignore[union-attr]
        with pytest.raises(Unauthenticated, match=f"up to position 7; {NOTHING}"):  # it never left
            await session.step(random_inputs(7, 1))
        fails = False
        await session.step(random_inputs(8, 2))  # what failed is not sent after all
        assert (session.position, (await session.info()).position) == (9, 9)
