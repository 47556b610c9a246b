"""The default network in the loops of `kernels.equivariant`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mdlearn.lanes import zeros
from mdlearn.matrices import packed
from mdlearn.potentials import equivariant
from mdlearn.potentials.equivariant import DEGREE, Equivariant, Message, Product
from mdlearn.potentials.frozen_network import (
    FrozenNetwork,
    Loops,
    array,
    common_room,
    common_weights,
    padded,
    width_of,
)
from mdlearn.potentials.kernels import equivariant as kernel
from mdlearn.potentials.kernels import layout
from mdlearn.potentials.kernels.rows import Array
from mdlearn.potentials.kernels.sphere import HARMONICS
from mdlearn.potentials.pairs import ChebyshevBasis
from mdlearn.potentials.spherical import SphericalHarmonics, degrees, sphere_grid

LARGEST = 2 * DEGREE + 1
"""Harmonics of the highest degree."""


def has_loops(network: Equivariant) -> bool:
    """Whether the loops know what the network needs: no chirality, and 16 radial functions."""
    settings = network.settings
    return settings.parity == "o3" and settings.radial <= layout.LANES


def freeze_equivariant(network: Equivariant) -> FrozenNetwork:
    """Takes over the network's weights, in its precision."""
    layers = network.settings.interactions
    loops = Loops(
        "equivariant", kernel.forward, kernel.backward, turn=layers, stages=2 * layers + 1
    )
    weights = loop_weights(network)
    halves = np.stack(np.split(weights.speak_back, 2, -1), -3)
    weights = weights._replace(
        mix=packed(weights.mix),
        seen_back=packed(weights.seen_back),
        told_back=packed(weights.told_back),
        speak=packed(weights.speak),
        speak_back=packed(halves),
        gate=packed(weights.gate),
        gate_back=packed(weights.gate_back),
    )
    return FrozenNetwork(network, weights, _workspace, loops)


