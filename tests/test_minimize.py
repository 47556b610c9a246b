"""Minimization: the minima are those of ASE and of lattice sums, by whatever way."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ase
import ase.build
import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE2
from checks import CUTOFF, REFERENCE_ENERGIES, SPECIES, crystal, molecule, random_schnet
from oracles import LennardJones
from scipy.optimize import brentq
from torch import Tensor, nn

from mdlearn import MDLearnCalculator
from mdlearn import minimize as loop
from mdlearn.atoms import to_system
from mdlearn.errors import UnstableError
from mdlearn.integrators.fire import CellChange, Descent, fire
from mdlearn.minimize import minimize
from mdlearn.neighbors import Neighbors, build
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.system import System, concatenate
from mdlearn.units import GPa


def lennard_jones(cutoff: float = CUTOFF) -> LennardJones:
    return LennardJones(SPECIES, REFERENCE_ENERGIES, cutoff=cutoff).double()


def disturbed(path: Path, pbc: bool) -> ase.Atoms:
    """Eight atoms, packed densely, near a minimum: all ways lead down to the same one."""
    atoms = ase.build.bulk("C", "fcc", a=1.7, cubic=True) * (2, 1, 1)
    atoms.numbers = [1, 6, 8, 6, 1, 8, 6, 1]
    if not pbc:
        atoms = ase.Atoms(atoms.numbers, atoms.positions)
    network, cell = load_model(path, torch.float64).network, "full" if pbc else "none"
    found = minimize(network, to_system(atoms), fmax=1e-2, steps=1000, cell=cell)
    assert found.converged
    strain = np.array([[1.02, 0.01, 0.0], [0.01, 0.99, 0.0], [0.0, 0.0, 1.02]])
    atoms.set_cell(found.system.cell[0].numpy() @ strain)
    atoms.positions = found.system.positions.numpy() @ strain
    atoms.rattle(0.02, seed=7)
    return atoms


@pytest.mark.parametrize("optimizer", [BFGS, FIRE2])
def test_molecule_ends_where_ase_ends(lennard_jones_path: Path, optimizer: type) -> None:
    atoms = disturbed(lennard_jones_path, False)
    network = load_model(lennard_jones_path, torch.float64).network
    found = minimize(network, to_system(atoms), fmax=1e-6, steps=5000)
    assert found.converged
    assert float(found.first.forces.norm(dim=1).max()) > 0.1
    atoms.calc = MDLearnCalculator(lennard_jones_path, precision="float64")
    assert optimizer(atoms, logfile=None).run(fmax=1e-6, steps=5000)
    assert float(found.evaluation.energy) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    ours, theirs = found.system.positions, torch.tensor(atoms.positions)
    assert (torch.cdist(ours, ours) - torch.cdist(theirs, theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("pressure", [0.0, 5.0 * GPa])
def test_cell_ends_where_ase_ends(lennard_jones_path: Path, pressure: float) -> None:
    atoms = disturbed(lennard_jones_path, True)
    before = atoms.get_volume()
    network = load_model(lennard_jones_path, torch.float64).network
    start = to_system(atoms)
    found = minimize(network, start, fmax=1e-6, steps=5000, cell="full", pressure=pressure)
    assert found.converged
    atoms.calc = MDLearnCalculator(lennard_jones_path, precision="float64")
    filtered = FrechetCellFilter(atoms, scalar_pressure=pressure)
    assert BFGS(filtered, logfile=None).run(fmax=1e-6, steps=5000)
    expected = atoms.get_potential_energy() + pressure * atoms.get_volume()
    volume = float(torch.linalg.det(found.system.cell[0]))
    assert volume == pytest.approx(atoms.get_volume(), rel=1e-6)
    assert abs(volume / before - 1.0) > 0.01
    assert float(found.evaluation.energy) + pressure * volume == pytest.approx(expected, abs=1e-8)
    metric = found.system.cell[0] @ found.system.cell[0].T
    assert (metric - torch.tensor(atoms.cell.array @ atoms.cell.array.T)).abs().max() < 1e-4
    stress = found.evaluation.stress[0] + pressure * torch.eye(3, dtype=torch.float64)
    assert stress.abs().max() <= 1e-6 / loop.AREA


def lattice_energy(a: float, potential: LennardJones) -> float:
    """Energy per atom of a face-centered cubic crystal, summed over its sites."""
    span = range(-12, 13)
    sites = np.array([s for s in itertools.product(span, repeat=3) if sum(s) % 2 == 0 and any(s)])
    d = 0.5 * a * np.linalg.norm(sites, axis=1)
    u = d[d < potential.cutoff] / potential.cutoff
    x = (potential.sigma / (u * potential.cutoff)) ** 6
    smooth = 1.0 - 28.0 * u**6 + 48.0 * u**7 - 21.0 * u**8
    return float(0.5 * (4.0 * potential.epsilon.item() * (x * x - x) * smooth).sum())


@pytest.mark.parametrize("cell", ["isotropic", "full"])
@pytest.mark.parametrize("gigapascals", [0.0, 8.0])
def test_lennard_jones_crystal_has_its_lattice_constant(
    cell: CellChange, gigapascals: float
) -> None:
    potential, pressure = lennard_jones(), gigapascals * GPa

    def excess(a: float, h: float = 1e-5) -> float:
        """The derivative of the enthalpy of an atom by the lattice constant."""
        work = lattice_energy(a + h, potential) - lattice_energy(a - h, potential)
        return work / (2.0 * h) + pressure * 0.75 * a**2

    a = brentq(excess, 1.5, 1.9, xtol=1e-12)
    atoms = ase.build.bulk("C", "fcc", a=1.04 * a, cubic=True) * (2, 1, 1)
    atoms.rattle(0.03, seed=4)
    system = to_system(atoms)
    found = minimize(potential, system, fmax=1e-7, steps=3000, cell=cell, pressure=pressure)
    assert found.converged
    expected = torch.diag(torch.tensor([2.0 * a, a, a], dtype=torch.float64))
    assert (found.system.cell[0] - expected).abs().max() < 1e-5
    energy = 8 * (REFERENCE_ENERGIES[6] + lattice_energy(a, potential))
    assert float(found.evaluation.energy) == pytest.approx(energy, abs=1e-8)


def test_isotropic_keeps_the_shape(lennard_jones_path: Path) -> None:
    system = to_system(disturbed(lennard_jones_path, True))
    network = load_model(lennard_jones_path, torch.float64).network
    found = minimize(network, system, fmax=1e-4, steps=3000, cell="isotropic")
    assert found.converged
    stretch = torch.linalg.solve(system.cell[0], found.system.cell[0])
    assert abs(float(stretch[0, 0]) - 1.0) > 0.003
    assert (stretch - stretch[0, 0] * torch.eye(3, dtype=torch.float64)).abs().max() < 1e-12
    left = found.evaluation.stress[0]
    assert abs(float(torch.trace(left))) / 3.0 < 1e-4 / loop.AREA < float(left.abs().max())


@pytest.mark.parametrize("cell", ["none", "full"])
def test_atoms_that_are_held_only_move_with_the_cell(
    cell: CellChange, lennard_jones_path: Path
) -> None:
    atoms = disturbed(lennard_jones_path, True)
    held = [0, 3, 4]
    atoms.set_constraint(FixAtoms(held))
    mobile = torch.ones(8, 1, dtype=torch.float64)
    mobile[held] = 0.0
    system, network = to_system(atoms), load_model(lennard_jones_path, torch.float64).network
    found = minimize(network, system, fmax=1e-6, steps=5000, mobile=mobile, cell=cell)
    assert found.converged
    before, after = (
        each.positions @ torch.linalg.inv(each.cell[0]) for each in (system, found.system)
    )
    assert (after - before)[held].abs().max() < 1e-12
    assert (after - before)[[1, 2, 5]].abs().max() > 1e-3
    atoms.calc = MDLearnCalculator(lennard_jones_path, precision="float64")
    seen = atoms if cell == "none" else FrechetCellFilter(atoms)
    assert BFGS(seen, logfile=None).run(fmax=1e-6, steps=5000)
    expected = atoms.get_potential_energy()
    assert float(found.evaluation.energy) == pytest.approx(expected, abs=1e-8)


def test_lists_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The descent is that with a new list, as wide as need be, wherever forces are needed."""
    potential, system = lennard_jones(), to_system(crystal())
    rebuilds = 0

    def counted(system: System, cutoff: float, *rest: Any) -> Neighbors:
        nonlocal rebuilds
        rebuilds += 1
        return build(system, cutoff, *rest)

    monkeypatch.setattr(loop, "build", counted)
    found = minimize(potential, system, fmax=1e-9, steps=200, cell="full")
    assert 3 < rebuilds < 100

    minimizer = fire(0.0, "full")
    state = lowest = minimizer.init(system, lambda s: evaluate(potential, s, build(s, CUTOFF)))
    for _ in range(200):
        state = minimizer.step(state, lambda s: evaluate(potential, s, build(s, CUTOFF)))
        lowest = min(state, lowest, key=lambda each: float(each.evaluation.energy))
    assert (found.system.positions - lowest.system.positions).abs().max() < 1e-8
    assert (found.system.cell - lowest.system.cell).abs().max() < 1e-8


