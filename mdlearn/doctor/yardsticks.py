"""What labels must agree with if their units and signs are as assumed: three yardsticks.

- All electrons: the energy of all electrons of an atom follows from its number (Thomas and Fermi).
- Bonds to hydrogen: their stiffness is nearly the same in all molecules and liquids.
- A pair potential fitted to the forces alone: the energies and stresses it predicts go up and down
  with the labels. It is a crude potential, but units differ by much more than it errs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii
from numpy.typing import NDArray

from mdlearn.atoms import Frame
from mdlearn.labels import SIX, VOIGT
from mdlearn.neighbors import build, pair_vectors
from mdlearn.units import GPa, bohr, coulomb, kJ_per_mol

HARTREE = coulomb / bohr
"""One Hartree, e²/(4πε₀a₀), in eV."""
KCAL = 4.184 * kJ_per_mol
"""One kcal/mol in eV."""

STIFFNESS = {6: 32.0, 7: 43.0, 8: 45.0}
"""Slope of the force on H along its bond to C, N and O, eV/Å²; within a fifth, hot or cold."""
HEAVIEST_NONRELATIVISTIC = 18

_ATOMS = 4000
"""So many in the sample, about, that the pair potential is fitted to."""
_FUNCTIONS = 14
_CUTOFF = 5.0  # Å
_CHANNELS = 36


class Slope(NamedTuple):
    """How labels go with what they should be."""

    correlation: float
    ratio: float
    """Size of the labels' fluctuations over that of the prediction's."""
    samples: int


class Order(NamedTuple):
    """The order that the shear components of stresses seem to be in."""

    names: tuple[str, ...]
    """What stands where yz, xz and xy are read."""
    correlation: float
    """Between labels and prediction, in this order; without sign."""
    as_read: float
    """The same, in the order that is read."""
    samples: int


class PairFit(NamedTuple):
    """What a pair potential fitted to the forces says of the labels."""

    explained: float
    """Share of the squared forces that it explains."""
    energy: Slope | None
    stress: Slope | None
    shear: Order | None


class Bond(NamedTuple):
    """The bonds of hydrogen to one element."""

    samples: int
    stiffness: float
    """Minus the slope of the force along the bond against its length, eV/Å² if units are ours."""
    correlation: float


def all_electron_energy(numbers: NDArray[np.int64]) -> float:
    """Energy of all electrons of the atoms, eV; bonds change it by less than a percent.

    E = -0.768745 Z^(7/3) + Z²/2 - 0.269900 Z^(5/3) Hartree, the statistical atom with the
    corrections of Scott and of Schwinger (B.-G. Englert, Semiclassical Theory of Atoms, 1988).
    """
    z = numbers.astype(np.float64)
    atoms = -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.269900 * z ** (5 / 3)
    return float(HARTREE * atoms.sum())


def sample(
    frames: Sequence[Frame], usable: NDArray[np.int64], n_atoms: int = _ATOMS
) -> list[Frame]:
    """Frames from all over, of about so many atoms together, at least twenty if there are.

    Args:
        frames: to choose from; only what is chosen is read.
        usable: indices of those that may be chosen.
        n_atoms: in all.
    """
    chosen: list[Frame] = []
    total = 0
    # Shuffled: evenly spaced frames of an orderly file could all be of one sort.
    for index in np.random.default_rng(0).permutation(usable).tolist():
        if total > n_atoms and len(chosen) >= 20:
            break
        chosen.append(frames[index])
        total += len(chosen[-1].system.numbers)
    return chosen


def hydrogen_bonds_of(frames: Sequence[Frame]) -> dict[int, Bond]:
    """The covalent bonds of hydrogen to C, N and O, by atomic number."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    for frame in frames:
        i, j, r = pairs(frame, 1.5)
        z, forces = frame.system.numbers.numpy(), frame.labels.forces.numpy()
        d = np.linalg.norm(r, axis=1)
        for heavy in STIFFNESS:
            longest = 1.25 * (covalent_radii[1] + covalent_radii[heavy])
            of = (z[i] == 1) & (z[j] == heavy) & (d < longest)
            pull = -np.sum(forces[i[of]] * r[of], axis=1) / d[of]
            found.setdefault(heavy, []).append(np.stack([d[of], pull], 1))
    bonds = {}
    for heavy, parts in found.items():
        d, pull = np.concatenate(parts).T
        if len(d) >= 20 and d.std() > 1e-3 and pull.std() > 0.0:
            slope = float(np.polyfit(d, pull, 1)[0])
            bonds[heavy] = Bond(len(d), -slope, float(np.corrcoef(d, pull)[0, 1]))
    return bonds


