"""Networks atom by atom and pair by pair from their weights alone: slow and obviously right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from oracles import _envelope, _silu, _vectors

from mdlearn.potentials.egnn import EGNN
from mdlearn.potentials.network import Network, Settings
from mdlearn.potentials.painn import SOFTNESS, PaiNN
from mdlearn.system import System

Array = NDArray[np.float64]


def painn_energy(network: PaiNN, system: System) -> float:
    """The energy of PaiNN."""
    weights, linear = read_weights(network)
    settings, ranks = network.settings, ranks_of(network, system)
    vectors = _vectors(system, settings.cutoff)
    start = [weights["embedding"][rank] for rank in ranks]
    s = [each.copy() for each in start]
    v = [np.zeros((settings.features, 3)) for _ in ranks]
    for t in range(settings.interactions):
        ds = [np.zeros_like(each) for each in s]
        dv = [np.zeros_like(each) for each in v]
        for (i, j, *_), r in vectors.items():
            d = float(np.linalg.norm(r))
            basis = np.array([chebyshev(b, d / settings.cutoff) for b in range(settings.radial)])
            filters = linear(f"messages.{t}.filters", basis * _envelope(d, settings.cutoff))
            said = linear(f"messages.{t}.out", _silu(linear(f"messages.{t}.hidden", s[j])))
            to_s, to_v, carried = np.split(filters * said, 3)
            ds[i] += to_s
            dv[i] += np.outer(to_v, r / d) + v[j] * carried[:, None]
        for i in range(len(ranks)):
            s[i] = s[i] + ds[i] / math.sqrt(settings.average_neighbors)
            v[i] = v[i] + dv[i] / math.sqrt(settings.average_neighbors)
            one, other = np.split(weights[f"updates.{t}.mix.weight"] @ v[i], 2)
            length = np.sqrt((other**2).sum(1) + SOFTNESS**2) - SOFTNESS
            answer = response(linear, f"updates.{t}.response", s[i], length, start[i])
            gate, turn = np.split(linear(f"updates.{t}.gates", answer), 2)
            s[i] = s[i] + linear(f"updates.{t}.scalars", answer) + gate * (one * other).sum(1)
            v[i] = v[i] + turn[:, None] * one
    return energy_of(network, [a - b for a, b in zip(s, start, strict=True)], ranks)


def egnn_energy(network: EGNN, system: System) -> float:
    """The energy of EGNN."""
    weights, linear = read_weights(network)
    settings, ranks = network.settings, ranks_of(network, system)
    vectors = _vectors(system, settings.cutoff)
    start = [weights["embedding"][rank] for rank in ranks]
    h = [each.copy() for each in start]
    shift = [np.zeros(3) for _ in ranks]
    for t in range(settings.interactions):
        layer = f"layers.{t}"
        heard = [np.zeros_like(each) for each in h]
        moves = [np.zeros(3) for _ in ranks]
        for (i, j, *_), r in vectors.items():
            now = r + shift[j] - shift[i]
            smooth = _envelope(float(np.linalg.norm(r)), settings.cutoff)
            basis = [gaussians(float(np.linalg.norm(x)), settings) for x in (now, r)]
            hidden = linear(f"{layer}.own", h[i]) + linear(f"{layer}.other", h[j])
            hidden = _silu(hidden * linear(f"{layer}.pair", np.concatenate(basis)))
            message = _silu(linear(f"{layer}.message", hidden))
            heard[i] += smooth * message
            push = linear(f"{layer}.push.2", _silu(linear(f"{layer}.push.0", message)))
            moves[i] += -now * smooth * push
        for i in range(len(ranks)):
            heard[i] = heard[i] / math.sqrt(settings.average_neighbors)
            answer = response(linear, f"{layer}.response", h[i], heard[i], start[i])
            h[i] = h[i] + linear(f"{layer}.out", answer)
            shift[i] = shift[i] + moves[i] / settings.average_neighbors
    scalars = [np.append(h[i] - start[i], shift[i] @ shift[i]) for i in range(len(ranks))]
    return energy_of(network, scalars, ranks)


Linear = Callable[[str, Array], Array]


def read_weights(network: Network) -> tuple[Mapping[str, Array], Linear]:
    """All weights by name, and the linear map of a layer by its name."""
    weights = {name: each.detach().double().numpy() for name, each in network.state_dict().items()}

    def linear(layer: str, x: Array) -> Array:
        return weights[f"{layer}.weight"] @ x + weights.get(f"{layer}.bias", 0.0)

    return weights, linear


def ranks_of(network: Network, system: System) -> list[int]:
    """The place of each atom's element among the species."""
    return [network.species.index(int(z)) for z in system.numbers]


def response(linear: Linear, name: str, h: Array, heard: Array, start: Array) -> Array:
    """A hidden layer of what an atom is and hears, less what the isolated atom has there."""
    with_neighbors = _silu(linear(f"{name}.own", h) + linear(f"{name}.heard", heard))
    return with_neighbors - _silu(linear(f"{name}.own", start))


def energy_of(network: Network, scalars: list[Array], ranks: list[int]) -> float:
    """The energy that the head reads off the scalars of all atoms."""
    weights, linear = read_weights(network)
    energies = network.elements.energies()
    total = 0.0
    for x, rank in zip(scalars, ranks, strict=True):
        bias = weights["energy_head.bias"][rank]
        hidden = _silu(linear("energy_head.hidden", x) + bias) - _silu(bias)
        read = linear("energy_head.out", hidden) + linear("energy_head.linear", x)
        total += energies[network.species[rank]] + network.settings.scale * float(read[0])
    return total


def chebyshev(order: int, u: float) -> float:
    """The Chebyshev polynomial of cos πy by its recurrence, y = 1.5 u / (u + 0.5)."""
    x = math.cos(math.pi * 1.5 * u / (u + 0.5))
    before, now = x, 1.0
    for _ in range(order):
        before, now = now, 2.0 * x * now - before
    return now


def gaussians(d: float, settings: Settings) -> Array:
    """Gaussians on an even grid from zero to the cutoff, as wide as they are apart."""
    width = settings.cutoff / (settings.radial - 1)
    return np.array([math.exp(-0.5 * (d / width - g) ** 2) for g in range(settings.radial)])
