"""Compiles the loops from energies to forces for networks of one kind.

A process that is asked to (`jit.helped`) does so while the one that asked compiles those to
energies. What is compiled depends on the kind of the network and on the precision, not on its size;
it is kept on disk, where the other process finds it.
"""

from __future__ import annotations

import torch

from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.frozen_network import FrozenNetwork
from mdlearn.potentials.network import Settings


def compile_backward(architecture: str, precision: str) -> None:
    """Compiles them for a kind of network, and a precision in torch's words."""
    small_network(architecture, getattr(torch, precision)).compile_backward()


def small_network(architecture: str, precision: torch.dtype) -> FrozenNetwork:
    """A small network of some kind, frozen."""
    settings = Settings(architecture, 3.0, 32, 2, 8, average_neighbors=10.0, scale=1.0)
    network = freeze(make_potential((1, 8), {1: 0.0, 8: 0.0}, settings).to(precision))
    assert isinstance(network, FrozenNetwork)
    return network
