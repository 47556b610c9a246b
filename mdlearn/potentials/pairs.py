"""What every network does with pairs: hand features to neighbors, and expand distances.

`gather` and its transpose are registered as operators of torch, each the other's derivative. So
neither forward, nor forces, nor the second derivatives of training contain a scatter, and a
compiled graph differentiates them as often as it needs. (As `autograd.Function`s they gave silently
wrong parameter gradients inside a compiled loss that differentiates twice.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mdlearn.neighbors import Neighbors


def gather(h: Tensor, neighbors: Neighbors) -> Tensor:
    """Features of the neighbors: h[j]. A padding slot receives its own atom's features.

    Args:
        h: (n_atoms, F).
        neighbors: the pairs.

    Returns:
        (n_atoms, K, F).
    """
    gathered: Tensor = _gather(h, neighbors.j, neighbors.reverse)
    return gathered


def transpose_sum(g: Tensor, neighbors: Neighbors) -> Tensor:
    """The transpose of `gather`: sum_k g.flat[reverse[n,k]], what the neighbors hold about atom n.

    Args:
        g: (n_atoms, K, F), a quantity of each pair.
        neighbors: the pairs.

    Returns:
        (n_atoms, F).
    """
    total: Tensor = _gather_transpose(g, neighbors.j, neighbors.reverse)
    return total


def exchange(g: Tensor, neighbors: Neighbors) -> Tensor:
    """What the neighbor says to the atom, from what every atom says: g.flat[reverse].

    Args:
        g: (n_atoms, K, F), in slot n, k what atom n has for its neighbor k.
        neighbors: the pairs.

    Returns:
        (n_atoms, K, F), in slot n, k what neighbor k has for atom n. Its own transpose and inverse.
    """
    exchanged: Tensor = _exchange(g, neighbors.reverse)
    return exchanged


def _operator(function: Callable[..., Tensor]) -> Any:
    """Registers a function of tensors as an operator of torch, `mdlearn::` and its name.

    `torch.library.custom_op` would do so too, but when such an operator is first called it loads
    the compiler of torch, whether or not anything is to be compiled: more than a second.
    """
    name = function.__name__.removeprefix("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    torch.library.define(f"mdlearn::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"mdlearn::{name}", "default", function)
    return getattr(torch.ops.mdlearn, name).default


@_operator
def _exchange(g: Tensor, reverse: Tensor) -> Tensor:
    return g.flatten(0, 1).index_select(0, reverse.flatten()).view_as(g)


def _like_exchanged(g: Tensor, reverse: Tensor) -> Tensor:
    return g.new_empty(g.shape)


def _remember_reverse(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_of_exchange(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _exchange(grad.contiguous(), *ctx.saved_tensors), None


torch.library.register_fake(_exchange, _like_exchanged)
torch.library.register_autograd(_exchange, _backward_of_exchange, setup_context=_remember_reverse)


@_operator
def _gather(h: Tensor, j: Tensor, reverse: Tensor) -> Tensor:
    return h.index_select(0, j.flatten()).view(*j.shape, h.shape[1])


@_operator
def _gather_transpose(g: Tensor, j: Tensor, reverse: Tensor) -> Tensor:
    return g.flatten(0, 1).index_select(0, reverse.flatten()).view_as(g).sum(1)


def _like_gathered(h: Tensor, j: Tensor, reverse: Tensor) -> Tensor:
    return h.new_empty(*j.shape, h.shape[1])


def _like_sum(g: Tensor, j: Tensor, reverse: Tensor) -> Tensor:
    return g.new_empty(g.shape[0], g.shape[2])


def _remember_pairs(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward_of_gather(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _gather_transpose(grad.contiguous(), *ctx.saved_tensors), None, None


def _backward_of_transpose(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _gather(grad.contiguous(), *ctx.saved_tensors), None, None


torch.library.register_fake(_gather, _like_gathered)
torch.library.register_fake(_gather_transpose, _like_sum)
torch.library.register_autograd(_gather, _backward_of_gather, setup_context=_remember_pairs)
torch.library.register_autograd(
    _gather_transpose, _backward_of_transpose, setup_context=_remember_pairs
)


def distances(r: Tensor) -> Tensor:
    """Lengths of pair vectors, with a finite gradient also where two atoms coincide.

    Args:
        r: (n_atoms, K, 3) Å.

    Returns:
        (n_atoms, K) Å.
    """
    square = r.square().sum(-1)
    # Not clamped, since the derivative of that is zero where there is no number.
    return torch.where(square < 1e-12, 1e-12, square).sqrt()


def envelope(distance: Tensor, cutoff: float) -> Tensor:
    """Polynomial that goes from one to zero at the cutoff with two continuous derivatives.

    1 - 28 u⁶ + 48 u⁷ - 21 u⁸ for u = distance/cutoff < 1, zero beyond (Gasteiger, Groß, Günnemann,
    ICLR 2020, eq. 8 with p = 6).
    """
    u = (distance / cutoff).clamp_max(1.0)
    return 1.0 + u**6 * (-28.0 + u * (48.0 - 21.0 * u))


class GaussianBasis(nn.Module):
    """Gaussians of a distance on an even grid: exp(-(d - μ_g)² / 2δ²), μ_g = gδ.

    Schütt et al., NeurIPS 2017, section 4.1 (with a width tied to the spacing δ).
    """

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.centers: Tensor
        centers = torch.linspace(0.0, cutoff, size, dtype=torch.float64)
        self.register_buffer("centers", centers, persistent=False)
        self.coefficient = -0.5 * ((size - 1) / cutoff) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        """(n_atoms, K) Å -> (n_atoms, K, size)."""
        return torch.exp(self.coefficient * (distance[..., None] - self.centers).square())


class ChebyshevBasis(nn.Module):
    """Chebyshev polynomials of a distance that is stretched where bonds are.

    T_b(cos πy) = cos(bπy) for b = 0, 1, ..., with y = (1 + a) u / (u + a) and u = distance/cutoff.
    With a = 1/2 half of the resolution lies within the first quarter of the cutoff.
    """

    stretch = 0.5

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.frequencies: Tensor
        frequencies = math.pi * torch.arange(size, dtype=torch.float64)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.cutoff = cutoff

    def forward(self, distance: Tensor) -> Tensor:
        """(n_atoms, K) Å -> (n_atoms, K, size)."""
        u = (distance / self.cutoff).clamp_max(1.0)
        y = (1.0 + self.stretch) * u / (u + self.stretch)
        return torch.cos(y[..., None] * self.frequencies)
