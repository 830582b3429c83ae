"""Programs in a server: a DNC's own, and which model's sessions another may take up."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from torch import Tensor, nn

from dnc_serve.model import DNC, export
from dnc_serve.proto.dnc.v1 import dnc_pb2 as pb
from tests.handler.door import TIMEOUT, Door, open_door, outputs_of, refused

INPUTS = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


def test_a_dnc_is_served_by_its_program(tmp_path: Path) -> None:
    torch.manual_seed(1)
    export(DNC(3, 8, nr_cells=4, num_layers=2), tmp_path / "artifact")
    outputs = {}
    for code in ("torchscript", "program"):
        with open_door(tmp_path / "artifact", tmp_path / code, code=code) as door:
            assert door.stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT).artifact == code
            door.create("s")
            outputs[code] = outputs_of(door.step("s", INPUTS))
    np.testing.assert_allclose(outputs["program"], outputs["torchscript"], rtol=0, atol=1e-6)


class Faster(nn.Module):
    """The same weights and state as a GRU cell, stepped twice."""

    def __init__(self, cell: nn.GRUCell) -> None:
        super().__init__()
        self.cell, self.input_size = cell, cell.input_size

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"hidden": torch.zeros(batch_size, self.cell.hidden_size)}

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.cell(x, self.cell(x, state["hidden"]))
        return hidden, {"hidden": hidden}


def test_a_session_goes_to_the_same_model_and_no_other(tmp_path: Path) -> None:
    cell = nn.GRUCell(3, 5)
    for name, module in [("one", cell), ("same", cell), ("other", Faster(cell))]:
        export(module, tmp_path / name)
    with open_door(tmp_path / "one", tmp_path / "state") as door:
        door.create("s")
        door.step("s", INPUTS[:4])
        parts = door.stub.ExportSession(pb.ExportSessionRequest(session_id="s"), timeout=TIMEOUT)
        blob = b"".join(part.data for part in parts)
        expected = outputs_of(door.step("s", INPUTS[4:])).tobytes()
    with open_door(tmp_path / "same", tmp_path / "state") as door:  # the state of the first, too
        assert outputs_of(door.step("s", INPUTS[4:], position=4)).tobytes() == expected
        assert imported(door, blob).session.position == 4
        assert outputs_of(door.step("i", INPUTS[4:])).tobytes() == expected
    with open_door(tmp_path / "other", tmp_path / "state") as door:
        with refused("MODEL_MISMATCH", grpc.StatusCode.FAILED_PRECONDITION):
            imported(door, blob)
        with refused("MODEL_MISMATCH", grpc.StatusCode.FAILED_PRECONDITION):
            door.step("s", INPUTS)


def imported(door: Door, blob: bytes) -> Any:
    request = pb.ImportSessionRequest(session_id="i", total_bytes=len(blob), data=blob)
    return door.stub.ImportSession(iter([request]), timeout=TIMEOUT)
