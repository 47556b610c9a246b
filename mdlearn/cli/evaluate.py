"""`mdlearn evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich import table as rich

from mdlearn.atoms import read_frames, require_species
from mdlearn.cli.console import out
from mdlearn.cli.options import verb
from mdlearn.cli.startup import warn_of_surroundings
from mdlearn.config import PRECISION, Config
from mdlearn.device import PRECISIONS, choose_device
from mdlearn.files import make_run_folder
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.unconstrained import RotationAverage
from mdlearn.report import Table, tables
from mdlearn.training.comparison import compare, summarize, to_json

PICTURES = ("parity.png", "errors.png")


class EvaluateConfig(Config):
    """Options of `mdlearn evaluate`."""

    model: Path = Field(description="a model file, or the run folder that holds one")
    frames: Path = Field(description="labelled structures")
    energy_key: str | None = Field(None, description="key of the energy in eV")
    forces_key: str | None = Field(None, description="key of the forces in eV/Å")
    stress_key: str | None = Field(None, description="key of the stress in eV/Å³")
    dipole_key: str | None = Field(None, description="key of the dipole in e Å")
    energy_only: bool = Field(False, description="accept frames without forces")
    rotations: int = Field(
        1, ge=1, description="average over so many orientations; for networks without that symmetry"
    )
    json_: bool = Field(False, alias="json", description="print JSON")
    plots: Path | None = Field(None, description="folder for pictures of parity and errors")
    overwrite: bool = Field(False, description="replace an output that exists")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    precision: Literal["mixed", "float64"] = Field("mixed", description=PRECISION)


def run(config: EvaluateConfig) -> int:
    """Measures and prints."""
    device = choose_device(config.device)
    dtype = PRECISIONS[config.precision]
    model = load_model(config.model, dtype)
    network = model.network.to(device)
    if config.rotations > 1:
        network = RotationAverage(network, config.rotations).to(device, dtype)
    frames, _ = read_frames(
        config.frames,
        energy_key=config.energy_key,
        forces_key=config.forces_key,
        stress_key=config.stress_key,
        dipole_key=config.dipole_key,
        energy_only=config.energy_only,
    )
    for frame in frames:
        require_species(network.species, frame.system, frame.name)
    # Of an atom alone it knows the energy, whatever its training frames were.
    many = (each for each in frames if len(each.system.numbers) > 1)
    any(warn_of_surroundings(model.network, each.system, each.name) for each in many)
    if config.plots is not None:
        make_run_folder(config.plots, overwrite=config.overwrite, contents=PICTURES)
    comparison = compare(network, frames)
    summary = summarize(comparison)
    if config.json_:
        print(json.dumps(to_json(summary), ensure_ascii=False, allow_nan=False))
    else:
        for index, each in enumerate(tables(config.frames.name, summary)):
            if index:
                out.print()
            out.print(_rich(each))
    if config.plots is not None:
        from mdlearn import parity  # a second that only those wait for who want pictures

        sets = {config.frames.name: comparison}
        parity.plot_parity(config.plots / PICTURES[0], sets)
        parity.plot_errors(config.plots / PICTURES[1], sets)
    return 0


def _rich(table: Table) -> rich.Table:
    """A table for the terminal."""
    found = rich.Table(
        title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for index, name in enumerate(table.head):
        justify: Literal["left", "right"] = "right" if index else "left"
        # Where it is too narrow, rather heads in three lines than half a name.
        found.add_column(name, justify=justify, vertical="bottom", no_wrap=index == 0)
    for row in table.rows:
        found.add_row(*row)
    return found


command = verb(
    "evaluate",
    EvaluateConfig,
    ["model", "frames"],
    run,
    """Measure the errors of MODEL on labelled FRAMES, in meV, meV/atom and meV/Å.

    As a whole, by element, by kind of structure where frames have a config_type, and the worst
    frames.

    \b
    Example:
      mdlearn evaluate ethanol-run test.xyz --plots pictures
    """,
)
