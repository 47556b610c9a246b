"""What torch-sim does in the benchmarks, with MACE; runs in its own environment, see `peers.py`."""

from __future__ import annotations

from typing import Any

import ase.io
import driver_mace
import driving
import numpy as np
import torch
import torch_sim
from ase import units
from mace.calculators.mace_torchsim import MaceTorchSimModel


def step(
    structure: str,
    seconds: float,
    cutoff: float,
    device: str,
    replicas: int,
    channels: int,
    max_l: int,
) -> dict[str, Any]:
    """Times a step of its velocity Verlet with a random MACE, lists of neighbors at every step."""
    atoms = ase.io.read(structure)
    network = driver_mace.random_network(atoms, cutoff, channels, max_l)
    where = torch.device(device)
    model = MaceTorchSimModel(network, where, torch.float32, compute_stress=False)
    state = torch_sim.io.atoms_to_state([atoms] * replicas, where, torch.float32)
    began = torch_sim.integrators.nve_init(state, model, kT=0.0)
    momenta = np.tile(atoms.get_momenta(), (replicas, 1))
    # Its units are those of ASE.
    began.momenta = torch.as_tensor(momenta).to(began.momenta)
    dt = driving.TIMESTEP_FS * units.fs

    def advance(steps: int) -> None:
        for _ in range(steps):
            torch_sim.integrators.nve_step(began, model, dt=dt)

    def turn() -> None:
        began.momenta = -began.momenta

    parameters = driving.count(network)
    return driving.time_dynamics(advance, turn, seconds) | {"parameters": parameters}


if __name__ == "__main__":
    driving.run({"step": step})
