"""Dumps: thinned ones, and what the last timestep asked of memory, of the present and the past, at every door."""

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from dnc_serve.handler.api.operations import PART_BYTES
from dnc_serve.handler.api.views import thin
from dnc_serve.handler.arrays import Float32
from dnc_serve.model.dnc import DNC
from dnc_serve.model.export import export
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, chunk, error_info, open_door, refused, whole
from tests.handler.harness import INPUT_SIZE, random_inputs

SLOTS, WORD = 600, 8
INTERFACE = {"allocation_gates", "write_gates", "free_gates", "read_modes", "write_strengths", "read_strengths"}


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A session of whose link matrix a message holds no more than a part."""
    folder = tmp_path_factory.mktemp("large")
    export(
        DNC(INPUT_SIZE, 8, nr_cells=SLOTS, cell_size=WORD, read_heads=2, num_hidden_layers=1, output_size=4),
        folder / "artifact",
    )
    with open_door(folder / "artifact", folder / "state", slots=4, code="torchscript") as door:
        door.create("s")
        for seed in range(6):
            door.step("s", random_inputs(seed, 1))
        door.create("new")
        yield door


def thinned(parts: list[pb.DumpPart]) -> tuple[dict[str, Float32], dict[str, tuple[int, ...]]]:
    return whole(parts), {part.name: tuple(part.full_shape) for part in parts}


def unary(door: Door, **options: Any) -> list[pb.DumpPart]:
    request = pb.DumpMemoryRequest(dump=pb.Dump(**options))
    return [response.part for response in door.stub.DumpMemory(request, timeout=TIMEOUT)]


def in_stream(door: Door, **options: Any) -> list[pb.DumpPart]:
    return [response.dump for response in door.stream([pb.StreamRequest(dump=pb.Dump(**options))])]


@pytest.mark.parametrize("ask", [unary, in_stream])
@pytest.mark.parametrize("position", [None, 3])
def test_arrays_are_thinned_as_watchers_get_them(door: Door, ask: Any, position: int | None) -> None:
    options = {"session_id": "s", "position": position}
    full = whole(ask(door, names=["link_matrix", "memory", "usage_vector"], **options))
    parts = ask(door, names=["link_matrix", "memory", "usage_vector"], max_cells=1000, **options)
    arrays, full_shapes = thinned(parts)
    assert full_shapes == {
        "link_matrix": (1, 1, SLOTS, SLOTS), "memory": (1, SLOTS, WORD), "usage_vector": (1, SLOTS),
    }  # fmt: skip
    for name, array in full.items():
        assert full[name].any()
        np.testing.assert_array_equal(arrays[name], thin(array, 1000))
    assert sum(len(part.data) for part in parts) <= 4 * 3 * 1000
    assert {part.position for part in parts} == {6 if position is None else position}


def test_small_arrays_come_whole_and_large_ones_in_parts(door: Door) -> None:
    parts = unary(door, session_id="s", names=["link_matrix"], max_cells=(1 << 32) - 1)
    assert len(parts) == -(-4 * SLOTS * SLOTS // PART_BYTES)
    arrays, _ = thinned(parts)
    assert arrays["link_matrix"].tobytes() == door.dump("s", names=["link_matrix"])["link_matrix"].tobytes()
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]


def test_whole_arrays_are_as_ever(door: Door) -> None:
    parts = unary(door, session_id="s")
    assert all(not part.full_shape for part in parts)
    shapes = {part.name: list(part.shape) for part in parts}
    assert list(shapes)[:6] == [
        "memory", "link_matrix", "precedence", "read_weights", "write_weights", "usage_vector",
    ]  # fmt: skip
    assert shapes["link_matrix"] == [1, 1, SLOTS, SLOTS]
    assert "read_modes" not in shapes


@pytest.mark.parametrize("ask", [unary, in_stream])
def test_the_interface_of_an_earlier_timestep_is_what_a_watcher_saw_then(door: Door, ask: Any) -> None:
    session_id = f"watched-{ask.__name__}"
    door.create(session_id)
    request = pb.WatchMemoryRequest(session_id=session_id, names=["interface"], max_frames_per_second=120)
    frames = door.stub.WatchMemory(request, timeout=TIMEOUT)
    assert not next(frames).arrays
    door.step(session_id, random_inputs(7, 3))
    then = next(frames)
    frames.cancel()
    door.step(session_id, random_inputs(8, 4))
    arrays = whole(ask(door, session_id=session_id, names=["interface"], position=3))
    assert set(arrays) == set(then.arrays) == INTERFACE
    for name, array in arrays.items():
        assert array.tobytes() == then.arrays[name].array.data
    assert arrays["read_modes"].shape == (1, 2, 3)
    modes, full_shapes = thinned(
        ask(door, session_id=session_id, names=["interface"], position=3, max_cells=1000)
    )  # fmt: skip
    assert full_shapes["read_modes"] == modes["read_modes"].shape == (1, 2, 3)
    now = whole(ask(door, session_id=session_id, names=["interface"]))
    assert now["read_modes"].tobytes() != arrays["read_modes"].tobytes()


@pytest.mark.parametrize("ask", [unary, in_stream])
def test_where_no_timestep_led_there_is_no_interface(door: Door, ask: Any) -> None:
    (part,) = ask(door, session_id="new", names=["interface"])
    assert (part.name, part.data, part.last) == ("", b"", True)
    parts = ask(door, session_id="new", names=["interface", "usage_vector"])
    assert [(part.name, part.last) for part in parts] == [("usage_vector", True)]
    (part,) = ask(door, session_id="s", names=["interface"], position=0)
    assert not part.name


def test_wrong_limits_and_names_are_refused(door: Door) -> None:
    with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT) as metadata:
        unary(door, session_id="s", max_cells=0)
    assert metadata["got"] == "0"
    with refused("BAD_REQUEST", grpc.StatusCode.INVALID_ARGUMENT) as metadata:
        unary(door, session_id="s", names=["gates"], max_cells=9)
    assert metadata["got"] == "gates"
    answers = door.stream([pb.StreamRequest(dump=pb.Dump(session_id="s", max_cells=0, request_id=5))])
    assert [(answer.error.request_id, error_info(answer.error.status).reason) for answer in answers] == [
        (5, "BAD_REQUEST")
    ]


def test_a_dump_keeps_its_place_among_chunks(door: Door) -> None:
    door.create("ordered")
    messages = []
    for number in range(5):
        messages.append(pb.StreamRequest(chunk=chunk("ordered", random_inputs(number, 1), request_id=2 * number)))
        dump = pb.Dump(session_id="ordered", names=["link_matrix"], max_cells=100, request_id=2 * number + 1)
        messages.append(pb.StreamRequest(dump=dump))
    answers = door.stream(messages)
    asked = [getattr(answer, answer.WhichOneof("message") or "") for answer in answers]
    assert [(answer.request_id, answer.position) for answer in asked] == [
        (number, number // 2 + 1) for number in range(10)
    ]
