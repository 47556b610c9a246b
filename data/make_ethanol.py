"""Make ``ethanol.xyz``: ethanol in the gas phase, sampled by GFN2-xTB, labelled by PBE.

Langevin dynamics on the GFN2-xTB surface (tblite) from both conformers at several temperatures
gives the geometries; PySCF gives PBE/def2-SVP energies and forces for them. GFN2-xTB puts trans
some 70 meV above gauche, far more than PBE does, and would leave it soon: the runs from trans
carry a bias on the torsion. Every result is cached as it comes, so a stopped run goes on where
it was.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.mixing import SumCalculator
from ase.geometry import get_dihedrals_derivatives
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from common import Cache, attach_label, drop_near_duplicates, run_cached, write_frames

HERE = Path(__file__).resolve().parent
TEMPERATURES_K = (300, 400, 500, 600, 700, 800)
# Torsion (degrees) a run starts from: trans, and the two mirror images of gauche.
CONFORMERS = {"trans": 180.0, "gauche+": 60.0, "gauche-": -60.0}
RUNS_PER_CONFORMER = 2
FRAMES_PER_RUN = 15
TIMESTEP_FS = 0.5
EQUILIBRATION_FS = 500.0
SPACING_FS = 100.0
FRICTION_PER_FS = 0.02
DUPLICATE_RMS_A = 0.02
SEED = 20240
TORSION = (0, 1, 2, 3)  # C-C-O-H in ASE's molecule
TRANS_BIAS_EV = 0.2
# Unpaired electrons of the ground states.
ATOMIC_SPINS = {"H": 1, "C": 2, "O": 2}
GRID_LEVEL = 3


class TransBias(Calculator):
    """The potential ``TRANS_BIAS_EV (1 + cos(torsion)) / 2``, lowest at trans."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: tuple[str, ...] = ("energy",),
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``results`` for the atoms."""
        super().calculate(atoms, properties, system_changes)
        torsion = np.radians(self.atoms.get_dihedral(*TORSION))
        p = self.atoms.positions
        bonds = [[p[b] - p[a]] for a, b in itertools.pairwise(TORSION)]
        slopes = np.radians(get_dihedrals_derivatives(*bonds)[0])
        forces = np.zeros_like(p)
        forces[list(TORSION)] = 0.5 * TRANS_BIAS_EV * np.sin(torsion) * slopes
        energy = 0.5 * TRANS_BIAS_EV * (1 + np.cos(torsion))
        self.results = {"energy": energy, "forces": forces}


def sample_run(temperature: float, dihedral_deg: float, seed: int) -> dict:
    """Positions (Å) of one Langevin run at a temperature (K), one each ``SPACING_FS``."""
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = molecule("CH3CH2OH")
    atoms.set_dihedral(*TORSION, dihedral_deg, indices=[TORSION[-1]])
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    if dihedral_deg == CONFORMERS["trans"]:
        atoms.calc = SumCalculator([atoms.calc, TransBias()])
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        TIMESTEP_FS * units.fs,
        temperature_K=temperature,
        friction=FRICTION_PER_FS / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(round(EQUILIBRATION_FS / TIMESTEP_FS))
    frames = []
    for _ in range(FRAMES_PER_RUN):
        dynamics.run(round(SPACING_FS / TIMESTEP_FS))
        # Rounded to what the file keeps, so that the labels belong to the stored positions.
        centred = atoms.positions - atoms.get_center_of_mass()
        frames.append(np.round(centred, 8).tolist())
    return {"frames": frames}


def sample(cache: Cache, workers: int) -> list[Atoms]:
    """All runs' frames, shuffled, without near-duplicates."""
    settings = [
        (temperature, name, repeat)
        for temperature in TEMPERATURES_K
        for name in CONFORMERS
        for repeat in range(RUNS_PER_CONFORMER)
    ]
    tasks = {
        f"{temperature}K_{name}_{repeat}": (temperature, CONFORMERS[name], SEED + number)
        for number, (temperature, name, repeat) in enumerate(settings)
    }
    run_cached(cache, sample_run, tasks, workers)
    frames = []
    for run, (temperature, *_) in tasks.items():
        for number, positions in enumerate(cache.results[run]["frames"]):
            atoms = Atoms(molecule("CH3CH2OH").symbols, positions=positions)
            atoms.info["config_type"] = f"ethanol_{temperature}K"
            atoms.info["temperature_K"] = temperature
            atoms.info["frame"] = f"{run}_{number:02d}"
            frames.append(atoms)
    # Shuffled before labelling: any head of the file is then a fair sample of the whole.
    order = np.random.default_rng(SEED).permutation(len(frames))
    return drop_near_duplicates([frames[i] for i in order], DUPLICATE_RMS_A)


