"""`mdlearn relax`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import ase
import ase.io
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.cell import Cell
from ase.stress import full_3x3_to_voigt_6_stress
from pydantic import Field
from rich.table import Table

from mdlearn import units
from mdlearn.cli.console import Line, err, interruptible, out
from mdlearn.cli.ensembles import fixed_atoms, mobile_atoms
from mdlearn.cli.inputs import choose_form, choose_structures, place
from mdlearn.cli.memory import within_memory
from mdlearn.cli.options import verb
from mdlearn.cli.startup import warn_of_surroundings
from mdlearn.config import PRECISION, Config
from mdlearn.device import PRECISIONS
from mdlearn.errors import UnstableError, UsageError
from mdlearn.files import refuse_existing, write_atomically
from mdlearn.integrators.fire import CellChange, Descent
from mdlearn.minimize import Minimum, minimize, residual
from mdlearn.neighbors import build
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import choose_threads
from mdlearn.system import Evaluation, System, volume

ROUNDING = 1e-3
"""eV/Å; forces this small may drown in the rounding of a network in float32."""
VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")
PARAMETERS = ("a, Å", "b, Å", "c, Å", "α, °", "β, °", "γ, °")


class RelaxConfig(Config):
    """Options of `mdlearn relax`."""

    model: Path = Field(description="a model file, or the run folder that holds one")
    structure: Path = Field(description="where to start: any file that ASE reads")
    frame: int = Field(-1, description="which structure of the file, from 0; -1 is the last")
    output: Path | None = Field(
        None, description="structure [default: name of STRUCTURE + '-relaxed.extxyz']"
    )
    overwrite: bool = Field(False, description="replace an output that exists")
    fmax_eV_per_A: float = Field(  # noqa: N815
        0.01, gt=0, alias="fmax", description="largest force to stop at, eV/Å"
    )
    cell: CellChange = Field(
        "none", description="what of the cell relaxes too: its size, or its size and shape"
    )
    pressure_GPa: float = Field(  # noqa: N815
        0.0, alias="pressure", description="on the cell from outside, GPa"
    )
    steps: int = Field(2000, ge=0, description="at most so many")
    fix: str | None = Field(
        None,
        description="atoms that are held, as in 0,5,10-19; with those that the structure has fixed",
    )
    json_: bool = Field(False, alias="json", description="print JSON")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    precision: Literal["mixed", "float64"] = Field("mixed", description=PRECISION)


def run(config: RelaxConfig) -> int:
    """Relaxes, writes the structure, and says what changed."""
    output = config.output or Path(f"{config.structure.name.split('.')[0]}-relaxed.extxyz")
    refuse_existing(output, overwrite=config.overwrite)
    model = load_model(config.model, PRECISIONS[config.precision])
    (atoms,) = choose_structures(config.structure, str(config.frame))
    network, system = place(model.network, [atoms], config.structure, config.device)
    potential = choose_form(model)
    if config.cell == "none" and config.pressure_GPa:
        raise UsageError("--pressure: acts on the cell only; choose --cell isotropic or full")
    if config.cell != "none" and not bool(system.pbc.all()):
        raise UsageError(
            f"--cell {config.cell}: {config.structure} is not periodic in all three directions, so"
            " its cell is not under stress; leave out --cell"
        )
    neighbors = build(system, network.cutoff)
    potential = within_memory(str(config.structure), potential, model.golden, neighbors)
    warn_of_surroundings(network, system)
    mobile = mobile_atoms(fixed_atoms([atoms], config.fix), system)
    pressure = config.pressure_GPa * units.GPa
    choose_threads(potential, system, neighbors, neighbors.j.numel())
    with interruptible() as interruption, Line() as line:

        def observe(step: int, descent: Descent) -> bool:
            force = residual(descent, pressure, config.cell)
            line.show(f"step {step} | largest force {force:.4f} eV/Å")
            return not interruption.received

        minimum = minimize(
            potential,
            system,
            fmax=config.fmax_eV_per_A,
            steps=config.steps,
            mobile=mobile,
            cell=config.cell,
            pressure=pressure,
            observe=observe,
        )
    _write(output, atoms, minimum)
    before = describe(system, minimum.first, pressure)
    after = describe(minimum.system, minimum.evaluation, pressure)
    if config.json_:
        found = {"converged": minimum.converged, "steps": minimum.steps, "output": str(output)}
        print(json.dumps(found | {"before": before, "after": after}, ensure_ascii=False))
    else:
        out.print(table(before, after))
        how = "converged" if minimum.converged else "not converged"
        out.print(f"{how} after {minimum.steps} steps; structure in {output}")
    if interruption.received:
        err.print(f"stopped early; go on with: mdlearn relax {config.model} {output}")
        return 128 + interruption.received
    if not minimum.converged:
        rounding = config.precision == "mixed" and config.fmax_eV_per_A < ROUNDING
        raise UnstableError(
            f"not converged after {minimum.steps} steps: {minimum.residual:.3g} eV/Å are left,"
            f" expected at most {config.fmax_eV_per_A:g}; {output} holds the best structure: go on"
            f" from there, or raise --fmax{', or take --precision float64' if rounding else ''}"
        )
    return 0


def describe(system: System, evaluation: Evaluation, pressure: float) -> dict[str, float]:
    """What people want to know of a structure, by name and unit.

    Args:
        system: a single one.
        evaluation: of the potential; forces on atoms that are held are zero.
        pressure: from outside, eV/Å³.
    """
    found = {
        "energy, eV": float(evaluation.energy),
        "largest force, eV/Å": float(evaluation.forces.norm(dim=1).max()),
    }
    if bool(system.pbc.all()):
        stress = evaluation.stress[0] / units.GPa
        found["enthalpy, eV"] = float(evaluation.energy + pressure * volume(system))
        found["pressure, GPa"] = -float(torch.trace(stress)) / 3.0
        for name, value in zip(VOIGT, full_3x3_to_voigt_6_stress(stress.cpu()), strict=True):
            found[f"stress {name}, GPa"] = float(value)
        found["volume, Å³"] = float(volume(system))
        parameters = Cell(system.cell[0].cpu().numpy()).cellpar().tolist()
        found |= dict(zip(PARAMETERS, parameters, strict=True))
    return found


def table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Two descriptions side by side."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("")
    for name in ("before", "after", "change"):
        rows.add_column(name, justify="right")
    for name, first in before.items():
        change = after[name] - first
        rows.add_row(name, f"{first:.5f}", f"{after[name]:.5f}", f"{change:+.5f}")
    return rows


def _write(path: Path, atoms: ase.Atoms, minimum: Minimum) -> None:
    """The structure as it is now, with what the model says of it, and nothing of what was there."""
    relaxed = atoms.copy()  # without the labels
    relaxed.set_constraint()
    relaxed.set_cell(minimum.system.cell[0].cpu().numpy())
    relaxed.positions = minimum.system.positions.cpu().numpy()
    relaxed.set_constraint(atoms.constraints)
    relaxed.arrays.pop("momenta", None)
    evaluation = minimum.evaluation
    labels = {"energy": float(evaluation.energy), "forces": evaluation.forces.cpu().numpy()}
    if bool(minimum.system.pbc.all()):
        labels["stress"] = full_3x3_to_voigt_6_stress(evaluation.stress[0].cpu().numpy())
    relaxed.calc = SinglePointCalculator(relaxed, **labels)
    text = io.StringIO()
    ase.io.write(text, relaxed, format="extxyz")
    write_atomically(path, text.getvalue().encode())


command = verb(
    "relax",
    RelaxConfig,
    ["model", "structure"],
    run,
    """Bring STRUCTURE to the nearest minimum of the energy of MODEL.

    Moves the atoms downhill (FIRE 2.0) until no force is larger than --fmax, eV/Å; with --cell also
    the cell, until the stress is within 5 GPa times --fmax of --pressure: 0.05 GPa by default.
    Atoms that the structure has fixed, or --fix, are held; they only move along with the cell. The
    structure is written as extended XYZ with energy, forces and stress of the model. Exit code 5
    if --steps did not suffice; the best structure is written all the same.

    \b
    Examples:
      mdlearn relax ethanol-run start.xyz
      mdlearn relax ethanol-run start.xyz --fmax 0.001 --precision float64 --output tight.extxyz
      mdlearn relax silicon-run crystal.xyz --cell full --pressure 5
    """,
)
