import json

import numpy as np
import pytest
import torch

from dnc_serve.model import DNCConfig


def test_output_size_is_input_size_unless_given():
    assert DNCConfig(input_size=3, hidden_size=4).output_size == 3
    assert DNCConfig(input_size=3, hidden_size=4, output_size=7).output_size == 7


def test_a_config_survives_json():
    config = DNCConfig(input_size=3, hidden_size=4, rnn_type="GRU", write_heads=2, clip=0)
    assert config.rnn_type == "gru"
    assert DNCConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match=r"config has no colour and lacks hidden_size; its fields are input_size, hid"):
        DNCConfig.from_dict({"input_size": 3, "colour": 1})
    with pytest.raises(ValueError, match=r"config has no nr_cell \(did you mean nr_cells\?\); its fields are"):
        DNCConfig.from_dict({"input_size": 3, "hidden_size": 4, "nr_cell": 1})


def test_numbers_of_any_kind_become_plain_ones():
    config = DNCConfig(
        input_size=np.int64(3), hidden_size=torch.tensor(4), nr_cells=np.uint8(9), clip=np.float32(2), bias=np.True_
    )
    assert config == DNCConfig(input_size=3, hidden_size=4, nr_cells=9, clip=2.0)
    assert {type(value) for value in config.to_dict().values()} == {int, float, bool, str}
    assert DNCConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("nr_cells", 0, ValueError, "nr_cells is 0; expected at least 1"),
        ("read_heads", -2, ValueError, "read_heads is -2; expected at least 1"),
        ("hidden_size", 2.0, TypeError, "hidden_size is 2.0; expected a whole number"),
        ("hidden_size", np.float64(2), TypeError, r"hidden_size is np.float64\(2.0\); expected a whole number"),
        ("hidden_size", np.True_, TypeError, r"hidden_size is np.True_; expected a whole number"),
        ("cell_size", True, TypeError, "cell_size is True; expected a whole number"),
        ("rnn_type", "elman", ValueError, "rnn_type is 'elman'; expected one of 'lstm', 'gru', 'rnn'"),
        ("nonlinearity", None, ValueError, "nonlinearity is None; expected one of 'tanh', 'relu'"),
        ("bias", 1, TypeError, "bias is 1; expected True or False"),
        ("dropout", 1.0, ValueError, r"dropout is 1.0; expected a number in \[0, 1.0\)"),
        ("clip", -1, ValueError, r"clip is -1; expected a number in \[0, inf\)"),
        ("clip", float("nan"), ValueError, "clip is nan"),
        ("clip", "20", TypeError, "clip is '20'"),
    ],
)
def test_a_wrong_value_is_named_with_its_range(name, value, error, message):
    with pytest.raises(error, match=message):
        DNCConfig(**{"input_size": 3, "hidden_size": 4, name: value})