def fit_pairs(frames: Sequence[Frame]) -> PairFit | None:
    """Fits a pair potential to the forces and compares energies and stresses with it.

    The energy is linear in the coefficients w: E = ½ Σ_ij Σ_b w_b(z_i, z_j) φ_b(r_ij). Energies
    are compared per atom, after the part that is linear in the composition is taken out of both.

    Args:
        frames: a sample, with forces.

    Returns:
        None where there are no forces to speak of, or too many elements.
    """
    species = sorted({z for frame in frames for z in frame.system.numbers.tolist()})
    n_channels = len(species) * (len(species) + 1) // 2
    if n_channels > _CHANNELS:
        return None
    channel = np.zeros((max(species) + 1, max(species) + 1), np.int64)
    for number, (a, b) in enumerate((a, b) for a in species for b in species if a <= b):
        channel[a, b] = channel[b, a] = number
    width = n_channels * _FUNCTIONS
    normal, right, total = np.zeros((width, width)), np.zeros(width), 0.0
    energies: list[float] = []
    compositions: list[list[int]] = []
    energy_rows: list[NDArray[np.float64]] = []
    stresses: list[NDArray[np.float64]] = []
    stress_rows: list[NDArray[np.float64]] = []
    for frame in frames:
        forces = frame.labels.forces.numpy().ravel()
        if not np.isfinite(forces).all():
            continue
        by_force, by_energy, by_strain = _design(frame, channel, n_channels)
        normal += by_force.T @ by_force
        right += by_force.T @ forces
        total += float(forces @ forces)
        z = frame.system.numbers.numpy()
        energies.append(float(frame.labels.energy[0]))
        compositions.append([int(np.count_nonzero(z == each)) for each in species])
        energy_rows.append(by_energy)
        stress = frame.labels.stress[0].numpy()
        if np.isfinite(stress).all():
            volume = abs(np.linalg.det(frame.system.cell[0].numpy()))
            stresses.append(stress[*SIX])
            stress_rows.append(by_strain / volume)
    if not energies or total < 1e-6 * sum(map(sum, compositions)):
        return None
    ridge = 1e-8 * np.trace(normal) / width
    w = np.linalg.solve(normal + ridge * np.eye(width), right)
    explained = float((2 * w @ right - w @ normal @ w) / total)

    counts = np.array(compositions, np.float64)
    n = counts.sum(1)
    both = np.stack([np.array(energies), np.array(energy_rows) @ w], 1) / n[:, None]
    residual = both - counts / n[:, None] @ np.linalg.lstsq(counts / n[:, None], both)[0]
    energy, stress_slope, shear = _slope(residual[:, 0], residual[:, 1]), None, None
    if len(stresses) >= 5:
        label, predicted = np.array(stresses), np.array(stress_rows) @ w  # (n_frames, 6)
        label, predicted = label - label.mean(0), predicted - predicted.mean(0)
        stress_slope = _slope(label.ravel(), predicted.ravel())
        shear = _order(label[:, 3:], predicted[:, 3:])
    return PairFit(explained, energy, stress_slope, shear)


def _order(label: NDArray[np.float64], predicted: NDArray[np.float64]) -> Order | None:
    """The order of (n_frames, 3) labels in which they go with what is predicted."""
    size = float(np.sqrt(np.sum(label**2) * np.sum(predicted**2)))
    if size < 1e-12:
        return None
    agreement = label.T @ predicted / size  # (3, 3), labels by rows
    sums = {each: abs(agreement[range(3), each].sum()) for each in permutations(range(3))}
    best = max(sums, key=lambda each: sums[each])
    names = tuple(VOIGT[3 + each] for each in best)
    return Order(names, float(sums[best]), float(sums[0, 1, 2]), label.size)


