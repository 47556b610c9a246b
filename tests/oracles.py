"""Slow and obviously right: loops and plain indexing to compare the package with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdlearn.integrators import Integrator, State, Surroundings
from mdlearn.neighbors import Neighbors, build
from mdlearn.potentials.elements import Elements
from mdlearn.potentials.evaluate import Potential, evaluate
from mdlearn.potentials.pairs import distances, envelope
from mdlearn.potentials.schnet import SchNet
from mdlearn.system import Evaluation, System

Pair = tuple[int, int, int, int, int]
"""(i, j, and the three lattice translations of j)."""


def brute_force_pairs(system: System, cutoff: float) -> set[Pair]:
    """All pairs closer than the cutoff in one system, by a loop over images and atoms."""
    positions = system.positions.numpy()
    cell = system.cell[0].numpy()
    pbc = system.pbc[0].numpy()
    images = [0, 0, 0]
    for axis in np.flatnonzero(pbc):
        # The span of the cutoff and of the atoms, in heights of the cell along this axis; an open
        # direction takes no part, so that its cell vector may be zero.
        normal = _normal(cell, pbc, axis)
        along = positions @ normal
        images[axis] = math.ceil((cutoff + np.ptp(along)) / abs(cell[axis] @ normal)) + 1
    found = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in images)):
        for i, j in itertools.product(range(len(positions)), repeat=2):
            if i == j and shift == (0, 0, 0):
                continue
            vector = positions[j] - positions[i] + np.array(shift) @ cell
            if math.sqrt(vector @ vector) <= cutoff:
                found.add((i, j, *shift))
    return found


def _normal(cell: NDArray[np.float64], pbc: NDArray[np.bool_], axis: int) -> NDArray[np.float64]:
    """Unit vector in the span of the periodic cell vectors, normal to all of them but one."""
    rest = [cell[other] for other in np.flatnonzero(pbc) if other != axis]
    normal = cell[axis].astype(np.float64)
    if rest:
        basis = np.linalg.qr(np.array(rest).T)[0]
        normal = normal - basis @ (basis.T @ normal)
    return normal / np.linalg.norm(normal)


def listed_pairs(neighbors: Neighbors) -> list[Pair]:
    """The pairs of a dense list, read off slot by slot."""
    found = []
    for i in range(neighbors.j.shape[0]):
        for k in range(neighbors.j.shape[1]):
            if bool(neighbors.valid[i, k]):
                shift = [round(each) for each in neighbors.shift[i, k].tolist()]
                found.append((i, int(neighbors.j[i, k]), shift[0], shift[1], shift[2]))
    return found


def plain_gather(h: Tensor, neighbors: Neighbors) -> Tensor:
    """`pairs.gather` by indexing, whose derivative is torch's own scatter."""
    return h[neighbors.j]


def plain_transpose_sum(g: Tensor, neighbors: Neighbors) -> Tensor:
    """`pairs.transpose_sum` without `reverse`: every valid slot is added to its neighbor."""
    total = torch.zeros(g.shape[0], g.shape[2], dtype=g.dtype)
    own = torch.arange(g.shape[0])[:, None].expand_as(neighbors.j)
    to = torch.where(neighbors.valid, neighbors.j, own)  # padding hands itself to its own atom
    return total.index_add(0, to.flatten(), g.flatten(0, 1))


