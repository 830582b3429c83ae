"""What is on its way to a real server: each sending is a message of its own."""

from dnc_serve.client import AsyncClient
from dnc_serve.client.arrays import from_wire
from tests.handler.harness import random_inputs


async def test_what_is_sent_again_leaves_the_earlier_sending_its_id(address: str) -> None:
    """A chunk is sent while the server stands behind it, as after a power loss, and again before that has left.

    The first sending is refused. Were that taken for a refusal of the second one, all would go out once more.
    """
    inputs = random_inputs(1, 8)
    async with AsyncClient(address) as client:
        async with client.session() as reference:
            expected = await reference.step(inputs[:4]), await reference.step(inputs[4:])
        async with client.session() as session:
            delivery = session._opened
            ledger = delivery.ledger
            first = session._enter_piece(ledger, inputs[:4], False, False)
            [sent] = ledger.due()
            ledger.answer(
                sent.request_id,
                position=4,
                durable_position=0,
                experience=0,
                outputs=expected[0].tobytes(),
                result=None,
            )
            # Nothing below waits, so all of it stands in the stream before anything leaves.
            [second] = session.enter(inputs[4:])
            earlier = second.request
            assert ledger.rewind(0)
            delivery.push()
            assert [earlier.chunk.request_id, first.request.chunk.request_id] == [2, 3]
            assert second.request.chunk.request_id == second.request_id == 4
            await delivery.settled(second)
            assert from_wire(second.result.outputs).tobytes() == expected[1].tobytes()
            assert (await session.info()).position == session.position == 8
            assert second.request_id == 4  # it did not go out again
