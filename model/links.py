"""Links made and followed, with a backward of their own.

The link matrix is the largest tensor of a step, and its gradient takes most of a training's time. Autograd passes over
it some sixteen times for each access; the derivatives as they are written down here, six times. They can themselves be
differentiated.
"""

from typing import Any

import torch
from torch import Tensor

from dnc_serve.model import addressing

# Of smaller matrices all passes together cost less than the calls from C++ to Python and back.
LEAST_ENTRIES = 1 << 16


def links_and_reads(
    link_matrix: Tensor, precedence: Tensor, write_weights: Tensor, read_weights: Tensor, content_weights: Tensor,
    read_modes: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`addressing.update_links` and, by them, `addressing.read_weighting`: the same bits, faster backward.

    Compilers write a backward of their own.
    """
    given = (link_matrix, precedence, write_weights, read_weights, content_weights, read_modes)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and link_matrix.numel() >= LEAST_ENTRIES:
        links, weights = Links.apply(*given)  # type: ignore[no-untyped-call]
        return links, weights
    return _forward(*given)


def _forward(
    link_matrix: Tensor, precedence: Tensor, write_weights: Tensor, read_weights: Tensor, content_weights: Tensor,
    read_modes: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    links = addressing.update_links(link_matrix, precedence, write_weights)
    return links, addressing.read_weighting(links, read_weights, content_weights, read_modes)


class Links(torch.autograd.Function):
    """A gradient is named after what it is the gradient of; `links` and `weights` are the results."""

    @staticmethod
    def forward(*given: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(*given)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, links_gradient: Tensor, weights_gradient: Tensor) -> tuple[Tensor | None, ...]:
        link_matrix, precedence, write_weights, read_weights, content_weights, read_modes, links = ctx.saved_tensors
        batch, heads, slots = write_weights.shape
        with torch.autocast(links.device.type, enabled=False):
            # w^r = π_content c + Σ_heads (π_backward w^r_before) L + (π_forward w^r_before) L^T
            modes = read_modes.split_with_sizes([heads, heads, 1], 2)
            content_gradient = weights_gradient * modes[2]
            content_mode_gradient = torch.sum(weights_gradient * content_weights, 2, keepdim=True)
            reads = read_weights.unsqueeze(1)  # [B, 1, R, N]
            backward_modes = modes[0].transpose(1, 2).unsqueeze(3)  # [B, K, R, 1]
            forward_modes = modes[1].transpose(1, 2).unsqueeze(3)
            # From here on, a matrix for each row and write head: [B * K, R, N] and [B * K, N, N].
            backward_reads = (backward_modes * reads).flatten(0, 1)
            forward_reads = (forward_modes * reads).flatten(0, 1)
            followed = weights_gradient.unsqueeze(1).expand(-1, heads, -1, -1).flatten(0, 1)
            links = links.flatten(0, 1)
            backward_gradient = torch.bmm(followed, links.transpose(1, 2)).view(batch, heads, -1, slots)
            forward_gradient = torch.bmm(followed, links).view(batch, heads, -1, slots)
            reads_gradient = torch.sum(backward_gradient * backward_modes + forward_gradient * forward_modes, 1)
            backward_modes_gradient = torch.sum(backward_gradient * reads, 3).transpose(1, 2)
            forward_modes_gradient = torch.sum(forward_gradient * reads, 3).transpose(1, 2)
            modes_gradient = torch.cat((backward_modes_gradient, forward_modes_gradient, content_mode_gradient), 2)

            left, right = torch.cat((followed, backward_reads), 1), torch.cat((forward_reads, followed), 1)
            links_gradient = torch.baddbmm(links_gradient.flatten(0, 1), left.transpose(1, 2), right)
            links_gradient.diagonal(dim1=1, dim2=2).zero_()

            # L[i, j] = (1 - w[i] - w[j]) L_before[i, j] + w[i] p[j]
            writes, before = write_weights.reshape(-1, 1, slots), precedence.reshape(-1, 1, slots)
            precedence_gradient = torch.bmm(writes, links_gradient).view_as(precedence)
            # With the transposed on the right: a matrix times a column takes many times longer.
            writes_gradient = torch.bmm(before, links_gradient.transpose(1, 2)).squeeze(1)
            lost = links_gradient * link_matrix.flatten(0, 1)
            writes_gradient = (writes_gradient - lost.sum(2) - lost.sum(1)).view_as(write_weights)
            link_matrix_gradient = None
            if ctx.needs_input_grad[0]:
                kept = torch.addcmul(links_gradient, links_gradient, writes.transpose(1, 2), value=-1)
                link_matrix_gradient = kept.addcmul_(links_gradient, writes, value=-1).view_as(link_matrix)
        reads_gradients = reads_gradient, content_gradient, modes_gradient
        return link_matrix_gradient, precedence_gradient, writes_gradient, *reads_gradients
