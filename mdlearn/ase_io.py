"""`ase.io.read` for trajectory files, through ASE's plugin entry point `ase.ioformats`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ase.utils.plugins import ExternalIOFormat

if TYPE_CHECKING:
    from ase import Atoms

h5md_format = ExternalIOFormat(
    desc="mdlearn trajectory (H5MD)", code="+S", module="mdlearn.ase_io", ext="h5"
)
"""What ASE registers, under the name `mdlearn-h5md`."""


def read_mdlearn_h5md(filename: str, index: int | slice = -1, replica: int = 0) -> Iterator[Atoms]:
    """Yields the selected committed frames; ASE finds this function by its name.

    Args:
        filename: Path of the trajectory.
        index: Which frames; ASE passes a slice.
        replica: Which replica, from 0, of a file with several.
    """
    from mdlearn.trajectory import Trajectory  # `import ase.io` loads this module in every program

    with Trajectory(filename, replica) as trajectory:
        frames = range(len(trajectory))
        for i in frames[index] if isinstance(index, slice) else [frames[index]]:
            yield trajectory.atoms(i)
