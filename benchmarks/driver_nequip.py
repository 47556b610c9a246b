"""What nequip does in the benchmarks; runs in its own environment, see `peers.py`."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import driving
import lightning
import nequip.scripts.compile
import torch
import yaml
from nequip.ase import NequIPCalculator
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel
from nequip.train import EnergyForceLoss
from nequip.utils.global_state import set_global_state

MARKS = ("TRAIN RUN START", "^epoch over", "TRAIN RUN END")


class EpochPrinter(lightning.Callback):  # type: ignore[misc]
    """Says on standard output when an epoch, with its validation, is over."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Called by Lightning."""
        print(f"epoch over: {trainer.current_epoch}", flush=True)


def throughput(
    frames: str,
    seconds: float,
    cutoff: float,
    features: int,
    layers: int,
    l_max: int,
    compiled: bool,
) -> dict[str, Any]:
    """Times the step of its Lightning module on one batch of all frames of a file."""
    set_global_state()
    structures = ase.io.read(frames, ":")
    symbols = sorted({symbol for each in structures for symbol in each.symbols})
    to_types = ChemicalSpeciesToAtomTypeMapper(symbols)
    examples = [to_types(compute_neighborlist_(from_ase(each), cutoff)) for each in structures]
    batch = AtomicDataDict.batched_from_list(examples)
    pairs, n_atoms = batch["edge_index"].shape[1], len(batch["pos"])
    mean = float(batch["total_energy"].sum()) / n_atoms
    spread = float(batch["forces"].square().mean().sqrt())
    sizes = (features, layers, l_max)
    mode = "compile" if compiled else "eager"
    network = _network(symbols, cutoff, sizes, pairs / n_atoms, mean, spread, mode)
    loss_fn = EnergyForceLoss(type_names=symbols)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step() -> torch.Tensor:
        output = network(batch.copy())
        loss: torch.Tensor = loss_fn(output, batch)["weighted_sum"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return driving.time_steps(step, seconds, driving.count(network), pairs)


def step(
    structure: str,
    seconds: float,
    cutoff: float,
    features: int,
    layers: int,
    l_max: int,
    compiled: str | None,
) -> dict[str, Any]:
    """Times a step of dynamics with the package's calculator in ASE.

    Args:
        structure: a file.
        seconds: how long.
        cutoff: Å.
        features: of the network.
        layers: likewise.
        l_max: likewise.
        compiled: where to keep what `nequip-compile` makes, which is made if it is not there; None
            for the network as it is.
    """
    set_global_state()
    atoms = ase.io.read(structure)
    symbols = sorted(set(atoms.symbols))
    frame = compute_neighborlist_(from_ase(atoms), cutoff)
    neighbors = frame["edge_index"].shape[1] / len(atoms)
    sizes = (features, layers, l_max)
    network = _network(symbols, cutoff, sizes, neighbors, 0.0, 1e-3, "eager").eval()
    to_types = ChemicalSpeciesToAtomTypeMapper(symbols)
    began = time.perf_counter()
    if compiled:
        if not Path(compiled).exists():
            _compile(network, to_types(frame), compiled)
        calculator = NequIPCalculator.from_compiled_model(compiled, "cpu")
    else:
        transforms = [to_types, NeighborListTransform(cutoff)]
        calculator = NequIPCalculator(network, "cpu", transforms=transforms)
    about = {"parameters": driving.count(network), "compile_s": time.perf_counter() - began}
    return driving.time_ase(atoms, calculator, seconds) | about


def _compile(network: torch.nn.Module, frame: AtomicDataDict.Type, target: str) -> None:
    """Runs `nequip-compile` on a network that is at hand, which it would read from a file."""
    # The stress is compared, too, and must be a number in float32.
    if "cell" not in frame or not frame["cell"].any():
        frame["cell"] = 1e2 * torch.eye(3, dtype=torch.float64)[None]
    shifts = torch.zeros(frame["edge_index"].shape[1], 3, dtype=torch.float64)
    frame.setdefault("edge_cell_shift", shifts)
    nequip.scripts.compile.load_saved_model = lambda *_, return_data_dict: (network, frame)
    nequip.scripts.compile.main(
        ["none", target, "--mode", "aotinductor", "--device", "cpu", "--target", "ase"]
    )


def _network(
    symbols: list[str],
    cutoff: float,
    sizes: tuple[int, int, int],
    neighbors: float,
    mean: float,
    scale: float,
    mode: str,
) -> torch.nn.Module:
    """With random weights; sizes are features, layers and the highest degree."""
    network: torch.nn.Module = NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        type_names=symbols,
        r_max=cutoff,
        num_layers=sizes[1],
        l_max=sizes[2],
        parity=True,
        num_features=sizes[0],
        radial_mlp_depth=2,
        radial_mlp_width=64,
        avg_num_neighbors=neighbors,
        per_type_energy_scales=scale,
        per_type_energy_shifts={symbol: mean for symbol in symbols},
        compile_mode=mode,
    )
    return network


