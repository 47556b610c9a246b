"""Labels of structures: which key of a file feeds which of them, and what stands there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import ase
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.errors import DataError

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
"""The six components of a symmetric matrix, in the order of ASE,"""
SIX = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""and where in the matrix they are."""


class Labels(NamedTuple):
    """What the reference calculation says of a batch; NaN where it says nothing."""

    energy: Tensor
    """(n_systems,) float64 eV."""
    forces: Tensor
    """(n_atoms, 3) float64 eV/Å."""
    stress: Tensor
    """(n_systems, 3, 3) float64 eV/Å³, ASE's sign: positive pulls inward."""
    dipole: Tensor
    """(n_systems, 3) float64 e Å, from negative to positive, about the origin."""


class Keys(NamedTuple):
    """Which key of the file feeds each label; None for a label that is not there."""

    energy: str
    forces: str | None
    stress: str | None
    dipole: str | None


class Wanted(NamedTuple):
    """What a person says of the keys; None for what is to be found out."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    dipole: str | None = None
    energy_only: bool = False
    """Forces may be missing."""


class _Survey:
    """Which keys the structures of a stream have, without keeping any of them."""

    def __init__(self, candidates: Iterable[str]) -> None:
        self.count = 0
        self.periodic = False
        self.missing: Counter[str] = Counter()
        self.names: dict[str, list[str]] = {key: [] for key in candidates}
        """The first five frames without a key."""
        self.found: dict[str, str] = {}
        """The keys of the first frame without a key."""

    def add(self, name: str, atoms: ase.Atoms) -> None:
        self.count += 1
        self.periodic |= bool(atoms.pbc.any())
        for key, names in self.names.items():
            if lookup(atoms, key) is None:
                self.missing[key] += 1
                self.found.setdefault(key, ", ".join(known_keys(atoms)) or "none")
                if len(names) < 5:
                    names.append(name)

    def everywhere(self, key: str) -> bool:
        return not self.missing[key]

    def require(self, key: str, label: str) -> str:
        missing = self.missing[key]
        if missing:
            some = ", ".join(self.names[key] + ["..."] * (missing > 5))
            allow = ", or --energy-only to train on energies alone" if label == "forces" else ""
            raise DataError(
                f"{self.names[key][0]}: no {label} under the key '{key}' in {missing} of"
                f" {self.count} frames ({some}); keys found there: {self.found[key]}; name the"
                f" right one with --{label}-key{allow}"
            )
        return key


def find_keys(structures: Iterable[tuple[str, ase.Atoms]], wanted: Wanted) -> Keys:
    """Settles which key feeds which label; a stream of named structures is enough.

    Raises:
        DataError: a label that is needed is missing in some frames.
    """
    energy, forces, stress, dipole, energy_only = wanted
    standard = (energy or "energy", forces or "forces", stress or "stress", dipole or "dipole")
    candidates = dict.fromkeys(("free_energy", *standard))
    labelled, single = _Survey(candidates), _Survey(candidates)
    for name, atoms in structures:
        (labelled if len(atoms) > 1 else single).add(name, atoms)
    # A single atom has no forces worth naming, so it does not decide which labels there are.
    survey = labelled if labelled.count else single
    if energy is None:
        energy = "free_energy" if survey.everywhere("free_energy") else "energy"
    if forces is None and not (energy_only and not survey.everywhere("forces")):
        forces = "forces"
    if stress is None and survey.everywhere("stress"):
        stress = "stress"
    # In a periodic system a dipole depends on which image of each atom is meant, and the file does
    # not say; so there it must be asked for.
    if dipole is None and not survey.periodic and survey.everywhere("dipole"):
        dipole = "dipole"
    return Keys(
        survey.require(energy, "energy"),
        forces and survey.require(forces, "forces"),
        stress and survey.require(stress, "stress"),
        dipole and survey.require(dipole, "dipole"),
    )


def known_keys(atoms: ase.Atoms) -> list[str]:
    """Every key under which a structure has something, besides what makes it a structure."""
    results = atoms.calc.results if atoms.calc else {}
    return sorted({*atoms.info, *atoms.arrays, *results} - {"numbers", "positions"})


def lookup(atoms: ase.Atoms, key: str) -> Any:
    """The value under a key, wherever ASE put it; results are read raw, not through constraints."""
    for place in (atoms.calc.results if atoms.calc else {}, atoms.info, atoms.arrays):
        if key in place:
            return place[key]
    return None


def find_labels(atoms: ase.Atoms, keys: Keys, name: str) -> Labels:
    """The labels of one structure as tensors, NaN where there is none.

    Raises:
        DataError: a label is not finite or has the wrong shape, or there is no energy.
    """
    n = len(atoms)

    def label(key: str, name_of_label: str) -> NDArray[np.float64]:
        try:
            return np.asarray(lookup(atoms, key), np.float64)
        except (TypeError, ValueError):
            raise DataError(
                f"{name}: the {name_of_label} label under '{key}' is not made of numbers; repair"
                f" it, or name another key with --{name_of_label}-key"
            ) from None

    energy = label(keys.energy, "energy")
    _check_finite(energy, (), "energy", name)
    forces = np.full((n, 3), np.nan if n > 1 else 0.0)  # symmetry forbids forces on a single atom
    stress = np.full((3, 3), np.nan)
    if keys.forces and lookup(atoms, keys.forces) is not None:
        forces = label(keys.forces, "forces")
        _check_finite(forces, (n, 3), "forces", name)
    if keys.stress and n > 1 and atoms.pbc.all() and lookup(atoms, keys.stress) is not None:
        stress = full_stress(label(keys.stress, "stress"))
        _check_finite(stress, (3, 3), "stress", name)
        stress = 0.5 * (stress + stress.T)
    dipole = np.full(3, np.nan)
    if keys.dipole and n > 1 and lookup(atoms, keys.dipole) is not None:
        dipole = label(keys.dipole, "dipole")
        _check_finite(dipole, (3,), "dipole", name)
    return Labels(
        torch.tensor(energy)[None],
        torch.tensor(forces),
        torch.tensor(stress)[None],
        torch.tensor(dipole)[None],
    )


def full_stress(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """A stress of six components, in the order of `VOIGT`, or of nine, as (3, 3).

    What is neither comes back as it is.
    """
    if stress.size == 6:
        stress = stress.reshape(6)[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    return stress.reshape(3, 3) if stress.size == 9 else stress


def _check_finite(
    values: NDArray[np.float64], shape: tuple[int, ...], label: str, name: str
) -> None:
    if values.shape != shape:
        raise DataError(f"{name}: the {label} label has the shape {values.shape}; expected {shape}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        where = f", atom {bad[0][0]}" if label == "forces" else ""
        raise DataError(
            f"{name}{where}: the {label} label is {values[tuple(bad[0])]}; expected a finite"
            " number: remove the frame or recompute it (--skip-bad leaves such frames out)"
        )
