"""What mace-torch does in the benchmarks; runs in its own environment, see `peers.py`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import ase.io
import driving
import numpy as np
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.calculators import MACECalculator
from mace.data.neighborhood import get_neighborhood
from mace.tools import torch_geometric
from mace.tools.train import take_step

MARKS = ("Started training", r"Epoch \d+: ", "Training complete")


def throughput(
    frames: str, seconds: float, cutoff: float, channels: int, max_l: int
) -> dict[str, Any]:
    """Times the package's own `take_step` on one batch of all frames of a file."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    structures = ase.io.read(frames, ":")
    for atoms in structures:
        atoms.info["REF_energy"] = atoms.get_potential_energy()
        atoms.arrays["REF_forces"] = atoms.get_forces()
    table = tools.AtomicNumberTable(sorted({int(z) for each in structures for z in each.numbers}))
    keys = data.KeySpecification(
        info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"}
    )
    mean = np.mean([each.info["REF_energy"] / len(each) for each in structures])
    examples = [
        data.AtomicData.from_config(
            data.config_from_atoms(atoms, key_specification=keys), z_table=table, cutoff=cutoff
        )
        for atoms in structures
    ]
    loader = torch_geometric.dataloader.DataLoader(examples, batch_size=len(examples))
    batch = next(iter(loader))
    pairs, n_atoms = batch.edge_index.shape[1], len(batch.positions)
    spread = float(batch.forces.square().mean().sqrt())
    network = _network(table, cutoff, channels, max_l, pairs / n_atoms, float(mean), spread)
    loss_fn = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, amsgrad=True)
    outputs = {"forces": True, "virials": False, "stress": False}

    def step() -> torch.Tensor:
        loss: torch.Tensor = take_step(
            network, loss_fn, batch, optimizer, None, outputs, 10.0, torch.device("cpu")
        )[0]
        return loss.detach()

    return driving.time_steps(step, seconds, driving.count(network), pairs)


def step(
    structure: str, seconds: float, cutoff: float, channels: int, max_l: int, device: str = "cpu"
) -> dict[str, Any]:
    """Times a step of dynamics with the package's calculator in ASE."""
    atoms = ase.io.read(structure)
    network = random_network(atoms, cutoff, channels, max_l)
    calculator = MACECalculator(models=network, device=device, default_dtype="float32")
    parameters = driving.count(network)
    return driving.time_ase(atoms, calculator, seconds) | {"parameters": parameters}


def random_network(
    atoms: ase.Atoms, cutoff: float, channels: int, max_l: int
) -> modules.ScaleShiftMACE:
    """In float32, for the elements of a structure, with forces that hardly move atoms."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    table = tools.AtomicNumberTable(sorted({int(z) for z in atoms.numbers}))
    found = get_neighborhood(atoms.positions, cutoff, atoms.pbc, np.array(atoms.cell))
    neighbors = found[0].shape[1] / len(atoms)
    return _network(table, cutoff, channels, max_l, neighbors, 0.0, 1e-3)


def _network(
    table: tools.AtomicNumberTable,
    cutoff: float,
    channels: int,
    max_l: int,
    neighbors: float,
    mean: float,
    scale: float,
) -> modules.ScaleShiftMACE:
    """With random weights."""
    irreps = "+".join(f"{channels}x{degree}{'eo'[degree % 2]}" for degree in range(max_l + 1))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(table),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.full(len(table), mean),
        avg_num_neighbors=neighbors,
        atomic_numbers=table.zs,
        correlation=3,
        radial_MLP=[64, 64, 64],
        radial_type="bessel",
        atomic_inter_scale=scale,
        atomic_inter_shift=0.0,
    )


def train(
    data: str,
    output: str,
    budget: float,
    seed: int,
    cutoff: float,
    numbers: list[int],
    channels: int,
    max_l: int,
) -> dict[str, Any]:
    """Trains by `mace_run_train` with what its authors published for 3BPA, at a smaller size.

    That is: ScaleShiftMACE, correlation 3, two layers, forces weighted by 1000 against 1 for the
    energy per atom, batches of five, AMSGrad at 0.01, a running average of 0.99, float32. The
    schedule is fitted to the time: exponential decay to a tenth until the second stage, which takes
    the last quarter with the package's own weights (100 and 1000) and step size (0.001).
    """
    folder = Path(output)
    shutil.rmtree(folder / "pilot", ignore_errors=True)
    shutil.rmtree(folder / "run", ignore_errors=True)

    def command(name: str, epochs: int, stage_two: int, gamma: float) -> list[str]:
        """Of a run in a folder of its own."""
        values = {
            "name": name,
            "work_dir": folder / name,
            "train_file": f"{data}/train.xyz",
            "valid_file": f"{data}/valid.xyz",
            "energy_key": "REF_energy",
            "forces_key": "REF_forces",
            "E0s": {number: 0.0 for number in numbers},
            "model": "ScaleShiftMACE",
            "num_interactions": 2,
            "num_channels": channels,
            "max_L": max_l,
            "max_ell": 3,
            "correlation": 3,
            "r_max": cutoff,
            "energy_weight": 1.0,
            "forces_weight": 1000.0,
            "batch_size": 5,
            "valid_batch_size": 10,
            "lr": 0.01,
            "scheduler": "ExponentialLR",
            "lr_scheduler_gamma": gamma,
            "weight_decay": 5e-7,
            "ema_decay": 0.99,
            "max_num_epochs": epochs,
            "patience": epochs + 1,
            "default_dtype": "float32",
            "device": "cpu",
            "seed": seed,
            "error_table": "TotalMAE",
            "plot": False,
            "pin_memory": False,
        }
        flags = [f"--{key}={value}" for key, value in values.items()]
        flags += ["--amsgrad", "--ema"]
        if stage_two:
            flags += ["--swa", f"--start_swa={stage_two}"]
        return [sys.executable, "-m", "mace.cli.run_train", *flags]

    log = folder / "train.log"
    log.unlink(missing_ok=True)
    pilot = driving.watch(command("pilot", 9999, 0, 1.0), log, MARKS, epochs=2)
    epochs = driving.epochs_within(budget, pilot)
    stage_two = max(1, epochs * 3 // 4)
    chosen = command("run", epochs, stage_two, 0.1 ** (1.0 / stage_two))
    watched = driving.watch(chosen, log, MARKS, seconds=budget)
    if watched.stopped:
        # It saves models at its end only; a restart that has nothing left to train does the same.
        late = bool(list((folder / "run").glob("checkpoints/*_swa.pt")))
        finish = command("run", 2 if late else 1, int(late), 1.0)
        driving.watch([*finish, "--restart_latest"], log, MARKS)
    network = torch.load(_model(folder), weights_only=False)
    return {
        "about": f"MACE, {channels} channels, L = {max_l}, {epochs} epochs planned",
        "epochs": len(watched.epochs),
        "seconds": watched.seconds,
        "parameters": driving.count(network),
    }


def predict(output: str, frames: str) -> dict[str, Any]:
    """Energies and forces by the model that was trained; of the second stage, if it got there."""
    model = str(_model(Path(output)))
    calculator = MACECalculator(model_paths=model, device="cpu", default_dtype="float32")
    return driving.predict(calculator, frames)


def _model(folder: Path) -> Path:
    late = folder / "run" / "run_stagetwo.model"
    return late if late.exists() else folder / "run" / "run.model"


if __name__ == "__main__":
    driving.run({"throughput": throughput, "step": step, "train": train, "predict": predict})