def test_systems_of_a_batch_do_not_see_each_other() -> None:
    potential, minimizer = lennard_jones(), fire(2.0 * GPa, "full")
    parts = [to_system(crystal()), to_system(crystal(seed=5) * (2, 1, 1))]
    ends = []
    for system in (*parts, concatenate(parts)):
        state = minimizer.init(system, lambda s: evaluate(potential, s, build(s, CUTOFF)))
        for _ in range(100):
            state = minimizer.step(state, lambda s: evaluate(potential, s, build(s, CUTOFF)))
        ends.append(state)
    first, second, both = ends
    assert first.downhill != second.downhill  # they have gone their own ways
    for alone, chosen in ((first, slice(0, 8)), (second, slice(8, 24))):
        assert (both.system.positions[chosen] - alone.system.positions).abs().max() < 1e-8
    cells = torch.cat([first.system.cell, second.system.cell])
    assert (both.system.cell - cells).abs().max() < 1e-8


def test_untangles_what_is_far_too_close() -> None:
    atoms = molecule()
    atoms.positions[4] = atoms.positions[0] + [0.25, 0.0, 0.0]
    found = minimize(lennard_jones(), to_system(atoms), fmax=1e-3, steps=2000)
    assert float(found.first.forces.norm(dim=1).max()) > 1e4
    assert found.converged
    assert torch.cdist(found.system.positions, found.system.positions)[4, 0] > 1.0