def label(symbols: list[str], positions: list, spin: int = 0) -> dict:
    """PBE/def2-SVP energy (eV) and forces (eV/Å) at positions in Å, with fitted densities.

    The response of the integration grid is in the forces, which makes them the derivative of
    the computed energy and lets them add up to nothing.
    """
    from pyscf import dft, gto

    # ASE's constants both ways; PySCF's own differ in the ninth digit.
    positions_bohr = np.asarray(positions) / units.Bohr
    atom = list(zip(symbols, positions_bohr.tolist(), strict=True))
    mol = gto.M(atom=atom, unit="Bohr", basis="def2-svp", spin=spin, verbose=0)
    calculation = (dft.UKS(mol) if spin else dft.RKS(mol)).density_fit(auxbasis="def2-svp-jkfit")
    calculation.xc = "pbe"
    calculation.conv_check = False
    calculation.with_df.build()  # otherwise its integrals are computed anew in each iteration
    if spin:  # plain iterations wander among the atoms' degenerate p orbitals
        calculation = calculation.newton()
    # The first iterations on a coarse grid: quicker, and the result is that of the last grid.
    guess = None
    for level, tolerance, gradient in ((1, 1e-4, 1e-2), (GRID_LEVEL, 1e-10, 1e-5)):
        calculation.grids.reset()
        calculation.grids.level = level
        calculation.conv_tol, calculation.conv_tol_grad = tolerance, gradient
        energy = calculation.kernel(guess) * units.Hartree
        guess = calculation.make_rdm1()
    if not calculation.converged:
        raise RuntimeError(f"SCF did not converge for {symbols} at {positions}")
    if len(symbols) == 1:
        return {"energy": energy, "forces": [[0.0, 0.0, 0.0]]}
    gradients = calculation.nuc_grad_method()
    gradients.grid_response = True
    forces = -gradients.kernel() * units.Hartree / units.Bohr
    return {"energy": energy, "forces": forces.tolist()}


def isolated_atoms(cache: Cache, workers: int) -> list[Atoms]:
    """Single-atom frames with their spin-polarised energies at the same level of theory."""
    tasks = {f"atom_{s}": ([s], [[0.0, 0.0, 0.0]], spin) for s, spin in ATOMIC_SPINS.items()}
    run_cached(cache, label, tasks, workers)
    frames = []
    for symbol in ATOMIC_SPINS:
        atoms = Atoms(symbol, positions=[[0.0, 0.0, 0.0]], info={"config_type": "isolated_atom"})
        frames.append(attach_label(atoms, cache.results[f"atom_{symbol}"]))
    return frames


def main() -> None:
    """Sample, label and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=520, help="frames to label")
    parser.add_argument("--workers", type=int, default=2, help="single-threaded processes")
    parser.add_argument("--work-dir", type=Path, default=HERE / "build", help="cache of results")
    parser.add_argument("--out-dir", type=Path, default=HERE, help="where the .xyz files go")
    parser.add_argument("--write-only", action="store_true", help="write what is labelled so far")
    args = parser.parse_args()
    labels = Cache(args.work_dir / "ethanol_labels.jsonl")
    frames = sample(Cache(args.work_dir / "ethanol_samples.jsonl"), args.workers)
    print(f"{len(frames)} distinct frames sampled", flush=True)
    frames = frames[: args.frames]
    tasks = {
        atoms.info["frame"]: (list(atoms.symbols), atoms.positions.tolist()) for atoms in frames
    }
    if not args.write_only:
        run_cached(labels, label, tasks, args.workers)
        write_frames(
            args.out_dir / "ethanol_isolated_atoms.xyz", isolated_atoms(labels, args.workers)
        )
    labelled = [
        attach_label(atoms, labels.results[atoms.info["frame"]])
        for atoms in frames
        if atoms.info["frame"] in labels.results
    ]
    write_frames(args.out_dir / "ethanol.xyz", labelled)


if __name__ == "__main__":
    main()
