"""One access to the external memory: write, link, read."""

from typing import Final

import torch
from torch import Tensor, nn

from dnc_serve.model import addressing
from dnc_serve.model.config import DNCConfig
from dnc_serve.model.interface import Interface, InterfaceLayer
from dnc_serve.model.links import links_and_reads
from dnc_serve.model.state import Memory, MemoryState, tensors_of


class MemoryAccess(nn.Module):
    """Writes to a memory and reads from it as a controller's output asks; its weights don't depend on N."""

    smooth: Final[bool]
    by_usage: Final[bool]
    stop_usage_gradient: Final[bool]
    write_heads: Final[int]

    def __init__(self, config: DNCConfig) -> None:
        super().__init__()
        self.smooth = config.cosine == "deepmind"
        self.by_usage = config.allocation_order == "usage"
        self.stop_usage_gradient = config.stop_usage_gradient
        self.write_heads, self.read_heads = config.write_heads, config.read_heads
        self.interface = InterfaceLayer(config)

    def forward(self, controller_output: Tensor, memory: Memory, in_place: bool = False) -> tuple[Tensor, Memory]:
        """From [B, H] and the previous timestep's state, the read vectors [B, R * W] and this timestep's state.

        All of a dense memory changes, so that `in_place` has no effect.

        Autocast ends here: weightings are products of many small numbers, which half precision can't tell apart.
        """
        interface = self.interface(controller_output)
        state = dense_memory(memory)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            device = controller_output.device.type
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return self.access(interface, state)
        return self.access(interface, state)

    def access(self, interface: Interface, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """`forward`, for a controller's output as the interface layer understood it."""
        previous_writes = state.write_weights.detach() if self.stop_usage_gradient else state.write_weights
        usage = addressing.update_usage(state.usage_vector, previous_writes, interface.free_gates, state.read_weights)

        key_norms = addressing.vector_norms(interface.keys, self.smooth)
        write_norms, read_norms = key_norms.split_with_sizes([self.write_heads, self.read_heads], 1)
        keys = interface.keys * interface.strengths.unsqueeze(2)
        write_keys, read_keys = keys.split_with_sizes([self.write_heads, self.read_heads], 1)

        content = addressing.content_weighting(state.memory, write_keys, write_norms, self.smooth)
        allocation_gates = interface.allocation_gates
        write_gates = interface.write_gates
        allocation = addressing.allocation_weightings(usage, allocation_gates * write_gates, self.by_usage)
        # w^w_t = g^w (g^a a + (1 - g^a) c)
        write_weights = write_gates.unsqueeze(2) * torch.lerp(content, allocation, allocation_gates.unsqueeze(2))

        memory = self.write(state.memory, write_weights, interface.erase_vectors, interface.write_vectors)
        precedence = addressing.update_precedence(state.precedence, write_weights)

        content = addressing.content_weighting(memory, read_keys, read_norms, self.smooth)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            links = addressing.update_links(state.link_matrix, state.precedence, write_weights)
            read_weights = addressing.read_weighting(links, state.read_weights, content, interface.read_modes)
        else:
            links, read_weights = links_and_reads(
                state.link_matrix, state.precedence, write_weights, state.read_weights, content, interface.read_modes
            )
        read_vectors = torch.bmm(read_weights, memory).flatten(1)
        return read_vectors, MemoryState(memory, links, precedence, read_weights, write_weights, usage)

    def write(self, memory: Tensor, write_weights: Tensor, erase_vectors: Tensor, write_vectors: Tensor) -> Tensor:
        """M_t = M ∘ Π (1 - w e) + Σ w v, over the write heads."""
        weights = write_weights.unsqueeze(3)  # [B, K, N, 1]
        if self.write_heads == 1:
            # M + w (v - M e): the same with two passes over the memory
            change = torch.addcmul(write_vectors, memory, erase_vectors, value=-1)
            return torch.addcmul(memory, weights.squeeze(1), change)
        keep = torch.prod(1 - weights * erase_vectors.unsqueeze(2), 1)
        return torch.baddbmm(memory * keep, write_weights.transpose(1, 2), write_vectors)


def dense_memory(memory: Memory) -> MemoryState:
    """A memory that is known to be dense, with the names of its fields."""
    t = tensors_of(memory)
    return MemoryState(t[0], t[1], t[2], t[3], t[4], t[5])
