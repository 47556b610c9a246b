"""Make ``water.xyz``: 32 periodic water molecules, sampled and labelled by GFN1-xTB.

A flexible classical model (``classical_water.py``) melts and equilibrates each start at its
temperature and cell; Langevin dynamics on the GFN1-xTB surface (tblite) follows. Most frames come
from many short such runs, some from one longer run per temperature. Results are cached as they
come, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from classical_water import ClassicalWater
from common import Cache, attach_label, drop_near_duplicates, run_cached, write_frames

HERE = Path(__file__).resolve().parent
TEMPERATURES_K = (280, 310, 340, 370, 400)
DENSITY_G_PER_CM3 = 0.997
N_MOLECULES = 32
# Short runs per temperature with each kind of cell.
SHORT_RUNS = {"none": 5, "volume": 7, "general": 7}
MAX_LINEAR_STRAIN = {"none": 0.0, "volume": 0.02, "general": 0.03}
SHORT_STEPS, SHORT_FRAMES = 8, 1
LONG_STEPS, LONG_FRAMES = 12, 6
# Heavier hydrogen allows a longer step and leaves the distribution of positions as it is.
HYDROGEN_MASS_U = 4.0
CLASSICAL_TIMESTEP_FS = 1.0
CLASSICAL_FRICTION_PER_FS = 0.01
XTB_TIMESTEP_FS = 1.5
XTB_FRICTION_PER_FS = 0.05
MELT_K, MELT_STEPS, EQUILIBRATION_STEPS = 600.0, 500, 1000
# Of sorted distances; frames from different starts differ by 0.03 Å and more.
DUPLICATE_RMS_A = 0.005
SEED = 20250
MULTIPLICITIES = {"H": 2, "O": 3}
LABEL_ACCURACY = 0.1


def start_box(strain: np.ndarray, rng: np.random.Generator) -> Atoms:
    """Randomly turned molecules, O first in each, on a face-centred lattice that is strained."""
    mass_g = N_MOLECULES * molecule("H2O").get_masses().sum() / units.mol
    length = (mass_g / DENSITY_G_PER_CM3) ** (1 / 3) * 1e8
    sites = bulk("X", "fcc", a=length / 2, cubic=True).repeat(2)
    sites.set_cell(sites.cell @ (np.eye(3) + strain), scale_atoms=True)
    box = Atoms(cell=sites.cell, pbc=True)
    for site in sites.positions:
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.translate(site)
        box += water
    box.set_masses(np.where(box.numbers == 1, HYDROGEN_MASS_U, box.get_masses()))
    return box


def draw_strain(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A symmetric strain: none, the same along all axes, or general with shear."""
    largest = MAX_LINEAR_STRAIN[kind]
    if kind == "volume":
        return np.eye(3) * rng.uniform(-largest, largest)
    strain = rng.uniform(-largest, largest, (3, 3))
    return np.triu(strain) + np.triu(strain, 1).T


def thermostat(
    atoms: Atoms, timestep_fs: float, temperature: float, friction_per_fs: float, rng: object
) -> Langevin:
    """Langevin dynamics at a temperature (K) with velocities drawn afresh."""
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    return Langevin(
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature,
        friction=friction_per_fs / units.fs,
        fixcm=False,
        rng=rng,
    )


def sample_run(temperature: float, kind: str, steps: int, n_frames: int, seed: int) -> dict:
    """One start's cell and positions (Å) at a temperature (K), one frame every ``steps`` steps."""
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = start_box(draw_strain(kind, rng), rng)
    atoms.calc = ClassicalWater()
    for target, n_steps in ((MELT_K, MELT_STEPS), (temperature, EQUILIBRATION_STEPS)):
        step, friction = CLASSICAL_TIMESTEP_FS, CLASSICAL_FRICTION_PER_FS
        thermostat(atoms, step, target, friction, rng).run(n_steps)
    atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
    dynamics = thermostat(atoms, XTB_TIMESTEP_FS, temperature, XTB_FRICTION_PER_FS, rng)
    atoms.set_cell(np.round(atoms.cell.array, 8))
    frames = []
    for _ in range(n_frames):
        dynamics.run(steps)
        # Rounded to what the file keeps, so that the labels belong to the stored positions.
        frames.append(np.round(atoms.positions, 8).tolist())
    return {"cell": atoms.cell.tolist(), "frames": frames}


