"""Energies and forces that cannot be right, or are far from all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mdlearn.atoms import Frame
from mdlearn.doctor import yardsticks
from mdlearn.doctor.findings import Finding, Severity, about
from mdlearn.doctor.fingerprints import groups
from mdlearn.doctor.survey import Floats, Survey

LARGE_FORCE = 100.0
"""eV/Å."""


def judge_energies(seen: Survey) -> Iterator[Finding]:
    """Energies that are zero, all the same, or far from all others."""
    atoms = seen.atoms
    several = np.flatnonzero((atoms > 1) & np.isfinite(seen.energy))
    zero = several[seen.energy[several] == 0.0]
    if len(zero):
        yield about(
            "zero-energy",
            "refuse",
            "the energy is exactly zero, as if it had never been computed",
            "remove the frames, or name the right key with --energy-key",
            seen.pick(zero),
        )
    for members in groups([seen.kinds[index] for index in several]):
        group = several[members]
        same = np.ptp(seen.energy[group]) == 0.0
        differ = len(group) > 2 and np.ptp([seen.prints[n] for n in group], axis=0).max() > 0.05
        if same and differ and seen.energy[group[0]] != 0.0:
            yield about(
                "constant-energy",
                "refuse",
                f"different structures all have the energy {seen.energy[group[0]]:.6g} eV",
                "name the key of their own energies with --energy-key",
                seen.pick(group),
            )
    if len(several) < 20:
        return
    species = sorted({z for index in several for z in seen.numbers[index].tolist()})
    n = atoms[several]
    counts = seen.counts(species)[several] / n[:, None]
    per_atom = seen.energy[several] / n
    residual = per_atom - counts @ _robust_fit(counts, per_atom)
    low, middle, high = np.percentile(residual, (5, 50, 95))
    sigma = max((high - low) / 3.29, 1e-3)  # 90 % of a normal distribution span 3.29 sigma
    far = several[np.abs(residual - middle) > 10 * sigma]
    if len(far):
        worst = np.abs(residual - middle).max()
        yield about(
            "energy-outliers",
            "warn",
            f"energies more than 10 sigma (of {1000 * sigma:.3g} meV/atom) from what their"
            f" composition lets expect; the farthest by {worst:.3g} eV/atom",
            "look whether these calculations converged; remove them if not",
            seen.pick(far),
        )
    medians, widths = {}, {}
    for part in np.unique(seen.split[several]).tolist():
        low, medians[part], high = np.percentile(residual[seen.split[several] == part], (5, 50, 95))
        widths[part] = (high - low) / 3.29
    for part, median in medians.items():
        if part and 0 in medians and abs(median - medians[0]) > max(1.0, 10 * widths[0]):
            yield about(
                "split-offset",
                "warn",
                f"energies in {seen.splits[part]} are {median - medians[0]:+.3g} eV/atom from those"
                f" in {seen.splits[0]}",
                "check that both are of the same level of theory, pseudopotentials and units",
            )


def _robust_fit(counts: Floats, energies: Floats) -> Floats:
    """Least squares that a few outliers cannot move: fitted again without the farthest."""
    keep = np.ones(len(energies), bool)
    solution: Floats = np.zeros(counts.shape[1])
    for _ in range(5):
        solution = np.linalg.lstsq(counts[keep], energies[keep])[0].astype(np.float64)
        apart = np.abs(energies - counts @ solution)
        keep = apart <= max(float(np.percentile(apart, 90)), 1e-9)
    return solution


def judge_forces(seen: Survey) -> Iterator[Finding]:
    """Forces that are very large, or do not balance."""
    large = np.flatnonzero(seen.largest > LARGE_FORCE)
    if len(large):
        yield about(
            "large-forces",
            "warn",
            f"forces above {LARGE_FORCE:g} eV/Å, up to {np.nanmax(seen.largest):.3g}",
            "remove these frames unless they were meant; they outweigh all others in the loss",
            seen.pick(large),
        )
    usable = (seen.atoms > 1) & (seen.rms > 1e-4)
    if not usable.any():
        return
    usual = float(np.percentile(seen.largest[usable], 90))
    far = np.flatnonzero(usable & (seen.largest > 10 * usual) & (seen.largest <= LARGE_FORCE))
    if len(far):
        yield about(
            "force-outliers",
            "warn",
            f"forces ten times as large as nearly all others (90 % are below {usual:.3g} eV/Å)",
            "look whether these calculations converged; remove them if not",
            seen.pick(far),
        )
    # Errors of single atoms add up like their square root; forces of nothing at all give one.
    net = seen.net / (seen.rms * np.sqrt(3.0 * seen.atoms) + 1e-12)
    uneven = np.flatnonzero(usable & (seen.net / seen.atoms > 1e-3))
    if len(uneven):
        per_atom = float(np.median(seen.net[uneven] / seen.atoms[uneven]))
        bad = float(np.median(net[usable]))
        severity: Severity = "refuse" if bad > 0.3 else "warn" if bad > 0.03 else "note"
        yield about(
            "net-force",
            severity,
            f"forces do not sum to zero: {1000 * per_atom:.3g} meV/Å per atom, which no model"
            " without an outer field can learn",
            "check that no atom or constraint is missing, and the grid of the calculation",
            seen.pick(uneven),
        )
    turning = np.flatnonzero(usable & (seen.torque > 0.02))
    if len(turning):
        bad = float(np.median(seen.torque[usable & np.isfinite(seen.torque)]))
        yield about(
            "net-torque",
            "refuse" if bad > 0.15 else "warn",
            "forces turn the molecule as a whole, by up to"
            f" {100 * float(np.nanmax(seen.torque[turning])):.0f} % of what they could: they belong"
            " to other positions, another orientation or another order of atoms",
            "take positions and forces from the same frame of reference (not one in the standard"
            " orientation of the program)",
            seen.pick(turning),
        )


def judge_zero_forces(seen: Survey, splits: Mapping[str, Sequence[Frame]]) -> Iterator[Finding]:
    """Forces of exactly zero where no symmetry asks for it."""
    frames = list(splits.values())
    suspects = np.flatnonzero((seen.atoms > 1) & (seen.forceless > 0))
    found = []
    for index in suspects[:1000].tolist():
        # A relaxed structure written with few digits has small forces throughout.
        if seen.forceless[index] < seen.atoms[index] and seen.rms[index] < 0.05:
            continue
        frame = frames[seen.split[index]][int(seen.place[index])]
        if _pulled(frame)[frame.labels.forces.numpy().any(axis=1) == 0].any():
            found.append(index)
    if found:
        whole = sum(seen.forceless[index] == seen.atoms[index] for index in found)
        more = f" (and {len(suspects) - 1000} not looked at)" if len(suspects) > 1000 else ""
        yield about(
            "zero-forces",
            "refuse",
            f"forces of exactly zero where no symmetry makes them so; in {whole} frames on all"
            f" atoms{more}",
            "take the raw forces of the calculation (ASE's get_forces(apply_constraint=False));"
            " remove the frames if there are none",
            [seen.names[index] for index in found],
        )


def _pulled(frame: Frame) -> NDArray[np.bool_]:
    """Atoms whose neighbors are not arranged symmetrically about them, (n_atoms,)."""
    i, j, r = yardsticks.pairs(frame, 5.0)
    z = frame.system.numbers.numpy()
    d = np.linalg.norm(r, axis=1, keepdims=True)
    pull = np.zeros((len(z), z.max() + 1, 3))
    np.add.at(pull, (i, z[j]), r / d * np.exp(-d))
    unbalanced: NDArray[np.bool_] = np.linalg.norm(pull, axis=2).max(1) > 1e-3
    return unbalanced
