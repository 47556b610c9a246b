"""Structures that are odd by themselves: compositions, periodicity, distances."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from mdlearn.doctor import yardsticks
from mdlearn.doctor.findings import Finding, about
from mdlearn.doctor.survey import Survey


def judge_compositions(seen: Survey) -> Iterator[Finding]:
    """Compositions, single atoms and periodicity."""
    atoms, species = seen.atoms, sorted({z for each in seen.numbers for z in each.tolist()})
    single = np.flatnonzero(atoms == 1)
    have = {
        z for part, z in zip(seen.split, seen.numbers, strict=True) if part == 0 for z in z.tolist()
    }
    have |= {int(seen.numbers[index][0]) for index in single.tolist()}
    missing = [n for n, z in enumerate(seen.numbers) if not have.issuperset(z.tolist())]
    if missing:
        symbols = ", ".join(chemical_symbols[z] for z in species if z not in have)
        yield about(
            "new-elements",
            "warn",
            f"{symbols}: in other splits, but not in {seen.splits[0]}",
            f"add frames with {symbols} to {seen.splits[0]}, or leave these out",
            [seen.names[n] for n in missing],
        )
    counts = seen.counts(species)[atoms > 1]
    free = len(species) - len({int(seen.numbers[index][0]) for index in single.tolist()})
    if len(counts) and free > 0 and np.linalg.matrix_rank(counts) < len(species):
        yield about(
            "composition-rank",
            "note",
            f"compositions determine {np.linalg.matrix_rank(counts)} of {len(species)} energies of"
            " isolated atoms; the others are shared out",
            "give --isolated-atoms if molecules will break or compositions will change",
        )
    if len(single):
        yield about(
            "single-atoms",
            "note",
            "frames of one atom give its energy and teach no forces",
            "nothing to do",
            seen.pick(single),
        )
    open_, closed = (atoms > 1) & (seen.periodic == 0), (atoms > 1) & (seen.periodic > 0)
    if open_.any() and closed.any():
        few = open_ if open_.sum() <= closed.sum() else closed
        yield about(
            "mixed-periodicity",
            "warn" if few.sum() <= 0.1 * (atoms > 1).sum() else "note",
            f"{open_.sum()} frames are not periodic and {closed.sum()} are; these are the fewer",
            "check that none of them has lost its Lattice or pbc",
            seen.pick(np.flatnonzero(few)),
        )


def judge_distances(seen: Survey) -> Iterator[Finding]:
    """Atoms that are closer than chemistry brings them, and lengths that are not in Å."""
    short = []
    for index, shortest in enumerate(seen.shortest):
        ratio = [d / (covalent_radii[a] + covalent_radii[b]) for (a, b), d in shortest.items()]
        if ratio and min(ratio) < 0.55:
            short.append(index)
    if short:
        yield about(
            "short-distances",
            "warn",
            "atoms closer than 0.55 of a bond length",
            "keep them only if they were meant, as in scans of a repulsive wall",
            [seen.names[index] for index in short],
        )
    nearest = [
        min(d for pair, d in each.items() if 1 in pair)
        for each, z in zip(seen.shortest, seen.numbers, strict=True)
        if len(z) > 2 and set(z.tolist()) & set(yardsticks.STIFFNESS) and any(1 in p for p in each)
    ]
    if len(nearest) >= 5 and not 0.5 < (typical := float(np.median(nearest))) < 1.6:
        yield about(
            "position-units",
            "refuse",
            f"hydrogen is {typical:.2f} Å from its nearest neighbor where a bond has about 1 Å:"
            f" the positions look like {'bohr' if typical > 1 else 'nm'}",
            "convert the positions (and the cell) to Å; 1 bohr is 0.529 Å",
        )
