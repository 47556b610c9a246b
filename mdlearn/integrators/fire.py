"""FIRE: downhill to the nearest minimum, of positions alone or of positions and cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mdlearn.integrators.integrator import Forces
from mdlearn.system import Evaluation, System, sum_by_system, volume

CellChange = Literal["none", "isotropic", "full"]
"""What of the cell may change: nothing, its size, or its size and shape."""

FIRST_DT, SMALLEST_DT, LARGEST_DT = 0.1, 0.002, 1.0
"""Å·sqrt(u/eV), of a mass of one u: 1, 0.02 and 10 fs."""
FASTER, SLOWER = 1.1, 0.5
"""Factors of dt after steps downhill, and after a step uphill."""
MIXING, LESS_MIXING = 0.25, 0.99
"""How much of the velocity is turned along the force at first, and the factor that it falls by."""
DELAY = 20
"""Steps downhill before dt grows."""
LARGEST_MOVE = 0.1
"""Å that an atom moves in a step at most; a list with a skin is good for longer than that."""
LARGEST_STRAIN = 0.01
"""Of the cell in a step; a list that reaches 30 Å is good for longer than both together."""
SPACING = 3.0
"""Å, about the distance of neighbors. The strain times this and the root of the number of atoms is
the variable that goes downhill: its curvature is then about that of a bond, however many atoms."""


class Descent(NamedTuple):
    """Everything that the next step downhill depends on."""

    system: System
    evaluation: Evaluation
    """Of the potential, at the positions of `system`."""
    velocities: Tensor
    """(n_atoms, 3) Å/(Å·sqrt(u/eV)); every atom has a mass of one u."""
    strain_velocity: Tensor
    """(n_systems, 3, 3), of the variable of the cell, in the same unit."""
    dt: Tensor
    """(n_systems,) Å·sqrt(u/eV)."""
    mixing: Tensor
    """(n_systems,), α."""
    downhill: Tensor
    """(n_systems,), steps since one went uphill."""


class Minimizer(NamedTuple):
    """A pair of pure functions, as an integrator is one."""

    init: Callable[[System, Forces], Descent]
    """(system, forces) -> where the descent begins, at rest."""
    step: Callable[[Descent, Forces], Descent]
    """(descent, forces) -> one step later; evaluates the potential once."""


def fire(pressure: float = 0.0, cell: CellChange = "none") -> Minimizer:
    """Motion whose velocity is turned along the force, and which stops where it goes uphill.

    E. Bitzek, P. Koskinen, F. Gähler, M. Moseler, P. Gumbsch, Phys. Rev. Lett. 97, 170201 (2006),
    in the form of J. Guénolé et al., Comput. Mater. Sci. 175, 109584 (2020), algorithm 2 with the
    semi-implicit Euler integrator: v' = v + F dt, v'' = (1-α) v' + α |v'| F/|F|, x' = x + v'' dt.
    Where F·v < 0, half a step of the shortened dt leads back, and that is a step of its own here.

    The variables of the cell are those of ASE's `UnitCellFilter` (E. B. Tadmor, G. S. Smith, N.
    Bernstein, E. Kaxiras, Phys. Rev. B 59, 235, 1999), positions in the cell as it was and a
    deformation of both, but each step takes the present cell as the one to be deformed:
    h' = h exp(Λ) and x' = (x + v dt) exp(Λ), with the symmetric Λ that the force V (σ + P) drives.
    So nothing has to be remembered, and the cell does not turn.

    Args:
        pressure: P, eV/Å³.
        cell: what of the cell may change.
    """

    def init(system: System, forces: Forces) -> Descent:
        evaluation = forces(system)
        one = torch.ones_like(evaluation.energy)
        rest = torch.zeros_like(system.positions)
        cell_rest = torch.zeros_like(system.cell)
        return Descent(system, evaluation, rest, cell_rest, FIRST_DT * one, MIXING * one, 0.0 * one)

    def step(state: Descent, forces: Forces) -> Descent:
        system, evaluation, v, w, dt, mixing, downhill = state
        atom = system.system
        force, pull = evaluation.forces, strain_force(state)

        uphill = _dot(force, pull, v, w, system) < 0.0
        downhill = torch.where(uphill, 0.0, downhill + 1.0)
        faster = downhill > DELAY
        dt = torch.where(faster, (FASTER * dt).clamp_max(LARGEST_DT), dt)
        dt = torch.where(uphill, (SLOWER * dt).clamp_min(SMALLEST_DT), dt)
        mixing = torch.where(faster, LESS_MIXING * mixing, mixing)
        mixing = torch.where(uphill, MIXING, mixing)

        back, cell_back = -0.5 * v, -0.5 * w
        v, w = v + dt[atom, None] * force, w + dt[:, None, None] * pull
        speed = _dot(v, w, v, w, system).sqrt()
        strength = _dot(force, pull, force, pull, system).sqrt()
        along = mixing * speed / torch.where(strength > 0.0, strength, 1.0)
        v = (1.0 - mixing)[atom, None] * v + along[atom, None] * force
        w = (1.0 - mixing)[:, None, None] * w + along[:, None, None] * pull
        v = _limit(v, dt[atom, None], LARGEST_MOVE, (1,))
        w = _limit(w, dt[:, None, None], LARGEST_STRAIN * stiffness(system), (1, 2))

        move = dt[atom, None] * torch.where(uphill[atom, None], back, v)
        v = torch.where(uphill[atom, None], 0.0, v)
        system = system._replace(positions=system.positions + move)
        if cell != "none":
            move = dt[:, None, None] * torch.where(uphill[:, None, None], cell_back, w)
            w = torch.where(uphill[:, None, None], 0.0, w)
            stretch = torch.linalg.matrix_exp(move / stiffness(system))
            positions = torch.bmm(system.positions[:, None], stretch[atom])[:, 0]
            system = system._replace(positions=positions, cell=system.cell @ stretch)
        return Descent(system, forces(system), v, w, dt, mixing, downhill)

    def strain_force(state: Descent) -> Tensor:
        """The force on the variable of the cell, (n_systems, 3, 3) eV/Å."""
        if cell == "none":
            return torch.zeros_like(state.system.cell)
        excess = unbalanced_stress(state.evaluation, pressure, cell)
        return -volume(state.system)[:, None, None] * excess / stiffness(state.system)

    return Minimizer(init, step)


def unbalanced_stress(evaluation: Evaluation, pressure: float, cell: CellChange) -> Tensor:
    """What is left of σ + P where the cell can give way, (n_systems, 3, 3) eV/Å³."""
    stress = evaluation.stress
    if cell == "none":
        return torch.zeros_like(stress)
    identity = torch.eye(3, dtype=stress.dtype, device=stress.device)
    excess = 0.5 * (stress + stress.transpose(1, 2)) + pressure * identity
    if cell == "full":
        return excess
    return torch.diagonal(excess, dim1=1, dim2=2).mean(1)[:, None, None] * identity


def enthalpy(state: Descent, pressure: float) -> Tensor:
    """E + P V, (n_systems,) eV: what goes downhill."""
    return state.evaluation.energy + pressure * volume(state.system)


def stiffness(system: System) -> Tensor:
    """Å that the variable of a cell changes by where the strain changes by one, (n_systems, 1, 1).

    See `SPACING`.
    """
    n_atoms = sum_by_system(torch.ones_like(system.masses), system)
    return SPACING * n_atoms.sqrt()[:, None, None]


def _dot(a: Tensor, cell_a: Tensor, b: Tensor, cell_b: Tensor, system: System) -> Tensor:
    """The product over all variables of each system, (n_systems,)."""
    return sum_by_system((a * b).sum(1), system) + (cell_a * cell_b).sum((1, 2))


def _limit(v: Tensor, dt: Tensor, longest: Tensor | float, dims: tuple[int, ...]) -> Tensor:
    """Velocities that go no further than so much in a step, in their direction."""
    distance = dt * v.square().sum(dims, keepdim=True).sqrt()
    return v * (longest / torch.where(distance > 0.0, distance, 1.0)).clamp_max(1.0)
