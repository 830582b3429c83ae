from dataclasses import replace

import pytest
import torch

from dnc_serve.model import DNC, DNCConfig, load_model, load_weights, save_weights
from dnc_serve.model.weights import CONFIG_FILE, WEIGHTS_FILE, weights_digest

CONFIG = DNCConfig(input_size=3, hidden_size=5, nr_cells=4, bias=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_comes_back_from_its_folder(tmp_path, dtype):
    dnc = DNC.from_config(CONFIG).to(dtype)
    save_weights(dnc, tmp_path / "run")
    again = load_model(tmp_path / "run")
    assert again.config == CONFIG
    x = torch.randn(2, 3, 3, dtype=dtype)
    assert torch.equal(again(x)[0], dnc(x)[0])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {WEIGHTS_FILE, CONFIG_FILE}


def test_weights_do_not_depend_on_the_number_of_slots(tmp_path):
    save_weights(DNC.from_config(CONFIG), tmp_path)
    larger = load_model(tmp_path, nr_cells=9)
    assert larger.config == replace(CONFIG, nr_cells=9)
    assert larger(torch.randn(1, 2, 3))[1].memory[0].memory.shape == (1, 9, 10)


def test_weights_of_another_model_or_damaged_ones_are_refused(tmp_path):
    save_weights(DNC.from_config(CONFIG), tmp_path)
    with pytest.raises(ValueError, match="don't fit this model"):
        load_weights(DNC.from_config(replace(CONFIG, hidden_size=6)), tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"not weights")
    with pytest.raises(ValueError, match="isn't a safetensors file"):
        load_model(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("[1]")
    with pytest.raises(ValueError, match="isn't a model's config"):
        load_model(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors doesn't exist"):
        load_model(tmp_path)


def test_the_digest_names_all_that_decides_a_step():
    dnc = DNC.from_config(CONFIG)
    weights = dnc.state_dict()
    digest = weights_digest(CONFIG, weights)
    assert digest == weights_digest(replace(CONFIG, dropout=0.5), dict(reversed(weights.items())))
    others = [weights_digest(replace(CONFIG, nr_cells=5), weights), weights_digest(replace(CONFIG, clip=1), weights)]
    others += [weights_digest(replace(CONFIG, **sparse), weights) for sparse in (
        {"memory": "sparse"}, {"memory": "sparse", "sparse_reads": 2}, {"memory": "sparse_links"},
        {"memory": "sparse_links", "temporal_reads": 3},
    )]  # fmt: skip
    assert digest == weights_digest(replace(CONFIG, sparse_reads=2), weights), "which a dense memory hasn't"
    with torch.no_grad():
        dnc.output.bias[0] += 1
    others.append(weights_digest(CONFIG, dnc.state_dict()))
    assert len({digest, *others}) == 8
