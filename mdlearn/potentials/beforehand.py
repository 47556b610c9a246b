"""Compiles loops for networks of one kind: those from energies to forces, or sums of gradients.

A process that is asked to (`jit.Helper`) does so while the one that asked compiles what it needs
first. What is compiled depends on the kind of the network and on the precision, not on its size; it
is kept on disk, where the other process finds it.
"""

from __future__ import annotations

import torch

from mdlearn.potentials.architectures import make_potential
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.frozen_network import FrozenNetwork
from mdlearn.potentials.learning import Loops, loops_of
from mdlearn.potentials.network import ParametricPotential, Settings


def compile_backward(architecture: str, precision: str) -> None:
    """Compiles the loops to forces for a kind of network, and a precision in torch's words."""
    frozen_network(architecture, getattr(torch, precision)).compile_backward()


def compile_sums() -> None:
    """Compiles what sums up the gradient of a training."""
    learning_network().compile_sums()


def frozen_network(architecture: str, precision: torch.dtype) -> FrozenNetwork:
    """A small network of some kind, frozen."""
    network = freeze(_small(architecture).to(precision))
    assert isinstance(network, FrozenNetwork)
    return network


def learning_network() -> Loops:
    """A small default network that is trained in loops."""
    loops = loops_of(_small("equivariant"))
    assert loops is not None
    return loops


def _small(architecture: str) -> ParametricPotential:
    settings = Settings(architecture, 3.0, 32, 2, 8, average_neighbors=10.0, scale=1.0)
    return make_potential((1, 8), {1: 0.0, 8: 0.0}, settings)
