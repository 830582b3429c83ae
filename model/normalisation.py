"""Data brought to mean 0 and deviation 1 for training; and a model that does so itself, with no step more."""

from typing import NamedTuple

import torch
from torch import Tensor

from dnc_serve.model.dnc import DNC

# A float32 keeps seven digits: of a column that varies by less than this share of its size, too few are left.
LEAST_VARIATION = 1e-5


class Scale(NamedTuple):
    """Of each column, in float64."""

    mean: Tensor  # [columns]
    deviation: Tensor  # [columns]; of a constant one its size, or 1, so that its values become zeros

    def normalised(self, values: Tensor) -> Tensor:
        """Values [..., columns] with mean 0 and deviation 1, in float32."""
        return ((values.double() - self.mean) / self.deviation).float()


def scale_of(values: Tensor, names: list[str]) -> Scale:
    """The scale of values [rows, columns]. Raises ValueError that names one which varies too little."""
    values = values.double()
    mean, deviation = values.mean(0), values.std(0, correction=0)
    constant = (values == values[:1]).all(0)
    for column in ((deviation < LEAST_VARIATION * mean.abs()) & ~constant).nonzero().flatten().tolist():
        raise ValueError(
            f"{names[column]} is {mean[column]:.9g} ± {deviation[column]:.3g}; expected a deviation of at least "
            f"{LEAST_VARIATION:g} of the mean, or float32 can't tell its values apart: subtract its offset first"
        )
    return Scale(mean, torch.where(constant, mean.abs().clamp(min=1), deviation))


@torch.no_grad()
def folded(model: DNC, inputs: Scale, outputs: Scale | None) -> DNC:
    """A copy that takes inputs and gives outputs as they are, of a model for normalised ones.

    Both are affine, and so is what they meet: inputs enter the first controller cell alone, through `weight_ih`, and
    outputs leave through the output layer. So the scales go into those weights, W (x - mean) / deviation being
    (W / deviation) x - (W / deviation) mean, and whatever steps a DNC steps this one. `outputs` None leaves outputs as
    they are, such as logits.

    Raises ValueError for a model that clips its outputs: it would clip them in the data's units.
    """
    if outputs is not None and model.clip_result > 0:
        raise ValueError(f"clip is {model.clip_result:g}; expected 0, or outputs would be clipped in the data's units")
    copy = DNC.from_config(model.config, batch_first=model.batch_first)
    weights = {name: tensor.detach().cpu().double() for name, tensor in model.state_dict().items()}
    cell = "towers.0.controllers.0.cells.0."
    weight = weights[f"{cell}weight_ih"].clone()
    weight[:, : model.config.input_size] /= inputs.deviation
    shift = weight[:, : model.config.input_size] @ inputs.mean
    weights[f"{cell}weight_ih"] = weight
    weights[f"{cell}bias_ih"] = weights[f"{cell}bias_ih"] - shift
    if outputs is not None:
        weights["output.weight"] = weights["output.weight"] * outputs.deviation.unsqueeze(1)
        weights["output.bias"] = weights["output.bias"] * outputs.deviation + outputs.mean
    copy.to(next(model.parameters()).dtype).load_state_dict(weights)
    return copy.train(model.training)