def _slope(label: NDArray[np.float64], predicted: NDArray[np.float64]) -> Slope | None:
    if len(label) < 8 or label.std() < 1e-12 or predicted.std() < 1e-12:
        return None
    ratio = float(label.std() / predicted.std())
    return Slope(float(np.corrcoef(label, predicted)[0, 1]), ratio, len(label))


def pairs(
    frame: Frame, cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Both halves of all pairs: first atom, second atom, and the vector between them, Å."""
    neighbors = build(frame.system, cutoff)
    i, slot = np.nonzero(neighbors.valid.numpy())
    r = pair_vectors(frame.system, neighbors).numpy()[i, slot]
    return i, neighbors.j.numpy()[i, slot], r


def _design(
    frame: Frame, channel: NDArray[np.int64], n_channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Forces (3 n_atoms, n), energy (n,) and virial (6, n) as functions of the coefficients."""
    i, j, r = pairs(frame, _CUTOFF)
    z = frame.system.numbers.numpy()
    n = len(z)
    d = np.linalg.norm(r, axis=1)
    unit = r / d[:, None]
    centers, step = np.linspace(0.7, _CUTOFF, _FUNCTIONS, retstep=True)
    x = (d[:, None] - centers) / step
    bump = np.exp(-0.5 * x**2)
    inside = 1.0 - (d[:, None] / _CUTOFF) ** 2
    value = bump * inside**3
    slope = -x / step * value - bump * 6.0 * d[:, None] / _CUTOFF**2 * inside**2

    kind = channel[z[i], z[j]]
    order = np.lexsort((kind, i))
    place = (i * n_channels + kind)[order]
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    by_force = np.zeros((n * n_channels, 3, _FUNCTIONS))
    by_energy = np.zeros((n_channels, _FUNCTIONS))
    by_strain = np.zeros((6, n_channels, _FUNCTIONS))
    if len(place):
        pulls = unit[order, :, None] * slope[order, None, :]  # along r, so towards the neighbor
        by_force[place[starts]] = np.add.reduceat(pulls, starts)
    virial = r[:, SIX[0]] * unit[:, SIX[1]]  # (n_pairs, 6)
    for each in np.unique(kind):
        of = kind == each
        by_energy[each] = 0.5 * value[of].sum(0)
        by_strain[:, each] = 0.5 * virial[of].T @ slope[of]
    forces = by_force.reshape(n, n_channels, 3, _FUNCTIONS).transpose(0, 2, 1, 3)
    return forces.reshape(3 * n, -1), by_energy.ravel(), by_strain.reshape(6, -1)


UNITS_OF_FORCES = {
    "kcal/mol/Å": 1 / KCAL,
    "kJ/mol/Å": 1 / kJ_per_mol,
    "kJ/mol/nm": 10 / kJ_per_mol,
    "Hartree/bohr": bohr / HARTREE,
    "Hartree/Å": 1 / HARTREE,
    "eV/bohr": bohr,
    "meV/Å": 1000.0,
}
"""How much larger the numbers are than in eV/Å."""
UNITS_OF_STRESS = {
    "GPa": 1 / GPa,
    "kbar": 10 / GPa,
    "bar": 1e4 / GPa,
    "Hartree/bohr³": bohr**3 / HARTREE,
}
"""How much larger the numbers are than in eV/Å³."""
UNITS_OF_ENERGY = {"Hartree": 1 / HARTREE, "kcal/mol": 1 / KCAL, "kJ/mol": 1 / kJ_per_mol}
"""How much larger the numbers are than in eV."""


def nearest_unit(factor: float, units: dict[str, float], within: float) -> str | None:
    """The unit that explains a factor best, if it does so within another factor."""
    name = min(units, key=lambda each: abs(np.log(factor / units[each])))
    return name if abs(np.log(factor / units[name])) <= np.log(within) else None