def sample(cache: Cache, workers: int) -> list[Atoms]:
    """All runs' frames, shuffled, without near-duplicates."""
    settings = [(t, "none", "long", LONG_STEPS, LONG_FRAMES) for t in TEMPERATURES_K]
    for kind, count in SHORT_RUNS.items():
        for repeat in range(count):
            settings += [
                (t, kind, f"{kind}_{repeat}", SHORT_STEPS, SHORT_FRAMES) for t in TEMPERATURES_K
            ]
    tasks = {
        f"{temperature}K_{name}": (temperature, kind, steps, n_frames, SEED + number)
        for number, (temperature, kind, name, steps, n_frames) in enumerate(settings)
    }
    run_cached(cache, sample_run, tasks, workers)
    frames = []
    for run, (temperature, kind, *_) in tasks.items():
        result = cache.results[run]
        for number, positions in enumerate(result["frames"]):
            atoms = Atoms(["O", "H", "H"] * N_MOLECULES, positions, cell=result["cell"], pbc=True)
            atoms.info["config_type"] = f"water_{temperature}K"
            atoms.info["temperature_K"] = temperature
            atoms.info["frame"] = f"{run}_{number:02d}"
            atoms.info["strain"] = kind
            frames.append(atoms)
    order = np.random.default_rng(SEED).permutation(len(frames))
    return drop_near_duplicates([frames[i] for i in order], DUPLICATE_RMS_A)


def label(
    symbols: list[str], positions: list, cell: list | None = None, multiplicity: int = 1
) -> dict:
    """GFN1-xTB energy (eV), forces (eV/Å) and, for periodic cells, stress (eV/Å^3)."""
    from tblite.ase import TBLite

    atoms = Atoms(symbols, positions=positions, cell=cell, pbc=cell is not None)
    atoms.calc = TBLite(
        method="GFN1-xTB", multiplicity=multiplicity, accuracy=LABEL_ACCURACY, verbosity=0
    )
    result = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist()}
    if cell is not None:
        result["stress"] = atoms.get_stress().tolist()
    return result


def isolated_atoms(cache: Cache, workers: int) -> list[Atoms]:
    """Single-atom frames with their energies in the ground state's multiplicity."""
    origin = [[0.0, 0.0, 0.0]]
    tasks = {f"atom_{s}": ([s], origin, None, m) for s, m in MULTIPLICITIES.items()}
    run_cached(cache, label, tasks, workers)
    frames = []
    for symbol in MULTIPLICITIES:
        atoms = Atoms(symbol, positions=origin, info={"config_type": "isolated_atom"})
        frames.append(attach_label(atoms, cache.results[f"atom_{symbol}"]))
    return frames


def main() -> None:
    """Sample, label and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes")
    parser.add_argument("--work-dir", type=Path, default=HERE / "build", help="cache of results")
    parser.add_argument("--out-dir", type=Path, default=HERE, help="where the .xyz files go")
    args = parser.parse_args()
    labels = Cache(args.work_dir / "water_labels.jsonl")
    write_frames(args.out_dir / "water_isolated_atoms.xyz", isolated_atoms(labels, args.workers))
    frames = sample(Cache(args.work_dir / "water_samples.jsonl"), args.workers)
    print(f"{len(frames)} distinct frames sampled", flush=True)
    tasks = {
        atoms.info["frame"]: (
            list(atoms.symbols),
            atoms.positions.tolist(),
            atoms.cell.tolist(),
        )
        for atoms in frames
    }
    run_cached(labels, label, tasks, args.workers)
    labelled = [attach_label(atoms, labels.results[atoms.info["frame"]]) for atoms in frames]
    write_frames(args.out_dir / "water.xyz", labelled)


if __name__ == "__main__":
    main()
