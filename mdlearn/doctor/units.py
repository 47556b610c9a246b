"""Units and signs of labels that are not what they are read as, by the yardsticks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mdlearn.atoms import Frame
from mdlearn.doctor import yardsticks
from mdlearn.doctor.findings import Finding, about
from mdlearn.doctor.survey import Survey
from mdlearn.doctor.yardsticks import UNITS_OF_ENERGY, UNITS_OF_FORCES, nearest_unit
from mdlearn.labels import Keys

LARGEST_RATIO = 4.0
"""Within this factor, labels agree with the pair potential that they are compared with."""
CLEAR_ORDER = 0.7
"""Correlation of the shear with the prediction if its components are in another order than they
are read in, for this to be believed. What it leaves unexplained is less than half as much, too.
Molybdenum of mlearn has 0.99 and 0.24 with two components exchanged, and 0.24 and 0.99 without;
silicon 0.40 and 0.97."""


def judge_units(part: str, frames: Sequence[Frame], seen: Survey, keys: Keys) -> Iterator[Finding]:
    """Units and signs of a split, by the yardsticks."""
    own = seen.split == seen.splits.index(part)
    several = np.flatnonzero(own & (seen.atoms > 1))
    light = [
        index
        for index in several.tolist()
        if seen.numbers[index][-1] <= yardsticks.HEAVIEST_NONRELATIVISTIC
    ]
    if light:
        whole = [yardsticks.all_electron_energy(seen.numbers[index]) for index in light]
        factor = float(np.median(seen.energy[light] / np.array(whole)))
        unit = nearest_unit(factor, UNITS_OF_ENERGY, 1.05) if factor > 0.0 else None
        if unit:
            yield about(
                "energy-units",
                "refuse",
                f"{part}: the energies are those of all electrons in {unit}; they are read as eV",
                f"mdlearn data convert --energy-unit {unit}",
            )
    moving = np.flatnonzero(own & (seen.atoms > 1) & (seen.rms > 1e-3))
    if keys.forces is None or len(moving) < 8:
        return
    sample = yardsticks.sample(frames, seen.place[moving])
    yield from _bonds(part, sample)
    fit = yardsticks.fit_pairs(sample)
    if fit is not None and fit.explained > 0.3:
        yield from _against_fit(part, fit, seen, own)


def _bonds(part: str, sample: Sequence[Frame]) -> Iterator[Finding]:
    """Whether bonds to hydrogen are as stiff as everywhere."""
    bonds = yardsticks.hydrogen_bonds_of(sample)
    clear = {z: bond for z, bond in bonds.items() if abs(bond.correlation) > 0.8}
    if not clear:
        return
    z = max(clear, key=lambda each: clear[each].samples)
    factor = clear[z].stiffness / yardsticks.STIFFNESS[z]
    measured = (
        f"{part}: {chemical_symbols[z]}-H bonds would have a stiffness of"
        f" {clear[z].stiffness:.3g} eV/Å², where all have about {yardsticks.STIFFNESS[z]:.0f}"
    )
    if factor < 0.0:
        yield about(
            "forces-sign",
            "refuse",
            f"{part}: the forces stretch {chemical_symbols[z]}-H bonds that are too long: they are"
            " the gradient of the energy, not its negative",
            "mdlearn data convert --flip-forces",
        )
    elif not 0.6 < factor < 1.7:
        unit = nearest_unit(factor, UNITS_OF_FORCES, 1.4)
        sure = unit is not None and not 0.2 < factor < 5.0
        yield about(
            "forces-units",
            "refuse" if sure else "warn",
            f"{measured}; the forces look like {unit or 'no common unit'}, and are read as eV/Å",
            f"mdlearn data convert --forces-unit '{unit or '...'}'",
        )


def _against_fit(
    part: str, fit: yardsticks.PairFit, seen: Survey, own: NDArray[np.bool_]
) -> Iterator[Finding]:
    """Whether energies and stresses go as a pair potential says that was fitted to the forces."""
    if fit.energy is not None:
        r, ratio, count = fit.energy
        clear = 3.0 / np.sqrt(count)
        if r < -max(0.5, clear):
            yield about(
                "forces-sign",
                "refuse",
                f"{part}: energies rise where the forces lead (correlation {r:.2f}): the forces are"
                " the gradient of the energy, not its negative",
                "mdlearn data convert --flip-forces",
            )
        elif r > clear and not 1 / LARGEST_RATIO < ratio < LARGEST_RATIO:
            ratios = {f"energies in {name}": x for name, x in UNITS_OF_ENERGY.items()}
            ratios |= {f"forces in {name}": 1 / x for name, x in UNITS_OF_FORCES.items()}
            alike = [name for name, x in ratios.items() if abs(np.log(ratio / x)) < np.log(2.5)]
            sure = bool(alike) and not 1 / 8 < ratio < 8
            yield about(
                "energy-forces-units",
                "refuse" if sure else "warn",
                f"{part}: energies vary {ratio:.3g} times as much as the work of the forces"
                + (f"; that would be {' or '.join(alike)}" if alike else ""),
                "mdlearn data convert with --energy-unit or --forces-unit",
            )
        elif fit.explained > 0.8 and count >= 50 and abs(r) < 0.1:
            yield about(
                "unrelated-energies",
                "warn",
                f"{part}: energies have nothing to do with the forces (correlation {r:.2f})",
                "check that energies and structures are in the same order",
            )
    if fit.stress is None:
        return
    r, ratio, _ = fit.stress
    if r < -0.5:
        yield about(
            "stress-sign",
            "refuse",
            f"{part}: stresses have the opposite sign of what the forces say (correlation {r:.2f});"
            " the sign of ASE is positive where the cell pulls inward",
            "mdlearn data convert --flip-stress",
        )
    if abs(r) > 0.5 and not 1 / LARGEST_RATIO < ratio < LARGEST_RATIO:
        volume = float(np.median(seen.volume[own & (seen.volume > 0)]))
        units = yardsticks.UNITS_OF_STRESS | {"eV (virial)": volume}
        unit = nearest_unit(ratio, units, 2.5)
        yield about(
            "stress-units",
            "refuse" if unit else "warn",
            f"{part}: stresses are {ratio:.3g} times what the forces say"
            + (f"; they look like {unit}" if unit else ""),
            f"mdlearn data convert --stress-unit '{unit or '...'}'",
        )
    order = fit.shear
    if order is None or order.correlation < CLEAR_ORDER:
        return
    # A pair potential may explain it all.
    unexplained = [1.0 + 1e-6 - each**2 for each in (order.as_read, order.correlation)]
    gain = np.log(unexplained[0] / unexplained[1])
    if gain > max(np.log(2.0), 20.0 / order.samples):
        names = ", ".join(order.names)
        yield about(
            "stress-order",
            "refuse",
            f"{part}: the last three of the six components of the stress go with what the forces"
            f" say (correlation {order.correlation:.2f}) if they are {names}, and not"
            f" ({order.as_read:.2f}) as yz, xz, xy, the order of ASE",
            "mdlearn data convert --stress-order xx,yy,zz," + ",".join(order.names),
        )