def loop_weights(network: Equivariant) -> layout.Weights:
    """The weights of a network in the order and the shapes of the loops."""
    settings = network.settings
    n_species, radial, features = len(network.species), settings.radial, settings.features
    channels = (n_species - 1) * radial + layout.LANES
    channels += -channels % layout.LANES

    def parts(values: Array, axis: int, count: int) -> Array:
        return padded(values, axis, count, layout.LANES)

    mix, element, speak, gate, bias, said, filters = ([] for _ in range(7))
    for layer, product in enumerate(network.products):
        assert isinstance(product, Product)
        weight = array(product.mix.weight).reshape(DEGREE + 1, -1, 3 * features)
        near = weight[:, : radial * n_species] * network.norm
        # From radial functions of elements to elements of radial functions.
        near = near.reshape(DEGREE + 1, radial, n_species, -1).swapaxes(1, 2)
        near = near.reshape(DEGREE + 1, radial * n_species, -1)
        near = np.pad(near, ((0, 0), (0, channels - near.shape[1]), (0, 0)))
        nothing = np.zeros((DEGREE + 1, features, 3 * features), weight.dtype)
        far = weight[:, radial * n_species :] if layer else nothing
        mix.append(parts(np.concatenate([near, parts(far, 1, 1)], 1), 2, 3))
        element.append(parts(array(product.element), 1, 3))
    for message in network.messages:
        assert isinstance(message, Message)
        weight = array(message.speak.weight).reshape(DEGREE + 1, 2 * features, 2 * features)
        speak.append(parts(parts(weight, 1, 2), 2, 2))
        gate.append(parts(parts(array(message.gate.weight).T, 0, 3), 1, 2))
        bias.append(parts(array(message.gate.bias), 0, 2))
        said.append(parts(array(message.element), 1, 2))
        weight = array(message.radial.weight).T * network.norm
        weight = np.pad(weight, ((0, layout.LANES - radial), (0, 0)))
        bundles = parts(weight, 1, 2).reshape(layout.LANES, 2, -1, layout.LANES)
        filters.append(bundles.transpose(2, 1, 0, 3).reshape(-1, 2, layout.BUNDLE))

    def stack(values: list[Array], shape: tuple[int, ...]) -> Array:
        empty = np.zeros((0, *shape), near.dtype)
        return np.ascontiguousarray(np.stack(values)) if values else empty

    def turned(values: Array) -> Array:
        return np.ascontiguousarray(values.swapaxes(-1, -2))

    mixing = stack(mix, ())
    n_features = mixing.shape[-1] // 3
    spoken = stack(speak, (DEGREE + 1, 2 * n_features, 2 * n_features))
    gates = stack(gate, (3 * n_features, 2 * n_features))
    couples, coupling = couplings()
    return layout.Weights(
        **common_weights(network, 3 * settings.interactions, layout.LANES),
        stretch=ChebyshevBasis.stretch,
        near=equivariant.NEAR,
        radial=radial,
        frequency_weight=np.pad(network.smoothness.double().numpy(), (0, layout.LANES - radial)),
        table=harmonic_table(network).astype(near.dtype),
        coupling=coupling.astype(near.dtype),
        couples=couples,
        mix=mixing,
        seen_back=turned(mixing[:, :, :channels]),
        told_back=turned(mixing[:, :, channels:]),
        element=stack(element, ()),
        speak=spoken,
        speak_back=turned(spoken),
        gate=gates,
        gate_back=turned(gates),
        gate_bias=stack(bias, (2 * n_features,)),
        said=stack(said, (n_species, 2 * n_features)),
        filters=stack(filters, (n_features // layout.LANES, 2, layout.BUNDLE)),
    )


def harmonic_table(network: Equivariant) -> Array:
    """(64,) float64 of harmonics, see `kernels.sphere.harmonics`."""
    degree = np.array(degrees(DEGREE))
    root = np.maximum(degree * (degree + 1.0), 1.0) ** -0.5
    damping = network.damping.double().numpy()
    return np.concatenate([damping, damping * root, degree, (-1.0) ** degree])


def couplings() -> tuple[NDArray[np.int64], Array]:
    """Which harmonics (G, 3) couple, the product first, and how strongly (G,)."""
    points, weights = sphere_grid()
    harmonics = SphericalHarmonics(DEGREE)(torch.from_numpy(points))[0].numpy()
    couplings = np.einsum("p,pi,pj,pk->ijk", weights, harmonics, harmonics, harmonics)
    couples = np.ascontiguousarray(np.argwhere(np.abs(couplings) > 1e-10))
    return couples, couplings[tuple(couples.T)]


def _workspace(weights: layout.Weights, n_atoms: int, capacity: int) -> layout.Workspace:
    """Room for the loops over a number of atoms, in the precision of the weights."""
    n_layers, _, _, width, _ = weights.mix.shape
    n, dtype = weights.element.shape[2] // 3, weights.mix.dtype
    channels, bundles = width - n, n // layout.LANES
    block = width_of(n_atoms)
    blocks = -(-n_atoms // block)

    def room(*shape: int) -> Array:
        return zeros(shape, dtype)

    return layout.Workspace(
        **common_room(n_atoms, capacity),
        basis=room(n_atoms, capacity, 32),
        seen=room(blocks, HARMONICS, block, channels),
        mixed=room(n_layers, blocks, 3, HARMONICS, block, n),
        product=room(n_layers, blocks, HARMONICS, block, n),
        plain=room(n_layers - 1, blocks, HARMONICS, block, 2 * n),
        gates=room(n_layers - 1, n_atoms, 2, 2 * n),
        spoken=room(n_layers - 1, n_atoms, bundles, 2 * layout.BUNDLE),
        heard=room(n_layers - 1, n_atoms, bundles, layout.BUNDLE),
        invariants=room(blocks, block, 3 * n * n_layers),
        scratch=layout.Scratch(
            seen=room(len(weights.wall), layout.BUNDLE),
            told=room(bundles, layout.BUNDLE),
            adjoint=room(bundles, 2 * layout.BUNDLE),
            ends=room(2, bundles, 64),
            functions=room(HARMONICS, block, n),
            back=room(3, HARMONICS, block, n),
            said=room(HARMONICS, block, 2 * n),
            out=room(LARGEST * block, 3 * n),
            row=room(LARGEST * block, n),
            gates=room(block, 2 * n),
            head=room(block, len(weights.out)),
        ),
    )