def test_best_point_comes_back_from_a_descent_that_was_stopped() -> None:
    energies = []
    system = to_system(molecule())

    def observe(step: int, descent: Descent) -> bool:
        energies.append(float(descent.evaluation.energy))
        return step < 37

    found = minimize(random_schnet(scale=0.5), system, fmax=1e-12, steps=500, observe=observe)
    assert (found.converged, found.steps, len(energies)) == (False, 37, 37)
    assert float(found.evaluation.energy) == min(energies)
    nothing = minimize(random_schnet(scale=0.5), system, fmax=1e-12, steps=0)
    assert torch.equal(nothing.system.positions, system.positions)
    assert minimize(random_schnet(scale=0.5), system, fmax=1e3, steps=0).converged


def test_cell_without_a_minimum_is_an_error() -> None:
    system = to_system(crystal())
    with pytest.raises(UnstableError, match=r"volume of the cell has changed by a factor of 3\."):
        minimize(lennard_jones(), system, fmax=1e-4, steps=5000, cell="full", pressure=-500 * GPa)


def test_forces_that_are_no_numbers_are_an_error() -> None:
    class Broken(nn.Module):
        cutoff, species = CUTOFF, SPECIES

        def forward(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
            return torch.log(r[:, 0, 0] - r[:, 0, 0].detach() - 1.0)

    with pytest.raises(UnstableError, match="step 0: the energy is not a finite number"):
        minimize(Broken(), to_system(molecule()), fmax=0.1, steps=5)
