"""What verbs that move atoms are given: structures, and a network that knows their elements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import ase
import numpy as np
from numpy.typing import NDArray

from mdlearn.atoms import check_geometry, iterate_atoms, read_atoms, require_species, to_system
from mdlearn.cli.console import Line, err
from mdlearn.device import choose_device
from mdlearn.errors import UsageError
from mdlearn.potentials.checkpoint import Model
from mdlearn.potentials.evaluate import Evaluable
from mdlearn.potentials.frozen import fastest
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.propagator import Propagator
from mdlearn.system import System, concatenate
from mdlearn.trajectory import Trajectory

Network = TypeVar("Network", bound=ParametricPotential | Propagator)
COMPILING = "compiling loops; once on a machine, for less than a minute"


def choose_structures(path: Path, frame: str) -> list[ase.Atoms]:
    """Structures of a file.

    Args:
        path: the file.
        frame: a number, a slice as in 0:10, or `all`.

    Raises:
        DataError: see `read_atoms`.
        UsageError: the file has no such structures.
    """
    if frame.isdecimal():  # nothing after it need be read
        number = int(frame)
        if found := list(islice(iterate_atoms(path), number, number + 1)):
            return found
    structures = read_atoms(path)
    numbers = range(len(structures))
    if ":" in frame:
        numbers = numbers[slice(*(int(each) if each else None for each in frame.split(":")))]
    elif frame != "all":
        numbers = numbers[int(frame) :][:1] if -len(numbers) <= int(frame) else numbers[:0]
    if not numbers:
        raise UsageError(
            f"--frame {frame}: {path} has {len(structures)} structures, counted from 0"
        )
    return [structures[number] for number in numbers]


def place(
    network: Network, structures: Sequence[ase.Atoms], name: Path, device: str
) -> tuple[Network, System]:
    """Network and batch on the device that was asked for, if they belong together.

    Raises:
        DataError, ModelError, ResourceError: they do not, or there is no such device.
    """
    where = choose_device(device)
    systems = [to_system(atoms) for atoms in structures]
    for index, system in enumerate(systems):
        called = f"{name}, structure {index}" if len(systems) > 1 else str(name)
        check_geometry(system, called)
        require_species(network.species, system, called)
    batch = concatenate(systems)
    network.to(where)  # a module moves in place
    return network, System(*(each.to(where) for each in batch))


def choose_form(model: Model) -> Evaluable:
    """The frozen form of a model's potential, or itself; says so if it should have one."""
    with Line() as line:
        line.show(COMPILING)
        potential, off = fastest(model.network, model.golden)
    if off:
        err.print(f"not frozen  {off}; the network itself is used, which is slower")
    return potential


def stored_structures(
    trajectory: Trajectory, restart: Mapping[str, NDArray[Any]]
) -> list[ase.Atoms]:
    """Those that a trajectory goes on from, one for each replica."""
    structures: list[ase.Atoms] = []
    charges = np.ravel(json.loads(str(trajectory.provenance["charge"])))
    first = 0
    for index, charge in enumerate(charges):
        with Trajectory(trajectory.path, index) as replica:
            last = first + len(replica.numbers)
            structures.append(
                ase.Atoms(
                    replica.numbers,
                    restart["positions"][first:last],
                    cell=restart["cell"][index],
                    pbc=replica.pbc,
                    masses=replica.masses,
                    info={"charge": float(charge)},
                )
            )
        first = last
    return structures
