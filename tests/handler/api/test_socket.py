"""A socket for clients on the machine, beside the port."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from pydantic import ValidationError

from dnc_serve.client import Client
from dnc_serve.handler.config import ServeConfig
from dnc_serve.proto.inference import inference_pb2, inference_pb2_grpc
from tests.handler.door import TIMEOUT, open_door
from tests.handler.harness import random_inputs


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dnc-") as folder:  # not deep: a socket's path is short
        yield Path(folder) / "a b.socket"


def test_both_protocols_are_served_at_a_socket(artifact_folder: Path, tmp_path: Path, place: Path) -> None:
    inputs = random_inputs(1, 4)
    with open_door(artifact_folder, tmp_path, listen=f"unix:{place}") as door:
        with Client(f"unix:{place}") as client, client.session("at-the-socket") as session:
            given = session.step(inputs)
        with Client(door.addresses.grpc) as client, client.session() as session:
            assert np.array_equal(session.step(inputs), given)
        with grpc.insecure_channel(f"unix:{place}") as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(inference_pb2.ServerReadyRequest(), timeout=TIMEOUT).ready
        assert place.stat().st_mode & 0o777 == 0o660


def test_a_living_server_keeps_its_socket(artifact_folder: Path, tmp_path: Path, place: Path) -> None:
    with open_door(artifact_folder, tmp_path / "first", listen=f"unix:{place}"):
        second = open_door(artifact_folder, tmp_path / "second", listen=f"unix:{place}")
        with pytest.raises(OSError, match="something listens already"), second:
            pass
        with Client(f"unix:{place}") as client:
            assert client.model().input_size
    place.unlink(missing_ok=True)
    place.write_text("")
    with pytest.raises(OSError, match="no socket"), open_door(artifact_folder, tmp_path, listen=f"unix:{place}"):
        pass


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "unix:", "unix:/", "unix:/" + "x" * 107])
def test_a_wrong_place_is_refused(listen: str) -> None:
    with pytest.raises(ValidationError, match="expected"):
        ServeConfig(listen=listen)
