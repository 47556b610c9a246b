"""`mdlearn evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from mdlearn.atoms import read_frames, require_species
from mdlearn.cli.console import out
from mdlearn.cli.options import verb
from mdlearn.cli.train import add_errors, error_table
from mdlearn.config import PRECISION, Config
from mdlearn.device import PRECISIONS, choose_device
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.unconstrained import RotationAverage
from mdlearn.training.dataset import make_example, to
from mdlearn.training.loss import Weights, measure


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
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    precision: Literal["mixed", "float64"] = Field("mixed", description=PRECISION)


def run(config: EvaluateConfig) -> int:
    """Measures and prints."""
    device = choose_device(config.device)
    dtype = PRECISIONS[config.precision]
    network = load_model(config.model, dtype).network.to(device)
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
    examples = (to(make_example(frame, network.cutoff), device) for frame in frames)
    errors = measure(network, examples, Weights(1.0, 1.0, 1.0), network.settings.scale)
    if config.json_:
        # JSON has no NaN; a quantity without labels has no error.
        print(json.dumps({name: x for name, x in errors._asdict().items() if x == x}))
        return 0
    table = error_table()
    add_errors(table, f"{config.frames.name}, {len(frames)} frames", errors)
    out.print(table)
    return 0


command = verb(
    "evaluate",
    EvaluateConfig,
    ["model", "frames"],
    run,
    """Measure the errors of MODEL on labelled FRAMES, in meV, meV/atom and meV/Å.

    \b
    Example:
      mdlearn evaluate ethanol-run test.xyz --json
    """,
)
