import numpy as np
import pytest

from dnc_serve.handler.api.arrays import decode_inputs, encode_array
from dnc_serve.handler.errors import ServeError
from dnc_serve.model import TensorSpec
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb

WIDTH = 3
SPEC = TensorSpec((WIDTH,))


def decode(array: pb.Array, spec: TensorSpec = SPEC) -> np.ndarray:
    return decode_inputs(array, spec, max_timesteps=10)


def test_an_array_comes_back_as_it_went() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, WIDTH)
    assert np.array_equal(decode(encode_array(values)), values)


@pytest.mark.parametrize(
    ("dtype", "numpy_type"),
    [
        (pb.DATA_TYPE_FLOAT64, np.float64),
        (pb.DATA_TYPE_FLOAT16, np.float16),
        (pb.DATA_TYPE_INT8, np.int8),
        (pb.DATA_TYPE_UINT8, np.uint8),
        (pb.DATA_TYPE_INT32, np.int32),
        (pb.DATA_TYPE_INT64, np.int64),
    ],
)
def test_other_dtypes_become_float32(dtype: int, numpy_type: type) -> None:
    values = np.arange(6).reshape(2, WIDTH).astype(numpy_type)
    decoded = decode(pb.Array(shape=values.shape, data=values.tobytes(), dtype=dtype))
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded, values.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "reason", "says"),
    [
        (pb.Array(shape=[2, 4], data=bytes(32)), "BAD_SHAPE", r"\[2, 4\], expected \[timesteps, 3\]"),
        (pb.Array(shape=[6], data=bytes(24)), "BAD_SHAPE", r"\[6\]"),
        (pb.Array(), "BAD_SHAPE", r"\[\]"),
        (pb.Array(shape=[0, WIDTH]), "BAD_SHAPE", "at least 1"),
        (pb.Array(shape=[11, WIDTH], data=bytes(132)), "CHUNK_TOO_LONG", "11 timesteps, expected at most 10"),
        (pb.Array(shape=[4294967295, WIDTH]), "CHUNK_TOO_LONG", "4294967295"),
        (pb.Array(shape=[2, WIDTH], data=bytes(23)), "BAD_SHAPE", "take 24 bytes, got 23"),
        (pb.Array(shape=[2, WIDTH], data=bytes(24), dtype=99), "BAD_DTYPE", "99"),
    ],
)
def test_a_wrong_array_is_refused_with_what_was_expected(array: pb.Array, reason: str, says: str) -> None:
    with pytest.raises(ServeError, match=says) as caught:
        decode(array)
    assert caught.value.reason == reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(value: float) -> None:
    values = np.ones((2, WIDTH), np.float32)
    values[1, 2] = value
    with pytest.raises(ServeError, match="timestep 1, channel 2") as caught:
        decode(encode_array(values))
    assert caught.value.reason == "NOT_FINITE"


def test_a_float64_beyond_float32_is_not_finite() -> None:
    values = np.full((1, WIDTH), 1e300)
    with pytest.raises(ServeError) as caught:
        decode(pb.Array(shape=values.shape, data=values.tobytes(), dtype=pb.DATA_TYPE_FLOAT64))
    assert caught.value.reason == "NOT_FINITE"


def test_large_finite_values_pass_though_their_sum_overflows() -> None:
    values = np.full((4, WIDTH), 3e38, np.float32)
    assert np.array_equal(decode(encode_array(values)), values)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint8", "int16", "int32", "int64", "bool"])
def test_inputs_become_what_the_model_takes(dtype: str) -> None:
    spec = TensorSpec((2, 2), dtype)
    values = np.array([[[0, 1], [1, 0]]])
    for given in (values, values.astype(spec.numpy), values.astype(np.float32)):
        decoded = decode(encode_array(given), spec)
        assert decoded.dtype == spec.numpy
        assert np.array_equal(decoded, values)
    assert decode(encode_array(values[..., 0, 0]), TensorSpec((), dtype)).shape == (1,)


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", -1), ("uint8", 256), ("int32", 0.5), ("bool", 2), ("int8", 1e6)]
)
def test_a_number_that_the_model_does_not_take_is_named(dtype: str, value: float) -> None:
    with pytest.raises(ServeError, match=f"input {value}.* expected numbers of {dtype}") as caught:
        decode(encode_array(np.array([[0.0, value, 1.0]], np.float32)), TensorSpec((3,), dtype))
    assert caught.value.reason == "BAD_DTYPE"
