import numpy as np
import pytest

from dnc_serve.handler.api.blob import MAX_HEADER_BYTES, SessionBlob, check_size, decode_blob
from dnc_serve.handler.errors import ServeError
from dnc_serve.model.rows import Field, RowLayout

SIZE = 40
LAYOUT = RowLayout([Field((SIZE,), name="state")])
STATE = np.linspace(-2, 2, SIZE, dtype=np.float32)
BLOB = SessionBlob("s", "d" * 64, 30, 2, "abc", STATE)


def refused(blob: bytes) -> ServeError:
    with pytest.raises(ServeError) as caught:
        decode_blob(blob, "d" * 64, LAYOUT)
    return caught.value


def test_a_blob_comes_back() -> None:
    read = decode_blob(BLOB.encode(), "d" * 64, LAYOUT)
    assert np.array_equal(read.state, STATE)
    assert (read.session_id, read.position, read.experience, read.fingerprint) == ("s", 30, 2, "abc")


def test_every_flipped_bit_is_refused() -> None:
    blob = BLOB.encode()
    for bit in range(len(blob) * 8):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(flipped)).reason in ("BAD_BLOB", "MODEL_MISMATCH")


def test_every_cut_is_refused() -> None:
    blob = BLOB.encode()
    for length in range(len(blob)):
        assert refused(blob[:length]).reason == "BAD_BLOB"


def test_another_model_is_refused_with_both_digests() -> None:
    with pytest.raises(ServeError) as caught:
        decode_blob(BLOB.encode(), "e" * 64, LAYOUT)
    assert caught.value.reason == "MODEL_MISMATCH"
    assert caught.value.metadata == {"session_digest": "d" * 64, "model_digest": "e" * 64}


@pytest.mark.parametrize("claimed", [2**63, 2**40, MAX_HEADER_BYTES + 1, 0, 1])
def test_a_header_that_claims_an_absurd_size_is_refused(claimed: int) -> None:
    blob = claimed.to_bytes(8, "little") + BLOB.encode()[8:]
    assert "claims" in refused(blob).message


@pytest.mark.parametrize("size", [0, 4 * SIZE, 4 * SIZE + MAX_HEADER_BYTES + 1, 2**62])
def test_a_size_that_no_blob_can_have_is_refused_before_anything_is_kept(size: int) -> None:
    with pytest.raises(ServeError, match="expected 160 to"):
        check_size(size, SIZE)


def test_numbers_that_are_not_finite_are_refused() -> None:
    state = STATE.copy()
    state[3] = np.nan
    assert refused(SessionBlob("s", "d" * 64, 30, 2, "abc", state).encode()).reason == "BAD_BLOB"
