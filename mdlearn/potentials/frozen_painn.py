"""PaiNN in the loops of `kernels.painn`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mdlearn.lanes import WIDTH, zeros
from mdlearn.matrices import packed
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
from mdlearn.potentials.frozen_tables import bundled, pair_room, shares_of, spline, tabulate
from mdlearn.potentials.kernels import painn as kernel
from mdlearn.potentials.kernels.painn_layout import KNOWN, Scratch, Weights, Workspace
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.spline import ROWS
from mdlearn.potentials.painn import SOFTNESS, Message, PaiNN, Update
from mdlearn.potentials.pairs import ChebyshevBasis


def freeze_painn(network: PaiNN) -> FrozenNetwork:
    """Takes over the network's weights, in its precision, and tables of its filters."""
    n = network.settings.interactions
    loops = Loops("painn", kernel.forward, kernel.backward, turn=2 * n - 2, stages=4 * n - 1)
    return FrozenNetwork(network, _weights(network), _workspace, loops)


def _weights(network: PaiNN) -> Weights:
    messages = [each for each in network.messages if isinstance(each, Message)]
    updates = [each for each in network.updates if isinstance(each, Update)]
    embedding = network.embedding.detach()

    def starts(layers: list[torch.nn.Linear]) -> Array:
        return stacked([padded(array(each(embedding)), 1, 1, WIDTH) for each in layers])

    def matrices(layers: list[torch.nn.Linear], count: int = 1) -> list[Array]:
        return [square(array(each.weight).T, columns=count) for each in layers]

    def biases(layers: list[torch.nn.Linear], count: int) -> Array:
        return stacked([padded(array(each.bias), 0, count, WIDTH) for each in layers])

    speak_hidden = matrices([each.hidden for each in messages])
    speak_out = matrices([each.out for each in messages], 3)
    mix = matrices([each.mix for each in updates], 2)
    own = matrices([each.response.own for each in updates])
    lengths = matrices([each.response.heard for each in updates])
    scalars = matrices([each.scalars for each in updates])
    gates = matrices([each.gates for each in updates], 2)
    waves, tables = _tables(network)
    return Weights(
        **common_weights(network, 1, WIDTH),
        softness=SOFTNESS,
        crowding=1.0 / ChebyshevBasis.stretch,
        tables=tables,
        waves=waves,
        radial=network.settings.radial,
        **_first_layer(network, own[0], mix[0]),
        speak_start=starts([each.hidden for each in messages]),
        speak_hidden=ready(speak_hidden),
        speak_hidden_back=turned(speak_hidden),
        speak_out=ready(speak_out),
        speak_out_back=turned(speak_out),
        speak_bias=biases([each.out for each in messages], 3),
        mix=ready(mix),
        mix_back=turned(mix),
        own_start=starts([each.response.own for each in updates]),
        own=ready(own),
        own_back=turned(own),
        lengths=ready(lengths),
        lengths_back=turned(lengths),
        scalars=ready(scalars),
        scalars_back=turned(scalars),
        gates=ready(gates),
        gates_back=turned(gates),
        gates_bias=biases([each.gates for each in updates], 2),
    )


def painn_filters(network: PaiNN) -> Array:
    """Filters of all messages as splines, without the envelope: (intervals + 5, I 3F).

    They are waves in the stretched distance.
    """
    weights = torch.cat([_filters(each) for each in network.messages])

    def filters(y: Tensor) -> Tensor:
        return _waves(network, y) @ weights.T  # (n, I 3F)

    return tabulate(filters, network.wall.start.dtype)


def _filters(message: nn.Module) -> Tensor:
    """(3F, R) float64, of waves."""
    assert isinstance(message, Message)
    filters: Tensor = message.norm * message.filters.weight.detach().double().cpu()
    return filters


def _waves(network: PaiNN, y: Tensor) -> Tensor:
    """(n, R), the functions that filters are made of, without the envelope."""
    frequencies: Tensor = network.basis.frequencies.double().cpu()
    return torch.cos(y[:, None] * frequencies)


def _tables(network: PaiNN) -> tuple[Array, Array]:
    """Waves (P, (intervals + 5) 32), and filters after the first layer, as the loops read them."""
    precision, layers = network.wall.start.dtype, network.settings.interactions
    rows = painn_filters(network)
    waves = spline(lambda y: _waves(network, y), len(rows) - ROWS)
    tables = bundled(rows, 3 * layers, precision)
    tables = tables.reshape(layers, 3, tables.shape[1], -1)[1:]
    return bundled(waves, 1, precision)[0], np.ascontiguousarray(tables.swapaxes(1, 2))


def _first_layer(network: PaiNN, own: Array, mix: Array) -> dict[str, Any]:
    """Maps from a density, which hearing in the first layer is a part of, by name."""
    message, embedding = network.messages[0], network.embedding.detach()
    assert isinstance(message, Message)
    spoken = message.out(silu(message.hidden(embedding))).detach().double().chunk(3, -1)
    scalars, vectors = (
        padded(torch.einsum("zf,fr->zrf", says, passes).flatten(0, 1).numpy(), 1, 1, WIDTH)
        for says, passes in zip(spoken[:2], _filters(message).chunk(3)[:2], strict=True)
    )
    maps = {
        "seen_scalars": scalars,
        "seen_own": scalars @ own.astype(np.float64),
        "seen_vectors": vectors,
        "seen_mix": vectors @ mix.astype(np.float64),
    }
    back = {f"{name}_back": each.T for name, each in maps.items()}
    return {name: packed(each.astype(own.dtype)) for name, each in {**maps, **back}.items()}


def _workspace(weights: Weights, n_atoms: int, capacity: int) -> Workspace:
    """Room for the loops over a number of atoms, in the precision of the weights."""
    layers, _, n = weights.own_start.shape
    elements, lanes = len(weights.wall), len(weights.waves) * WIDTH
    block = width_of(n_atoms)
    blocks = -(-n_atoms // block)

    def room(*shape: int) -> Array:
        return zeros(shape, weights.own.dtype)

    return Workspace(
        **common_room(n_atoms, capacity),
        **pair_room(n_atoms, capacity),
        blends=room(n_atoms, capacity, KNOWN),
        bent=room(n // WIDTH, n_atoms, capacity, 4),
        seen=room(n_atoms, elements, 4, lanes),
        said=room(layers - 1, n // WIDTH, n_atoms, 5 * WIDTH),
        shares=room(shares_of(n_atoms), n // WIDTH, blocks * block, 5 * WIDTH),
        heard=room(2, n // WIDTH, n_atoms, 4 * WIDTH),
        vectors=room(layers, blocks, 3 * block, n),
        mixed=room(layers, blocks, 3 * block, 2 * n),
        gates=room(layers, blocks, block, 2 * n),
        rises=room(layers, blocks, block, n),
        speak_rises=room(layers, blocks, block, n),
        loudness=room(layers, blocks, block, n),
        invariants=room(blocks, block, n),
        turning=room(blocks, 3 * block, n),
        scratch=Scratch(
            lengths=room(block, n),
            products=room(block, n),
            hidden=room(block, n),
            gates=room(block, 2 * n),
            mixed=room(3 * block, 2 * n),
            spoken=room(block, 3 * n),
            said=room(block, 5 * n),
            density=room(elements, 4, lanes),
            seen=room(4 * block, elements * weights.radial),
            head=room(block, len(weights.out)),
        ),
    )
