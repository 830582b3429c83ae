import dataclasses

import numpy as np
import pytest

from dnc_serve.handler.store.records import Damaged, decode_record, decode_snapshot, encode_record, encode_snapshot

INPUTS = np.arange(6, dtype=np.float32).reshape(3, 2)
OUTPUTS = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
STATE = np.linspace(-1, 1, 50, dtype=np.float32)


def a_record(reset: str = ""):
    return encode_record("s", 7, 4, 30, 2, 1.5, "abc", INPUTS, OUTPUTS, reset, 2**64 - 1)


def a_snapshot():
    return encode_snapshot("s", 7, 4, 30, 2, 1.5, "abc", STATE)


@pytest.mark.parametrize("reset", ["", "experience"])
def test_a_chunk_comes_back(reset: str) -> None:
    operation = decode_record(a_record(reset))
    assert (operation.start, operation.position, operation.ordinal) == (27, 30, 4)
    assert (operation.reset, operation.fingerprint, operation.writer_id) == (reset, "abc", 2**64 - 1)
    assert np.array_equal(operation.inputs.view("<f4"), INPUTS)
    assert np.array_equal(operation.outputs.view("<f4"), OUTPUTS)


@pytest.mark.parametrize("scope", ["experience", "all"])
def test_a_reset_comes_back(scope: str) -> None:
    operation = decode_record(encode_record("s", 7, 4, 30, 2, 1.5, "abc", None, None, scope, 9))
    assert (operation.reset, len(operation.inputs), operation.start, operation.writer_id) == (scope, 0, 30, 9)


def test_a_snapshot_comes_back() -> None:
    state, fingerprint = decode_snapshot(a_snapshot())
    assert np.array_equal(state, STATE)
    assert fingerprint == "abc"


def test_every_flipped_bit_and_every_cut_of_a_record_is_noticed() -> None:
    record = a_record()
    for bit in range(len(record.body) * 8):
        body = bytearray(record.body)
        body[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            decode_record(record._replace(body=bytes(body)))
    for length in range(len(record.body)):
        with pytest.raises(Damaged):
            decode_record(record._replace(body=record.body[:length]))


def test_every_flipped_bit_of_a_snapshot_is_noticed() -> None:
    snapshot = a_snapshot()
    for bit in range(len(snapshot.state) * 8):
        state = bytearray(snapshot.state)
        state[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            decode_snapshot(dataclasses.replace(snapshot, state=bytes(state)))


@pytest.mark.parametrize(
    "other",
    [{"session_id": "t"}, {"incarnation": 8}, {"ordinal": 5}, {"position": 31}, {"experience": 3}],
)
def test_a_record_that_strayed_is_noticed(other: dict) -> None:
    with pytest.raises(Damaged, match="checksum"):
        decode_record(a_record()._replace(**other))
    with pytest.raises(Damaged, match="checksum"):
        decode_snapshot(dataclasses.replace(a_snapshot(), **other))
