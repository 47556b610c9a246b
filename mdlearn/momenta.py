"""Momenta of thermal equilibrium, and the noise that they and thermostats are drawn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from mdlearn.system import System, sum_by_system

FLAT = 1e-6
"""A moment of inertia that is so much smaller than another one is that of a line."""


def noise(seed: int, step: int, draws: int, like: Tensor) -> Tensor:
    """Normal deviates of a step, (draws, *like.shape): a function of seed and step alone."""
    if draws == 0:
        return like.new_empty(0, *like.shape)
    digest = hashlib.blake2b(f"{seed},{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
    values = torch.randn(draws, *like.shape, generator=generator, dtype=torch.float64)
    return values.to(like)


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
    parts = zip(seeds, system.positions.split(sizes), strict=True)
    normals = torch.cat([noise(seed, -1, 1, part)[0] for seed, part in parts])
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