class LennardJones(nn.Module):
    """A toy with a parameter that keeps the contract of every potential."""

    def __init__(
        self,
        species: tuple[int, ...],
        reference_energies: dict[int, float],
        *,
        cutoff: float,
        epsilon: float = 0.05,
        sigma: float = 1.1,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.species = species
        self.sigma = sigma
        self.elements = Elements(species, reference_energies)
        self.epsilon = nn.Parameter(torch.tensor(epsilon))

    def forward(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        distance = distances(r.to(self.epsilon.dtype)).clamp_min(0.2)
        x = (self.sigma / distance) ** 6
        pair = 4.0 * self.epsilon * (x * x - x) * envelope(distance, self.cutoff)
        index = self.elements.index(numbers)
        return self.elements.reference_energies(index) + 0.5 * pair.sum(1).double()


def lennard_jones_energy(potential: LennardJones, system: System) -> float:
    """The energy of the toy, pair by pair."""
    energy = sum(potential.elements.energies()[int(z)] for z in system.numbers)
    epsilon = float(potential.epsilon.detach())
    for vector in _vectors(system, potential.cutoff).values():
        d = float(np.linalg.norm(vector))
        x = (potential.sigma / max(d, 0.2)) ** 6
        energy += 0.5 * 4.0 * epsilon * (x * x - x) * _envelope(d, potential.cutoff)
    return energy


def schnet_energy(network: SchNet, system: System) -> float:
    """The energy of SchNet, atom by atom and pair by pair, from its weights alone."""
    weights = {name: each.detach().double().numpy() for name, each in network.state_dict().items()}
    settings = network.settings
    cutoff, radial = settings.cutoff, settings.radial
    width = cutoff / (radial - 1)
    vectors = _vectors(system, cutoff)

    def linear(layer: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return weights[f"{layer}.weight"] @ x + weights.get(f"{layer}.bias", 0.0)

    def read(change: NDArray[np.float64], rank: int) -> float:
        bias = weights["energy_head.bias"][rank]
        hidden = _silu(linear("energy_head.hidden", change) + bias) - _silu(bias)
        return float((linear("energy_head.out", hidden) + linear("energy_head.linear", change))[0])

    start = [weights["embedding"][network.species.index(int(z))] for z in system.numbers]
    features = list(start)
    for t in range(settings.interactions):
        name = f"interactions.{t}"
        messages = [np.zeros(settings.features) for _ in features]
        for (i, j, *_), vector in vectors.items():
            d = float(np.linalg.norm(vector))
            basis = np.array([math.exp(-0.5 * (d / width - g) ** 2) for g in range(radial)])
            filters = linear(f"{name}.filter_out", _ssp(linear(f"{name}.filter_in", basis)))
            message = filters * linear(f"{name}.before", features[j])
            messages[i] = messages[i] + message * _envelope(d, cutoff)
        for i, message in enumerate(messages):
            scaled = message / math.sqrt(settings.average_neighbors)
            change = _ssp(linear(f"{name}.hidden", scaled)) - _ssp(weights[f"{name}.hidden.bias"])
            features[i] = features[i] + linear(f"{name}.after", change)
    energies = network.elements.energies()
    return sum(
        energies[int(z)] + settings.scale * read(h - h0, network.species.index(int(z)))
        for z, h, h0 in zip(system.numbers, features, start, strict=True)
    )


def _vectors(system: System, cutoff: float) -> dict[Pair, NDArray[np.float64]]:
    positions, cell = system.positions.numpy(), system.cell[0].numpy()
    pairs = brute_force_pairs(system, cutoff)
    return {p: positions[p[1]] - positions[p[0]] + np.array(p[2:]) @ cell for p in sorted(pairs)}


def _ssp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(0.5 * np.exp(x) + 0.5)


def _silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1.0 + np.exp(-x))


def _envelope(d: float, cutoff: float) -> float:
    u = d / cutoff
    return 1.0 - 28.0 * u**6 + 48.0 * u**7 - 21.0 * u**8 if u < 1.0 else 0.0


def binding_energy(potential: Potential, system: System, r: Tensor, neighbors: Neighbors) -> float:
    """Energy relative to the isolated atoms: large E0s would drown finite differences."""
    with torch.no_grad():
        alone = torch.full_like(r, 10.0 * potential.cutoff)
        energies = potential(system.numbers, r, neighbors)
        return float((energies - potential(system.numbers, alone, neighbors)).sum())


def derivative(energy: Callable[[float], float], h: float = 2.5e-4) -> float:
    """dE/dx at zero by central differences of fourth order."""
    near = energy(h) - energy(-h)
    far = energy(2.0 * h) - energy(-2.0 * h)
    return (8.0 * near - far) / (12.0 * h)


def well(stiffness: float) -> Callable[[System], Evaluation]:
    """Every atom in its own harmonic well at the origin: k x²/2, whose statistics are known."""

    def forces(system: System) -> Evaluation:
        energies = 0.5 * stiffness * system.positions.square().sum(1)
        members = torch.arange(system.cell.shape[0])[:, None] == system.system
        energy = (members * energies).sum(1)
        nothing = torch.zeros(len(energies), 3, 3, dtype=energies.dtype)
        stress = torch.full_like(system.cell, torch.nan)
        return Evaluation(energy, -stiffness * system.positions, stress, energies, nothing)

    return forces


def rebuild_every_step(
    potential: Potential,
    integrator: Integrator,
    state: State,
    steps: int,
    draw: Callable[[int], Surroundings],
) -> State:
    """Dynamics as a textbook has it: a fresh list without a skin wherever forces are needed."""

    def forces(system: System) -> Evaluation:
        return evaluate(potential, system, build(system, potential.cutoff))

    for index in range(steps):
        state = integrator.step(state, forces, draw(index))
    return state
