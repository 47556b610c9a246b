"""SchNet in the loops of `kernels.schnet`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mdlearn.lanes import WIDTH, zeros
from mdlearn.potentials.frozen_network import (
    FrozenNetwork,
    Loops,
    array,
    common_room,
    common_weights,
    padded,
    ready,
    square,
    stacked,
    turned,
    width_of,
)
from mdlearn.potentials.frozen_tables import bundled, pair_room, shares_of, tabulate
from mdlearn.potentials.kernels import schnet as kernel
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.spline import ROWS
from mdlearn.potentials.schnet import Interaction, SchNet


def freeze_schnet(network: SchNet) -> FrozenNetwork:
    """Takes over the network's weights, in its precision, and tables of its filters."""
    n = network.settings.interactions
    loops = Loops("schnet", kernel.forward, kernel.backward, turn=2 * n, stages=4 * n + 2)
    return FrozenNetwork(network, _weights(network), _workspace, loops)


def _weights(network: SchNet) -> kernel.Weights:
    interactions = list(network.interactions)
    precision = network.wall.start.dtype
    embedding = array(network.embedding)
    start, speak, inner, bias, outer = ([] for _ in range(5))
    for interaction in interactions:
        assert isinstance(interaction, Interaction)
        before = array(interaction.before.weight).T
        start.append(padded(embedding @ before, 1, 1, WIDTH))
        speak.append(square(before))
        inner.append(square(array(interaction.hidden.weight).T))
        bias.append(padded(array(interaction.hidden.bias), 0, 1, WIDTH))
        outer.append(square(array(interaction.after.weight).T))
    return kernel.Weights(
        **common_weights(network, 1, WIDTH),
        crowding=0.0,
        tables=bundled(schnet_filters(network), len(interactions), precision),
        start=stacked(start),
        speak=ready(speak),
        speak_back=turned(speak),
        inner=ready(inner),
        inner_back=turned(inner),
        inner_bias=stacked(bias),
        outer=ready(outer),
        outer_back=turned(outer),
    )


def schnet_filters(network: SchNet) -> Array:
    """Filters of all interactions as splines, without the envelope: (intervals + 5, I F)."""
    exact = copy.deepcopy(network).cpu().double().requires_grad_(False)

    interactions = [each for each in exact.interactions if isinstance(each, Interaction)]

    def filters(y: Tensor) -> Tensor:
        basis = exact.basis(y * network.cutoff)  # (n, radial)
        return torch.cat([each.norm * each.filter(basis) for each in interactions], -1)  # (n, I F)

    return tabulate(filters, network.wall.start.dtype)


def _workspace(weights: kernel.Weights, n_atoms: int, capacity: int) -> kernel.Workspace:
    """Room for the loops over a number of atoms, in the precision of the weights."""
    n_layers, _, n_features = weights.start.shape
    block = width_of(n_atoms)
    blocks = -(-n_atoms // block)

    def room(*shape: int) -> Array:
        return zeros(shape, weights.speak.dtype)

    return kernel.Workspace(
        **common_room(n_atoms, capacity),
        **pair_room(n_atoms, capacity),
        blends=room(n_atoms, capacity, 2 * ROWS),
        along=room(n_features // WIDTH, n_atoms, capacity),
        said=room(n_layers, n_features // WIDTH, blocks * block, WIDTH),
        shares=room(shares_of(n_atoms), n_features // WIDTH, blocks * block, WIDTH),
        heard=room(2, n_features // WIDTH, blocks * block, WIDTH),
        rises=room(n_layers, blocks, block, n_features),
        invariants=room(blocks, block, n_features),
        scratch=kernel.Scratch(
            heard=room(block, n_features),
            hidden=room(block, n_features),
            head=room(block, len(weights.out)),
        ),
    )
