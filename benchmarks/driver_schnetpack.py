"""What SchNetPack does in the benchmarks; runs in its own environment, see `peers.py`."""

from __future__ import annotations

from typing import Any

import ase.io
import driving
import numpy as np
import torch
import torch.utils.data.dataloader

# It imports the name of a type variable from here, which newer versions of torch do not have.
if "T_co" not in vars(torch.utils.data.dataloader):
    torch.utils.data.dataloader.T_co = Any  # type: ignore[attr-defined]

import schnetpack as spk
from schnetpack.interfaces import AtomsConverter
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
    kind = {"schnet": spk.representation.SchNet, "painn": spk.representation.PaiNN}[architecture]
    network = spk.model.NeuralNetworkPotential(
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


if __name__ == "__main__":
    driving.run({"throughput": throughput})
