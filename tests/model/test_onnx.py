"""The tick as an ONNX program, run by onnxruntime."""

import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch

from dnc_serve.model import DNC, StateLayout
from dnc_serve.model.tick import TickModule


@pytest.mark.parametrize(
    "options",
    [
        {"num_hidden_layers": 1},
        {
            "rnn_type": "gru",
            "write_heads": 2,
            "num_hidden_layers": 1,
            "num_layers": 2,
            "share_memory": False,
            "cosine": "dnc_package",
            "allocation_order": "usage",
        },
    ],
)
def test_onnxruntime_steps_any_number_of_rows_as_the_model_does(options: dict[str, object], tmp_path: Path) -> None:
    dnc = DNC(3, 5, nr_cells=9, **options)
    layout = StateLayout(dnc.config)
    module = TickModule(dnc, least_rows=1).eval()
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about itself
        program = torch.onnx.export(
            module,
            (torch.zeros(1, 2, 3), torch.zeros(2, layout.size)),
            dynamo=True,
            verbose=False,
            input_names=["inputs", "states"],
            output_names=["outputs", "states_after"],
            dynamic_shapes=({1: rows}, {0: rows}),
        )
    program.save(tmp_path / "tick.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "tick.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        inputs = torch.randn(1, count, 3)
        # Of states well on their way: from zeros, slots of equal usage are told apart by the last bit of an addition.
        packed = torch.rand(count, layout.size) / 10
        with torch.no_grad():
            outputs, after = module(inputs, packed)
        found, found_after = session.run(None, {"inputs": inputs.numpy(), "states": packed.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), outputs, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(found_after), after, rtol=0, atol=1e-5)
