"""Systems that leave a batch while the others go on.

What is saved of a batch keeps its shape: the rows of a system that has left stay as they were last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mdlearn.simulate import Dynamics, Snapshot, restore, save
from mdlearn.system import System, select

Saved: TypeAlias = Mapping[str, NDArray[Any]]
"""What `simulate.save` gives."""
PER_ATOM = ("positions", "momenta", "reference")
"""The arrays in it with a row for each atom. Others have one for each system, counters none."""


def keep(dynamics: Dynamics, snapshot: Snapshot, staying: Tensor) -> tuple[Dynamics, Snapshot]:
    """Takes systems out of a simulation; the others go on as if these had never been there.

    They go on by way of `save` and `restore`, so that it makes no difference whether a run is
    stopped after this and resumed.

    Args:
        dynamics: of the batch.
        snapshot: of the batch.
        staying: (n_systems,) bool, those that stay.
    """
    system = snapshot.state.system
    dynamics = narrow(dynamics, system, staying)
    saved = choose(save(snapshot), system, staying)
    return dynamics, restore(dynamics, select(system, staying), saved)


def narrow(dynamics: Dynamics, system: System, chosen: Tensor) -> Dynamics:
    """The dynamics of some systems of a batch.

    Args:
        dynamics: of the batch.
        system: the batch.
        chosen: (n_systems,) bool.
    """
    kT, pressure, limits = dynamics.kT, dynamics.pressure, dynamics.limits
    return dynamics._replace(
        kT=lambda step: kT(step)[chosen],
        pressure=lambda step: pressure(step)[chosen],
        seeds=[seed for seed, one in zip(dynamics.seeds, chosen.tolist(), strict=True) if one],
        mobile=None if dynamics.mobile is None else dynamics.mobile[chosen[system.system]],
        limits=None if limits is None else limits._replace(kT=limits.kT[chosen]),
    )


def choose(saved: Saved, system: System, chosen: Tensor) -> dict[str, NDArray[Any]]:
    """Of what was saved of a batch, that which is about some systems.

    Anything with a row for each system may stand beside what `save` gives.

    Args:
        saved: of the batch.
        system: the batch.
        chosen: (n_systems,) bool.
    """
    return {
        name: array[_rows(name, system, chosen)] if array.ndim else array
        for name, array in saved.items()
    }


def merge(saved: Saved, part: Saved, system: System, chosen: Tensor) -> dict[str, NDArray[Any]]:
    """What was saved of a batch, with some systems as they were saved later; undoes `choose`.

    Args:
        saved: of the batch.
        part: of the chosen systems.
        system: the batch.
        chosen: (n_systems,) bool.
    """
    merged = {
        name: np.array(part[name] if array.ndim == 0 else array) for name, array in saved.items()
    }
    for name, array in merged.items():
        if array.ndim:
            array[_rows(name, system, chosen)] = part[name]
    return merged


def _rows(name: str, system: System, chosen: Tensor) -> NDArray[np.bool_]:
    rows: NDArray[np.bool_] = (chosen[system.system] if name in PER_ATOM else chosen).cpu().numpy()
    return rows
