"""A row's bits are the same alone, in a small tile and in a large one."""

import pytest
import torch

from dnc_serve.model.config import DNCConfig
from dnc_serve.model.dnc import DNC
from dnc_serve.model.tick import TickModule

MANY = 16


@pytest.mark.parametrize(
    "options",
    [
        {"rnn_type": "lstm", "num_hidden_layers": 2},
        {"rnn_type": "gru", "num_layers": 2, "share_memory": False},
        {"rnn_type": "rnn", "nonlinearity": "relu"},
    ],
    ids=["lstm", "gru", "rnn"],
)
@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
def test_few_rows_have_the_bits_of_rows_among_many(options: dict[str, object], scripted: bool) -> None:
    torch.manual_seed(8)
    config = DNCConfig(input_size=7, output_size=5, hidden_size=33, nr_cells=19, cell_size=9, read_heads=3, **options)  # type: ignore[arg-type]
    module = TickModule(DNC.from_config(config)).eval()
    step = torch.jit.script(module) if scripted else module
    inputs = torch.randn(6, MANY, 7)
    states = 0.1 * torch.randn(MANY, sum(module.packing.sizes)).abs()
    with torch.inference_mode():
        outputs, after = step(inputs, states)
        for rows in (1, 2, 4, 5):
            few_outputs, few_after = step(inputs[:, :rows], states[:rows])
            assert torch.equal(few_outputs, outputs[:, :rows]), rows
            assert torch.equal(few_after, after[:rows]), rows
