"""`mdlearn check`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from rich.table import Table

from mdlearn.atoms import read_structure, require_species, to_system
from mdlearn.certificate import certify, failures
from mdlearn.cli.console import Line, out
from mdlearn.cli.options import verb
from mdlearn.config import Config
from mdlearn.errors import ModelError
from mdlearn.neighbors import build
from mdlearn.potentials.checkpoint import Claim, claims_to_json, load_model
from mdlearn.potentials.threads import leave_one_thread


class CheckConfig(Config):
    """Options of `mdlearn check`."""

    model: Path = Field(description="a model file, or the run folder that holds one")
    structure: Path | None = Field(None, description="where to measure as well; the last frame")
    json_: bool = Field(False, alias="json", description="print JSON")


def run(config: CheckConfig) -> int:
    """Measures and prints; raises if a claim does not hold."""
    model = load_model(config.model, torch.float64)
    network = model.network
    structures = list(model.golden)
    if config.structure is not None:
        system = to_system(read_structure(config.structure))
        require_species(network.species, system, str(config.structure))
        structures.insert(0, system)
    pairs = (build(system, network.cutoff).j.numel() for system in structures)
    leave_one_thread(max(pairs, default=0))
    with Line() as line:
        line.show("measuring")
        certificate = certify(network, load_model(config.model).network, structures)
    if config.json_:
        print(json.dumps(claims_to_json(certificate), ensure_ascii=False))
    else:
        out.print(table(certificate))
        out.print(summary(certificate))
    if failures(certificate):
        raise ModelError(f"{model.path}: {summary(certificate)}")
    return 0


def table(certificate: Sequence[Claim]) -> Table:
    """A certificate, one claim in a row."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("claim")
    rows.add_column("found", justify="right")
    rows.add_column("limit", justify="right")
    rows.add_column("unit")
    rows.add_column("verdict")
    for each in certificate:
        found = f"{each.value:.1e}" if math.isfinite(each.value) else "no number"
        rows.add_row(each.name, found, f"{each.limit:g}", each.unit, each.verdict)
    return rows


def summary(certificate: Sequence[Claim]) -> str:
    """A certificate in a line."""
    broken = failures(certificate)
    if broken:
        return f"does not hold: {broken}"
    holding = sum(each.verdict == "holds" for each in certificate)
    rest = ", ".join(each.name for each in certificate if each.verdict == "reported only")
    return f"all {holding} claims hold" + (f"; reported only: {rest}" if rest else "")


command = verb(
    "check",
    CheckConfig,
    ["model", "structure"],
    run,
    """Measure what MODEL promises: its physics certificate, as training stores it in the model.

    Symmetries, forces and stress as derivatives of the energy, balance of forces, extensivity,
    smoothness at the cutoff, isolated atoms, float32, conservation of energy. Measured on random
    structures, on those in the model file, and on STRUCTURE, from which dynamics then starts. Exit
    code 4 if a claim does not hold.

    \b
    Example:
      mdlearn check ethanol-run start.xyz
    """,
)
