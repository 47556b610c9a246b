"""Momenta of thermal equilibrium, and the noise that they and thermostats are drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.jit import compiled
from mdlearn.system import System, sum_by_system

FLAT = 1e-6
"""A moment of inertia that is so much smaller than another one is that of a line."""


def noise(seed: int, step: int, draws: int, like: Tensor) -> Tensor:
    """Normal deviates of a step, (draws, n_atoms, 3): a function of seed and step alone."""
    return noise_of_steps([seed], [len(like)], range(step, step + 1), draws, like)[0]


def noise_of_steps(
    seeds: Sequence[int], sizes: Sequence[int], steps: range, draws: int, like: Tensor
) -> Tensor:
    """Normal deviates of some steps of a batch.

    Those of a system in a step are a function of its seed and of the step, whatever is in the
    batch. They are the numbers of Philox4x32-10 (Salmon et al., SC11, doi 10.1145/2063384.2063405),
    whose key is the seed, and which counts steps, draws and places, made normal by pairs (Box,
    Muller, Ann. Math. Stat. 29, 610, 1958).

    Args:
        seeds: one for each system; 64 bits of them count.
        sizes: how many atoms each system has.
        steps: one after another.
        draws: how many each step takes for an atom and an axis.
        like: (n_atoms, 3), gives device and precision.

    Returns:
        (steps, draws, n_atoms, 3).
    """
    out = np.empty((len(steps), draws, sum(sizes), 3))
    keys = np.array([seed % 2**64 for seed in seeds], np.uint64)
    _fill(keys, np.array(sizes), np.uint64(steps.start % 2**64), out)
    return torch.from_numpy(out).to(like)


WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
FACTORS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
ROUNDS = 10
Words = tuple[np.uint64, np.uint64, np.uint64, np.uint64]


@compiled(inner=True)
def _philox(counter: Words, key: tuple[np.uint64, np.uint64]) -> Words:
    """Four random words of 32 bits for a counter and a key of such words."""
    a, b, c, d = counter
    one, other = key
    for _ in range(ROUNDS):
        first, second = FACTORS[0] * a, FACTORS[1] * c
        a, c = (second >> HALF) ^ b ^ one, (first >> HALF) ^ d ^ other
        b, d = second & WORD, first & WORD
        one, other = (one + WEYL[0]) & WORD, (other + WEYL[1]) & WORD
    return a, b, c, d


@compiled(inner=True)
def _fraction(high: np.uint64, low: np.uint64, more: float) -> float:
    """A number from 0 to 1 of 53 bits, 27 of one word and 26 of another."""
    return (float(high >> np.uint64(5)) * 2.0**26 + float(low >> np.uint64(6)) + more) * 2.0**-53


@compiled()
def _fill(keys: NDArray[Any], sizes: NDArray[Any], first: np.uint64, out: NDArray[Any]) -> None:
    """Fills (steps, draws, n_atoms, 3) with normal deviates."""
    n_steps, draws, _, _ = out.shape
    for t in range(n_steps):
        step = first + np.uint64(t)
        for draw in range(draws):
            values = out[t, draw].reshape(-1)
            began = 0
            for s in range(len(keys)):
                key = (keys[s] & WORD, keys[s] >> HALF)
                count = 3 * sizes[s]
                for place in range(0, count, 2):
                    counter = (np.uint64(place), np.uint64(draw), step & WORD, step >> HALF)
                    a, b, c, d = _philox(counter, key)
                    u, v = _fraction(a, b, 1.0), _fraction(c, d, 0.0)  # there is no log of zero
                    radius, angle = math.sqrt(-2.0 * math.log(u)), 2.0 * math.pi * v
                    values[began + place] = radius * math.cos(angle)
                    if place + 1 < count:
                        values[began + place + 1] = radius * math.sin(angle)
                began += count


def maxwell_boltzmann(
    system: System, kT: Tensor | float, seeds: Sequence[int], mobile: Tensor | None = None
) -> Tensor:
    """Momenta of thermal equilibrium, without any motion of a system as a whole.

    Neither net momentum nor, in a system without periodic directions, net angular momentum: the
    rest has kT/2 for each of `degrees_of_freedom`. Where atoms are held, nothing is taken away.

    Args:
        system: gives masses and positions.
        kT: eV, (n_systems,) or one for all.
        seeds: of the draw, for each system.
        mobile: (n_atoms, 1), zero for atoms that are held.

    Returns:
        (n_atoms, 3) u·Å/(Å·sqrt(u/eV)).
    """
    masses = system.masses[:, None]
    sizes = torch.bincount(system.system).tolist()
    normals = noise_of_steps(list(seeds), sizes, range(-1, 0), 1, system.positions)[0, 0]
    energy = torch.as_tensor(kT).to(masses).expand(len(sizes))[system.system, None]
    momenta = normals * (masses * energy).sqrt()
    if mobile is not None and not bool(mobile.all()):
        return momenta * mobile
    return remove_rotation(remove_translation(momenta, system), system)


def remove_translation(momenta: Tensor, system: System) -> Tensor:
    """Momenta without the velocity of the center of mass, (n_atoms, 3)."""
    masses = system.masses[:, None]
    return momenta - masses * _mean(momenta / masses, system)[system.system]


def remove_rotation(momenta: Tensor, system: System) -> Tensor:
    """Momenta without the angular momentum of systems that have no periodic direction."""
    x = system.positions - _mean(system.positions, system)[system.system]
    spin = sum_by_system(torch.linalg.cross(x, momenta), system)
    # The pseudoinverse: a linear molecule does not turn about its axis.
    velocity = torch.einsum(
        "nab,nb->na", torch.linalg.pinv(inertia(system), rtol=FLAT, hermitian=True), spin
    )
    velocity = torch.where(system.pbc.any(1, keepdim=True), 0.0, velocity)
    turning: Tensor = torch.linalg.cross(velocity[system.system], x)
    return momenta - system.masses[:, None] * turning


def _mean(values: Tensor, system: System) -> Tensor:
    """The mean over the atoms of each system by mass, (n_atoms, 3) -> (n_systems, 3)."""
    total = sum_by_system(system.masses[:, None] * values, system)
    return total / sum_by_system(system.masses, system)[:, None]


def rank(inertia: Tensor) -> Tensor:
    """About how many axes a system can turn: two for a linear molecule, none for an atom."""
    rank: Tensor = torch.linalg.matrix_rank(inertia, rtol=FLAT, hermitian=True)
    return rank


def inertia(system: System) -> Tensor:
    """The tensor of inertia of each system about its center of mass, (n_systems, 3, 3) u Å²."""
    x = system.positions - _mean(system.positions, system)[system.system]
    identity = torch.eye(3, dtype=x.dtype, device=x.device)
    per_atom = x.square().sum(1)[:, None, None] * identity - x[:, :, None] * x[:, None]
    return sum_by_system(system.masses[:, None, None] * per_atom, system)
