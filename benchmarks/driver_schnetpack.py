"""What SchNetPack does in the benchmarks; runs in its own environment, see `peers.py`."""

from __future__ import annotations

import tempfile
from typing import Any

import ase.io
import ase.units
import driving
import numpy as np
import torch
import torch.utils.data.dataloader

# It imports the name of a type variable from here, which newer versions of torch do not have.
if "T_co" not in vars(torch.utils.data.dataloader):
    torch.utils.data.dataloader.T_co = Any  # type: ignore[attr-defined]

import schnetpack as spk
import schnetpack.md
from schnetpack.interfaces import AtomsConverter
from schnetpack.md.neighborlist_md import NeighborListMD
from schnetpack.transform import MatScipyNeighborList


def throughput(
    frames: str,
    seconds: float,
    cutoff: float,
    architecture: str,
    features: int,
    interactions: int,
    radial: int,
) -> dict[str, Any]:
    """Times the step of its `AtomisticTask` on one batch of all frames of a file."""
    torch.manual_seed(0)
    structures = ase.io.read(frames, ":")
    convert = AtomsConverter(neighbor_list=MatScipyNeighborList(cutoff=cutoff), dtype=torch.float32)
    batch = convert(structures)
    energies = np.array([each.get_potential_energy() for each in structures])
    # Its trainer removes the mean from the labels as well.
    energy = torch.tensor(energies - energies.mean(), dtype=torch.float32)
    forces = torch.tensor(np.concatenate([each.get_forces() for each in structures])).float()
    network = _network(architecture, features, interactions, radial, cutoff)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    mse = torch.nn.functional.mse_loss

    def step() -> torch.Tensor:
        output = network(batch.copy())
        loss = 0.01 * mse(output["energy"], energy) + 0.99 * mse(output["forces"], forces)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return driving.time_steps(step, seconds, driving.count(network), len(batch["_idx_i"]))


def step(
    structure: str,
    seconds: float,
    cutoff: float,
    architecture: str,
    features: int,
    interactions: int,
    radial: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times a step of its own molecular dynamics, with lists that are kept for a shell of 2 Å."""
    torch.manual_seed(0)
    network = _network(architecture, features, interactions, radial, cutoff)
    with torch.no_grad():  # forces that hardly move atoms
        for each in network.output_modules[0].outnet[-1].parameters():
            each *= 1e-3
    atoms = ase.io.read(structure)
    system = spk.md.System()
    system.load_molecules(atoms)
    unit = spk.units.convert_units(ase.units.Angstrom, spk.units.length) / spk.units.convert_units(
        ase.units.fs, spk.units.time
    )
    velocities = torch.tensor(atoms.get_velocities() * ase.units.fs).float() * unit
    system.momenta = velocities * system.masses
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model"
        torch.save(network, file)
        calculator = spk.md.calculators.SchNetPackCalculator(
            file,
            "forces",
            energy_unit="eV",
            position_unit="Angstrom",
            neighbor_list=NeighborListMD(cutoff, 2.0, MatScipyNeighborList),
            energy_key="energy",
        )
    integrator = spk.md.integrators.VelocityVerlet(driving.TIMESTEP_FS)
    simulator = spk.md.Simulator(system, integrator, calculator, progress=False)
    simulator.to(device).float()
    calculator.calculate(system)

    def advance(steps: int) -> None:
        # `Simulator.simulate` without what it does once: it would begin with forces that are there.
        for _ in range(steps):
            simulator.integrator.half_step(system)
            simulator.integrator.main_step(system)
            simulator.calculator.calculate(system)
            simulator.integrator.half_step(system)

    def turn() -> None:
        system.momenta = -system.momenta

    timed = driving.time_dynamics(advance, turn, seconds)
    return timed | {"parameters": driving.count(network)}


def _network(
    architecture: str, features: int, interactions: int, radial: int, cutoff: float
) -> torch.nn.Module:
    """With random weights."""
    kind = {"schnet": spk.representation.SchNet, "painn": spk.representation.PaiNN}[architecture]
    network: torch.nn.Module = spk.model.NeuralNetworkPotential(
        representation=kind(
            n_atom_basis=features,
            n_interactions=interactions,
            radial_basis=spk.nn.GaussianRBF(n_rbf=radial, cutoff=cutoff),
            cutoff_fn=spk.nn.CosineCutoff(cutoff),
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=features, output_key="energy"),
            spk.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
    )
    return network


if __name__ == "__main__":
    driving.run({"throughput": throughput, "step": step})
