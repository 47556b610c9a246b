"""What the kernels of a GPU are given, and what they work in; axes are those of `triton_pairs`.

Besides these there are V = 3F I invariants of I layers, and H hidden values of the head. Adjoints
are derivatives of the energy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.errors import TritonError

RADIAL = 16
"""Places for radial functions."""
KernelError: type[Exception] = TritonError
"""Where a kernel cannot be compiled, or does not fit the GPU."""


class Weights(NamedTuple):
    """The network on the device; in one precision but for what is said to be float64.

    Harmonics in the kernels are not damped: their damping is in `mix` and `speak`.
    """

    mix: Tensor
    """(I, M, C + F, 3F)"""
    mix_back: Tensor
    element: Tensor
    """(I, Z, 3F)"""
    speak: Tensor
    """(I - 1, M, 2F, 2F)"""
    speak_back: Tensor
    gate: Tensor
    """(I - 1, 3F, 2F)"""
    gate_back: Tensor
    gate_bias: Tensor
    """(I - 1, 2F)"""
    said: Tensor
    """(I - 1, Z, 2F)"""
    filters: Tensor
    """(I - 1, 16, 2F)"""
    hidden: Tensor
    """(V, H + 1); the last column is the linear form of the head."""
    hidden_back: Tensor
    hidden_bias: Tensor
    """(Z, H + 1)"""
    out: Tensor
    """(H + 1,)"""
    evaluate: Tensor
    """(64, M), harmonics at the points of the grid on the sphere, and zeros."""
    project: Tensor
    """(64, M), the same with the weights of the points."""
    wall: Tensor
    """(Z, Z) float64 Å."""
    frequency_weight: Tensor
    """(16,) float64."""
    reference: Tensor
    """(Z,) float64 eV."""


class Workspace(NamedTuple):
    """What stands between the launches."""

    pairs: Tensor
    """(N, K, 4) float64, directions and distances of neighbors within the cutoff."""
    basis: Tensor
    """(N, K, 32), radial functions and derivatives."""
    slots: Tensor
    """(N, K) int32, where they are listed."""
    bounds: Tensor
    """(N, Z + 1) int32, where those of an element begin and end."""
    slope: Tensor
    """(N, K, 3) float64 eV/Å, derivatives of the energy by pair vectors."""
    density: Tensor
    """(M, N, C + F), what is seen and what is heard."""
    seen: Tensor
    """(M, N, C), the adjoint of what is seen."""
    heard: Tensor
    """(M, N, F), the adjoint of what is heard."""
    mixed: Tensor
    """(I, M, N, 3F)"""
    functions: Tensor
    """(I, M, N, 2F), f and fg."""
    plain: Tensor
    """(I - 1, M, N, 2F), what atoms say before the gate."""
    gates: Tensor
    """(I - 1, N, 2F), before the nonlinearity."""
    spoken: Tensor
    """(I - 1, M, N, 2F)"""
    to_mixed: Tensor
    """(M, N, 3F), an adjoint, as are those that follow."""
    to_spoken: Tensor
    """(M, N, 2F)"""
    to_functions: Tensor
    """(M, N, 2F)"""
    to_gates: Tensor
    """(N, 2F)"""
    invariants: Tensor
    """(N, V); then their adjoint."""
    hidden: Tensor
    """(N, H + 1)"""
    energies: Tensor
    """(N,) float64 eV."""
    forces: Tensor
    """(N, 3) float64 eV/Å."""
    virials: Tensor
    """(N, 3, 3) float64 eV."""


def make_workspace(weights: Weights, n_atoms: int, capacity: int) -> Workspace:
    """Room for the launches over a number of atoms, in the precision of the weights."""
    n_layers, n_harmonics, width, columns = weights.mix.shape
    n = columns // 3
    channels = width - n
    exact = weights.reference

    def room(*shape: int) -> Tensor:
        return weights.mix.new_zeros(shape)  # and channels that no element has stay so

    return Workspace(
        pairs=exact.new_zeros(n_atoms, capacity, 4),
        basis=room(n_atoms, capacity, 2 * RADIAL),
        slots=exact.new_zeros(n_atoms, capacity, dtype=torch.int32),
        bounds=exact.new_zeros(n_atoms, len(exact) + 1, dtype=torch.int32),
        slope=exact.new_zeros(n_atoms, capacity, 3),
        density=room(n_harmonics, n_atoms, width),
        seen=room(n_harmonics, n_atoms, channels),
        heard=room(n_harmonics, n_atoms, n),
        mixed=room(n_layers, n_harmonics, n_atoms, 3 * n),
        functions=room(n_layers, n_harmonics, n_atoms, 2 * n),
        plain=room(n_layers - 1, n_harmonics, n_atoms, 2 * n),
        gates=room(n_layers - 1, n_atoms, 2 * n),
        spoken=room(n_layers - 1, n_harmonics, n_atoms, 2 * n),
        to_mixed=room(n_harmonics, n_atoms, 3 * n),
        to_spoken=room(n_harmonics, n_atoms, 2 * n),
        to_functions=room(n_harmonics, n_atoms, 2 * n),
        to_gates=room(n_atoms, 2 * n),
        invariants=room(n_atoms, 3 * n * n_layers),
        hidden=room(n_atoms, len(weights.out)),
        energies=exact.new_zeros(n_atoms),
        forces=exact.new_zeros(n_atoms, 3),
        virials=exact.new_zeros(n_atoms, 3, 3),
    )
