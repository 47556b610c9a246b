"""The driver: the only loop over steps of dynamics.

A step has fixed shapes and never waits for a value. So the driver runs a block of steps on one
neighbor list and looks once, at its end, for how many of them the list was good: if not for all,
the block is done again up to the last good step, and a new list is built there. The noise of a
step depends on the seed and the step alone, so steps that are done again are the same steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.errors import UnstableError
from mdlearn.integrators.integrator import Integrator, State, conserved_energy
from mdlearn.neighbors import SKIN, Neighbors, build, moved_since_build
from mdlearn.potentials.evaluate import Potential, evaluate
from mdlearn.system import Evaluation, System, sum_by_system

BLOCK = {"cpu": 1, "cuda": 32}
"""Steps between looks, by kind of device: a look is free on a CPU and a stall on a GPU.
They change the time that a run takes, and not a bit of it."""
LARGEST_DRIFT = 0.3
"""eV per atom that the conserved energy may move before the run is called unstable. A bond's energy
spread over a molecule: far beyond any error of integration that one could live with."""


class Snapshot(NamedTuple):
    """A state together with what the driver needs to go on from it as if it had never stopped."""

    state: State
    neighbors: Neighbors
    conserved: Tensor
    """(n_systems,) eV, the conserved energy at the start of the simulation."""


def start(
    potential: Potential, integrator: Integrator, system: System, momenta: Tensor
) -> Snapshot:
    """The beginning of a simulation.

    Raises:
        DataError, UnstableError: see `neighbors.build`.
    """
    neighbors = build(system, potential.cutoff, SKIN)
    state = integrator.init(system, momenta, _forces(potential, neighbors))
    return Snapshot(state, neighbors, conserved_energy(state))


def save(snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    """What `restore` needs, as arrays by name, bit for bit."""
    state, neighbors, conserved = snapshot
    tensors = {
        "positions": state.system.positions,
        "cell": state.system.cell,
        "momenta": state.momenta,
        "bath": state.bath,
        "conserved": conserved,
        "reference": neighbors.reference,
        "reference_cell": neighbors.reference_cell,
    }
    counters = {"step": state.step, "capacity": neighbors.j.shape[1]}
    return {name: each.detach().cpu().numpy() for name, each in tensors.items()} | {
        name: np.array(each) for name, each in counters.items()
    }


def restore(
    potential: Potential, integrator: Integrator, system: System, saved: Mapping[str, NDArray[Any]]
) -> Snapshot:
    """The snapshot that was saved; the run goes on with the same bits as if it had not stopped.

    Args:
        potential: the one that the run had.
        integrator: the one that the run had.
        system: gives elements, masses and boundary conditions; positions and cell are the saved
            ones.
        saved: by `save`.
    """

    def tensor(name: str) -> Tensor:
        return torch.tensor(saved[name]).to(system.positions)

    # The neighbor list is not saved, only what it was built from.
    reference = system._replace(positions=tensor("reference"), cell=tensor("reference_cell"))
    neighbors = build(reference, potential.cutoff, SKIN, int(saved["capacity"]))
    system = system._replace(positions=tensor("positions"), cell=tensor("cell"))
    state = integrator.init(system, tensor("momenta"), _forces(potential, neighbors))
    state = state._replace(bath=tensor("bath"), step=int(saved["step"]))
    return Snapshot(state, neighbors, tensor("conserved"))


def simulate(
    potential: Potential,
    integrator: Integrator,
    snapshot: Snapshot,
    *,
    steps: int,
    every: int,
    seed: int,
    observe: Callable[[Snapshot], bool],
) -> Snapshot:
    """Runs dynamics up to a step.

    Args:
        potential: gives the energies.
        integrator: gives the steps.
        snapshot: where to start from; `start` makes the first one.
        steps: the step to end at, counted from the start of the simulation.
        every: `observe` is called after each multiple of this many steps, and after the last.
        seed: of the noise.
        observe: is shown the snapshot; returns whether to go on.

    Returns:
        The last snapshot; its step is `steps` unless `observe` ended the run.

    Raises:
        UnstableError: positions are not finite, an atom moved further in one step than the list can
            follow, or the conserved energy has left its starting value.
    """
    state, neighbors, conserved = snapshot
    block = BLOCK[state.momenta.device.type]
    while state.step < steps:
        length = min(block, every - state.step % every, steps - state.step)
        trial, good = _run_block(potential, integrator, state, neighbors, length, seed)
        if good < length:
            if good == 0 and torch.equal(state.system.positions, neighbors.reference):
                first, _ = _run_block(potential, integrator, state, neighbors, 1, seed)
                _explain(state, first)
            # Up to the last good step, and a new list there and nowhere else: so the life of a list
            # depends on the trajectory alone, and so do its bits, however the run is cut up.
            trial, _ = _run_block(potential, integrator, state, neighbors, good, seed)
            neighbors = build(trial.system, potential.cutoff, SKIN, neighbors.j.shape[1])
        state = trial
        if good and (state.step % every == 0 or state.step == steps):
            _check_energy(state, conserved)
            if not observe(Snapshot(state, neighbors, conserved)):
                break
    return Snapshot(state, neighbors, conserved)


def _run_block(
    potential: Potential,
    integrator: Integrator,
    state: State,
    neighbors: Neighbors,
    length: int,
    seed: int,
) -> tuple[State, int]:
    """Runs some steps on one list; returns the last state, and how many steps the list was good."""
    forces = _forces(potential, neighbors)
    moved = moved_since_build(state.system, neighbors)
    good = torch.zeros_like(moved)
    for step in range(state.step, state.step + length):
        state = integrator.step(state, forces, noise(seed, step, integrator.draws, state.momenta))
        moved = torch.maximum(moved, moved_since_build(state.system, neighbors))
        good = good + (moved <= SKIN / 2)  # False for NaN too, and from then on
    return state, int(good)


def noise(seed: int, step: int, draws: int, like: Tensor) -> Tensor:
    """Normal deviates of a step, (draws, *like.shape): a function of seed and step alone."""
    if draws == 0:
        return like.new_empty(0, *like.shape)
    digest = hashlib.blake2b(f"{seed},{step}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest) >> 1)
    values = torch.randn(draws, *like.shape, generator=generator, dtype=torch.float64)
    return values.to(like)


def maxwell_boltzmann(system: System, kT: float, seed: int) -> Tensor:
    """Momenta of thermal equilibrium, with no net momentum in any system.

    Args:
        system: gives the masses.
        kT: eV.
        seed: of the draw.

    Returns:
        (n_atoms, 3) u·Å/(Å·sqrt(u/eV)).
    """
    masses = system.masses[:, None]
    momenta = noise(seed, -1, 1, system.positions)[0] * (masses * kT).sqrt()
    total = sum_by_system(torch.cat([momenta, masses], 1), system)
    velocity = total[:, :3] / total[:, 3:]
    return momenta - masses * velocity[system.system]


def _forces(potential: Potential, neighbors: Neighbors) -> Callable[[System], Evaluation]:
    return lambda system: evaluate(potential, system, neighbors)


def _check_energy(state: State, conserved: Tensor) -> None:
    """Raises if the conserved energy of a system has gone where no honest run goes."""
    n_atoms = sum_by_system(torch.ones_like(state.system.masses), state.system)
    drift = (conserved_energy(state) - conserved) / n_atoms
    worst = int(drift.abs().argmax())
    if not abs(float(drift[worst])) <= LARGEST_DRIFT:
        raise UnstableError(
            f"step {state.step}: the conserved energy has moved by {float(drift[worst]):.2g} eV per"
            f" atom (limit {LARGEST_DRIFT}); the time step is too long, or the atoms"
            " have gone where the model was never trained: halve --timestep, or add such frames"
        )


def _explain(state: State, trial: State) -> None:
    """Raises with the atom that moved too far in a single step."""
    distance = (trial.system.positions - state.system.positions).norm(dim=1)
    distance = torch.where(distance.isnan(), torch.inf, distance)
    atom = int(distance.argmax())
    raise UnstableError(
        f"step {trial.step}: atom {atom} moved {float(distance[atom]):.2f} Å in one step (limit"
        f" {SKIN / 2:.2f}); the time step is too long, or the atoms have gone where the model was"
        " never trained: halve --timestep, relax the structure, or add such frames to the training"
    )
