"""tritonclient, as it is: its sequences are sessions, with the bits that the contract's own endpoint gives."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dnc_serve.client import Client
from dnc_serve.handler.arrays import Float32
from tests.clients.conftest import HTTP_PORT, ForeignClient
from tests.clients.sequences import INPUTS, NUMBERS, TIMESTEPS, outputs, request
from tests.server_process import REPOSITORY, ServerProcess

KINDS = ("sync", "aio", "stream", "http")
Make = Callable[[str], ForeignClient]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_is_a_session(
    triton: Make, server: ServerProcess, expected: Float32, sequence_id: int, kind: str
) -> None:
    client = triton(kind)
    places = [(0, 5), (5, 6), (6, TIMESTEPS)]
    answers = client.ask(*(request(sequence_id, *place) for place in places))
    assert [answer["position"] for answer in answers] == [5, 6, TIMESTEPS]
    assert np.array_equal(outputs(answers), expected)
    with Client(server.address) as ours:
        assert str(sequence_id) not in [session.id for session in ours.sessions()]  # the sequence has ended


@pytest.mark.parametrize("kind", KINDS)
def test_many_sequences_at_once(triton: Make, expected: Float32, kind: str) -> None:
    names = ["a", "b", *(next(NUMBERS) for _ in range(2))]
    requests = [request(name, start, start + 4) for start in range(0, TIMESTEPS, 4) for name in names]
    answers = triton(kind).ask(*requests)
    for number in range(len(names)):
        assert np.array_equal(outputs(answers[number :: len(names)]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_goes_on_through_the_contract(
    triton: Make, server: ServerProcess, expected: Float32, kind: str
) -> None:
    name = f"patient-{kind}"
    first = outputs(triton(kind).ask(request(name, 0, 5)))
    with Client(server.address) as client, client.session(name) as session:
        rest = session.step(INPUTS[5:])
    assert np.array_equal(np.concatenate([first, rest]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_server_loses_no_sequence(
    triton: Make, server: ServerProcess, expected: Float32, sequence_id: int, kind: str
) -> None:
    before = triton(kind).ask(request(sequence_id, 0, 5))
    server.kill()
    server.start()
    after = triton(kind).ask(request(sequence_id, 5, TIMESTEPS))
    assert after[0]["position"] == TIMESTEPS
    assert np.array_equal(outputs(before + after), expected)


@pytest.mark.parametrize("named", [{"id": "third"}, {"parameters": {"position": 5}}])
@pytest.mark.parametrize("killed", [False, True])
def test_what_is_sent_again_is_applied_once(
    triton: Make, server: ServerProcess, expected: Float32, sequence_id: int, named: dict[str, Any], killed: bool
) -> None:
    first = triton("sync").ask(request(sequence_id, 0, 5), request(sequence_id, 5, 8, **named))
    if killed:
        server.kill()
        server.start()
    client = triton("sync")
    again = client.ask(request(sequence_id, 5, 8, **named))[0]
    assert again.pop("replayed")
    assert again == first[1]
    rest = client.ask(request(sequence_id, 8, TIMESTEPS))
    assert np.array_equal(outputs(first + rest), expected)


def test_a_refusal_leaves_the_stream_alive(triton: Make, expected: Float32, sequence_id: int) -> None:
    wrong = request(sequence_id, 5, 6) | {"inputs": [[0.5, 0.5]], "id": "wrong"}
    unknown = request("nobody", 5, 6)
    answers = triton("stream").ask(
        request(sequence_id, 0, 5), wrong, unknown, request(sequence_id, 5, TIMESTEPS, final=True)
    )
    refusals = [answer["error"] for answer in answers if "error" in answer]
    assert sorted(refusals) == [
        "inference request for sequence nobody to model 'copy' must specify the START flag on the first request of the "
        "sequence",
        "inputs have shape [1, 2], expected [timesteps, 5]",
    ]
    answered = [answer for answer in answers if "outputs" in answer]
    assert answered[-1]["triton_final_response"]
    assert np.array_equal(outputs(answered), expected)


def test_a_missing_start_is_the_error_that_triton_gives(triton: Make) -> None:
    (answer,) = triton("sync").ask(request("without-start", 5, 6))
    assert answer["status"] == "StatusCode.INVALID_ARGUMENT"
    assert "sequence without-start to model 'copy' must specify the START flag" in answer["error"]


def test_what_the_page_says_can_be_pasted(server: ServerProcess) -> None:
    page = (REPOSITORY / "docs" / "triton.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    # The tests' model is smaller than the one of the page.
    program = program.replace("localhost:8500", server.address).replace("(2, 10)", f"(2, {INPUTS.shape[1]})")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "(2, 4) 4\n"
    infer, own = (text for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "curl" in text)
    assert json.loads(shell(infer))["parameters"]["position"] == 1
    assert re.findall(r"event: (\w+)$", shell(own), re.MULTILINE) == ["chunk", "chunk", "end", "frame"]


def shell(block: str) -> str:
    """What a block of the page prints."""
    block = block.replace("localhost:8501", f"127.0.0.1:{HTTP_PORT}").replace("[1, 10]", "[1, 5]")
    block = block.replace("[1,0,0,0,0,0,0,0,0,0]", "[1,0,0,0,0]").replace("[0,1,0,0,0,0,0,0,0,0]", "[0,1,0,0,0]")
    return subprocess.run(["bash", "-euc", block], capture_output=True, text=True, check=True).stdout