def train(
    data: str,
    output: str,
    budget: float,
    seed: int,
    cutoff: float,
    symbols: list[str],
    features: int,
    layers: int,
    l_max: int,
    compiled: bool,
) -> dict[str, Any]:
    """Trains by `nequip-train` with what its authors publish, at a smaller size than for 3BPA.

    Batches of five, AMSGrad and the data's own scales are those of their configuration for 3BPA;
    the loss (energies per atom and forces alike), step size and network are those that they
    recommend to start from (their tutorial), because the weights for 3BPA need days. The running
    average is that for 3BPA, 0.995. The step size falls along a cosine that ends with the time.
    """
    folder = Path(output)
    shutil.rmtree(folder / "pilot", ignore_errors=True)
    shutil.rmtree(folder / "run", ignore_errors=True)

    def command(name: str, epochs: int) -> list[str]:
        """Of a run in a folder of its own."""
        target = folder / name
        target.mkdir(parents=True)
        loader = {"_target_": "torch.utils.data.DataLoader", "num_workers": 0}
        best = "val0_epoch/weighted_sum"
        config = {
            "run": ["train"],
            "data": {
                "_target_": "nequip.data.datamodule.ASEDataModule",
                "seed": seed,
                "train_file_path": f"{data}/train.xyz",
                "val_file_path": f"{data}/valid.xyz",
                "key_mapping": {"REF_energy": "total_energy", "REF_forces": "forces"},
                "transforms": [
                    {
                        "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                        "model_type_names": symbols,
                        "chemical_species_to_atom_type_map": {each: each for each in symbols},
                    },
                    {
                        "_target_": "nequip.data.transforms.NeighborListTransform",
                        "r_max": cutoff,
                    },
                ],
                "train_dataloader": {**loader, "batch_size": 5, "shuffle": True},
                "val_dataloader": {**loader, "batch_size": 10},
                "stats_manager": {
                    "_target_": "nequip.data.CommonDataStatisticsManager",
                    "dataloader_kwargs": {"batch_size": 10},
                    "type_names": symbols,
                },
            },
            "trainer": {
                "_target_": "lightning.Trainer",
                "accelerator": "cpu",
                "max_epochs": epochs,
                "enable_progress_bar": False,
                "logger": {
                    "_target_": "lightning.pytorch.loggers.CSVLogger",
                    "save_dir": str(target),
                },
                "callbacks": [
                    {
                        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                        "monitor": best,
                        "dirpath": str(target),
                        "filename": "best",
                        "save_last": True,
                    },
                    {"_target_": "driver_nequip.EpochPrinter"},
                ],
            },
            "training_module": {
                "_target_": "nequip.train.EMALightningModule",
                "ema_decay": 0.995,
                "loss": {
                    "_target_": "nequip.train.EnergyForceLoss",
                    "per_atom_energy": True,
                    "coeffs": {"total_energy": 1.0, "forces": 1.0},
                },
                "val_metrics": {
                    "_target_": "nequip.train.EnergyForceMetrics",
                    "coeffs": {"total_energy_mae": 1.0, "forces_mae": 1.0},
                },
                "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01, "amsgrad": True},
                "lr_scheduler": {
                    "scheduler": {
                        "_target_": "torch.optim.lr_scheduler.CosineAnnealingLR",
                        "T_max": epochs,
                    },
                    "interval": "epoch",
                    "frequency": 1,
                },
                "model": {
                    "_target_": "nequip.model.NequIPGNNModel",
                    "compile_mode": "compile" if compiled else "eager",
                    "seed": seed,
                    "model_dtype": "float32",
                    "type_names": symbols,
                    "r_max": cutoff,
                    "num_bessels": 8,
                    "polynomial_cutoff_p": 6,
                    "num_layers": layers,
                    "l_max": l_max,
                    "parity": True,
                    "num_features": features,
                    "radial_mlp_depth": 2,
                    "radial_mlp_width": 64,
                    "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                    "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
                    "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
                },
            },
            "global_options": {"allow_tf32": False},
        }
        (target / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        program = [sys.executable, "-c", "from nequip.scripts.train import main; main()"]
        return [*program, "-cp", str(target), "-cn", "config", f"hydra.run.dir={target}/hydra"]

    log = folder / "train.log"
    log.unlink(missing_ok=True)
    pilot = driving.watch(command("pilot", 9999), log, MARKS, epochs=2)
    epochs = driving.epochs_within(budget, pilot)
    watched = driving.watch(command("run", epochs), log, MARKS, seconds=budget)
    return {
        "about": f"NequIP, {features} features, {layers} layers, l = {l_max},"
        f" {'compiled, ' if compiled else ''}{epochs} epochs planned",
        "epochs": len(watched.epochs),
        "seconds": watched.seconds,
        "parameters": driving.count(_calculator(folder).model),
    }


def predict(output: str, frames: str) -> dict[str, Any]:
    """Energies and forces by the running average at the epoch that validated best."""
    return driving.predict(_calculator(Path(output)), frames)


def _calculator(folder: Path) -> NequIPCalculator:
    return NequIPCalculator._from_saved_model(folder / "run" / "best.ckpt", device="cpu")


if __name__ == "__main__":
    driving.run({"throughput": throughput, "step": step, "train": train, "predict": predict})
