"""One access to a sparse memory: write, read, and note when each slot was accessed.

`SparseAccess.change` gives a timestep as a *change*: the few slots that it touches, and what they hold from then on. It
reads the memory once, to search it, and changes nothing. `changed` applies it, to a copy or in place.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dnc_serve.model import sparse_addressing as addressing
from dnc_serve.model.config import DNCConfig
from dnc_serve.model.interface import SparseInterface, SparseInterfaceLayer
from dnc_serve.model.state import Memory, SparseMemoryState, tensors_of

# A float32, in which a row has it, counts no further than 2^24. At LATEST, after millions of timesteps, all times are
# brought down by PUT_BACK, and at least to 0: slots that were left alone for longer than that become equals.
LATEST = (1 << 24) - 1
PUT_BACK = 1 << 23


class SparseChange(NamedTuple):
    """What a timestep does to a memory; A = R * S + 1 slots are written, some perhaps with weight 0."""

    slots: Tensor  # [B, A], int64
    words: Tensor  # [B, A, W], after it; entries of one slot are equal
    squared_norms: Tensor  # [B, A], after it
    accessed: Tensor  # [B, A + R * S], int64
    access_times: Tensor  # [B, A + R * S], after it
    time: Tensor  # [B, 1], after it
    put_back: Tensor  # [B, 1], by how much all times are brought down first: nearly always 0
    read_slots: Tensor  # [B, R, S]
    sparse_read_weights: Tensor  # [B, R, S]


class SparseAccess(nn.Module):
    """Writes to a sparse memory and reads from it as a controller's output asks; its weights don't depend on N."""

    def __init__(self, config: DNCConfig) -> None:
        super().__init__()
        self.smooth = config.cosine == "deepmind"
        self.sparse_reads = config.sparse_reads
        self.interface = SparseInterfaceLayer(config)

    def forward(self, controller_output: Tensor, memory: Memory, in_place: bool = False) -> tuple[Tensor, Memory]:
        """From [B, H] and the previous timestep's state, the read vectors [B, R * W] and this timestep's state.

        `in_place` changes the large tensors of the state that was given, which saves a copy of them. Autocast ends
        here, as in a dense memory.
        """
        interface = self.interface(controller_output)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            device = controller_output.device.type
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return self.access(interface, memory, in_place)
        return self.access(interface, memory, in_place)

    def access(self, interface: SparseInterface, memory: Memory, in_place: bool = False) -> tuple[Tensor, Memory]:
        """`forward`, for a controller's output as the interface layer understood it."""
        state = sparse_part(memory)
        read_vectors, change = self.change(interface, state)
        return read_vectors, changed(state, change, in_place)

    def change(self, interface: SparseInterface, state: SparseMemoryState) -> tuple[Tensor, SparseChange]:
        """The read vectors [B, R * W], and what this timestep does to the memory."""
        slots, write_weights = addressing.write_weighting(
            state.last_access, state.read_slots, state.sparse_read_weights,
            interface.allocation_gate, interface.write_gate,
        )  # fmt: skip
        words = addressing.written_words(state.memory, slots, write_weights, interface.write_vector)
        found = addressing.similar_slots(
            interface.read_keys, state.memory, state.squared_norms, slots, words, self.sparse_reads, self.smooth
        )
        read_words = words_at(state, slots, words, found)
        read_weights = addressing.content_weighting(
            interface.read_keys, interface.read_strengths, read_words, self.smooth
        )
        read_vectors = torch.sum(read_weights.unsqueeze(3) * read_words, 2).flatten(1)
        return read_vectors, change_of(state, slots, write_weights, words, found, read_weights)


def sparse_part(memory: Memory) -> SparseMemoryState:
    """What every sparse memory has."""
    tensors = tensors_of(memory)
    return SparseMemoryState(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], tensors[5])


def words_at(state: SparseMemoryState, slots: Tensor, words: Tensor, read_slots: Tensor) -> Tensor:
    """The words [B, R, S, W] of slots [B, R, S], when the slots [B, A] have become `words` [B, A, W]."""
    read_words = addressing.rows_after(state.memory, slots, words, read_slots.flatten(1))
    return read_words.view(read_slots.size(0), read_slots.size(1), read_slots.size(2), words.size(2))


def change_of(
    state: SparseMemoryState, slots: Tensor, write_weights: Tensor, words: Tensor, read_slots: Tensor,
    read_weights: Tensor, latest: int = LATEST, put_back_by: int = PUT_BACK,
) -> SparseChange:  # fmt: skip
    """The change of a timestep that wrote and read so.

    U_T(i) = T - max {t: w^W_t(i) + w^R_t(i) > δ}: kept as the latter, by which the same slot is the least recently
    accessed one, and which changes for those slots alone that a timestep touches.
    """
    # Arithmetic instead of an `if`, which an exported program has not.
    put_back = (state.time >= latest).to(state.time.dtype) * put_back_by
    time = state.time + 1 - put_back
    accessed = torch.cat((slots, read_slots.flatten(1)), 1)
    weights = torch.cat((write_weights, read_weights.flatten(1)), 1).detach()
    before = brought_down(state.last_access.gather(1, accessed), put_back)
    times = torch.where(addressing.was_accessed(accessed, weights), time, before)
    squared_norms = torch.sum(words * words, 2).detach()
    read_slots = read_slots.to(state.read_slots.dtype)
    return SparseChange(slots, words, squared_norms, accessed, times, time, put_back, read_slots, read_weights)


def brought_down(times: Tensor, put_back: Tensor) -> Tensor:
    """Times [B, ...] less `put_back` [B, 1], and at least 0."""
    return torch.clamp(times - put_back, min=0)


def changed(state: SparseMemoryState, change: SparseChange, in_place: bool) -> SparseMemoryState:
    """The state after a change. In place, the large tensors are those that were given, and only the slots that were
    touched are written; else they are copies."""
    memory = addressing.put_rows(state.memory, change.slots, change.words, in_place)
    if in_place:
        squared_norms = state.squared_norms.scatter_(1, change.slots, change.squared_norms)
        last_access = state.last_access.sub_(change.put_back).clamp_(min=0)
    else:
        squared_norms = state.squared_norms.scatter(1, change.slots, change.squared_norms)
        last_access = brought_down(state.last_access, change.put_back)
    last_access = last_access.scatter_(1, change.accessed, change.access_times)
    return SparseMemoryState(
        memory, squared_norms, last_access, change.time, change.read_slots, change.sparse_read_weights
    )
