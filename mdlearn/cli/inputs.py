"""What verbs that move atoms are given: one structure, and a network that knows its elements."""

from __future__ import annotations

from pathlib import Path

import ase

from mdlearn.atoms import check_geometry, read_atoms, require_species, to_system
from mdlearn.device import choose_device
from mdlearn.errors import UsageError
from mdlearn.potentials.checkpoint import Model
from mdlearn.potentials.network import ParametricPotential
from mdlearn.system import System


def choose_structure(path: Path, frame: int) -> ase.Atoms:
    """One structure of a file.

    Raises:
        DataError: see `read_atoms`.
        UsageError: the file has fewer structures.
    """
    structures = read_atoms(path)
    if not -len(structures) <= frame < len(structures):
        raise UsageError(
            f"--frame {frame}: {path} has {len(structures)} structures, counted from 0"
        )
    return structures[frame]


def place(
    model: Model, atoms: ase.Atoms, name: Path, device: str
) -> tuple[ParametricPotential, System]:
    """Network and system on the device that was asked for, if they belong together.

    Raises:
        DataError, ModelError, ResourceError: they do not, or there is no such device.
    """
    where = choose_device(device)
    system = to_system(atoms)
    check_geometry(system, str(name))
    require_species(model.network.species, system, str(name))
    return model.network.to(where), System(*(each.to(where) for each in system))
