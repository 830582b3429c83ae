"""Whole sequences in and out of a DNC, in every form that `DNC.forward` takes outside TorchScript."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from dnc_serve.model.hidden import Network, as_state
from dnc_serve.model.state import DNCState, Memory, as_array, concatenate


def run(dnc: Network, input: Any, hidden: Any, reset_experience: bool, pass_through_memory: bool) -> Any:
    """`DNC.forward` outside TorchScript: (outputs, state), and the debug table as a third if `dnc.debug`."""
    batch_size = _check_input(dnc, input)
    state = as_state(dnc, hidden, batch_size)
    if reset_experience:
        state = state.reset_experience()

    if isinstance(input, PackedSequence):
        # Rows lie sorted by length, the longest first.
        if input.sorted_indices is not None:
            state = state.rows(input.sorted_indices)
        timesteps = input.data.split_with_sizes(input.batch_sizes.tolist())
        debug_row = 0 if input.unsorted_indices is None else int(input.unsorted_indices[0])
    else:
        timesteps = input.unbind(1 if dnc.batch_first else 0)
        debug_row = 0

    table: list[Memory] = []
    outputs, state = _run_timesteps(dnc, timesteps, state, pass_through_memory, table, debug_row)
    result: Any
    if isinstance(input, PackedSequence):
        if input.unsorted_indices is not None:
            state = state.rows(input.unsorted_indices)
        result = input._replace(data=torch.cat(outputs))
    else:
        result = torch.stack(outputs, 1 if dnc.batch_first else 0)
    return (result, state, debug_table(table)) if dnc.debug else (result, state)


def debug_table(accesses: list[Memory]) -> dict[str, np.ndarray[Any, Any]]:
    """One session's memory after every access, as the `dnc` package shows it: a row for each.

    Keys and shapes, for A accesses: `memory` [A, N*W], `link_matrix` [A, K*N*N], `precedence` [A, K*N], `read_weights`
    [A, R*N], `write_weights` [A, K*N], `usage_vector` [A, N]; of a sparse memory its own fields, flattened likewise.
    `accesses`, at least one, hold one batch row each.
    """
    return {
        field: as_array(torch.stack([getattr(access, field).flatten() for access in accesses]))
        for field in accesses[0]._fields
    }


def _run_timesteps(
    dnc: Network,
    timesteps: Iterable[Tensor],
    state: DNCState,
    pass_through_memory: bool,
    table: list[Memory],
    debug_row: int,
) -> tuple[list[Tensor], DNCState]:
    """Steps through inputs [B, I] whose B may only shrink: rows that end leave from the end, with their last state.

    In debug mode appends to `table` the memory of `debug_row` after each timestep's (outer) and layer's (inner) access.
    """
    outputs: list[Tensor] = []
    ended: list[DNCState] = []
    given_reads = state.read_vectors
    rows = state.batch_size
    for x in timesteps:
        if x.size(0) < rows:
            rows = x.size(0)
            ended.append(state.rows(slice(rows, None)))
            state = state.rows(slice(0, rows))
            given_reads = given_reads[:rows]
        if not dnc.feed_reads_at_once:
            state = state._replace(read_vectors=given_reads)
        accesses: list[Memory] = []
        output, state = dnc.step_observed(x, state, pass_through_memory, accesses)
        outputs.append(output)
        if dnc.debug and debug_row < rows:
            table.extend(access.rows(slice(debug_row, debug_row + 1)).detach() for access in accesses)
    return outputs, concatenate([state, *reversed(ended)]) if ended else state


def _check_input(dnc: Network, input: Any) -> int:
    """The batch size. Raises if the input isn't what the model takes."""
    config, like = dnc.config, dnc.like
    data = input.data if isinstance(input, PackedSequence) else input
    layout = "[B, T, I]" if dnc.batch_first else "[T, B, I]"
    if not isinstance(data, Tensor):
        raise TypeError(f"input is of type {type(input).__name__}; expected a tensor {layout} or a PackedSequence")
    autocast = torch.is_autocast_enabled(like.device.type) and data.is_floating_point()
    if (data.dtype != like.dtype and not autocast) or data.device != like.device:
        raise ValueError(
            f"input is {data.dtype} on {data.device}; expected {like.dtype} on {like.device}, as the model is"
        )
    if isinstance(input, PackedSequence):
        if data.size(-1) != config.input_size:
            raise ValueError(f"input has vectors of {data.size(-1)}; expected input_size, {config.input_size}")
        return int(input.batch_sizes[0])
    if data.dim() != 3 or 0 in data.shape or data.size(2) != config.input_size:
        raise ValueError(
            f"input has shape {list(data.shape)}; expected {layout} with I = {config.input_size} and at least one row "
            "and one timestep"
        )
    return data.size(0 if dnc.batch_first else 1)
