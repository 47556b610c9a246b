"""`mdlearn info`."""

from __future__ import annotations

import json
from pathlib import Path

from ase.data import chemical_symbols
from ase.formula import Formula
from pydantic import Field

from mdlearn.analysis import energy_drift, follow_bonds
from mdlearn.cli.check import summary, table
from mdlearn.cli.console import counted, out
from mdlearn.cli.options import verb
from mdlearn.cli.recording import replica_table
from mdlearn.config import Config
from mdlearn.errors import DataError
from mdlearn.potentials.checkpoint import Model, load_model
from mdlearn.potentials.model_file import kind_of
from mdlearn.potentials.propagator_checkpoint import PropagatorModel, load_propagator
from mdlearn.trajectory import Trajectory


class InfoConfig(Config):
    """Options of `mdlearn info`."""

    path: Path = Field(description="a model file, a run folder or a trajectory")


def run(config: InfoConfig) -> int:
    """Prints what a file holds."""
    path = config.path
    if not path.exists():
        raise DataError(f"{path}: no such file; expected a model, a run folder or a trajectory")
    if path.is_dir() or path.suffix == ".safetensors":
        if kind_of(path) == "propagator":
            _propagator(path)
        else:
            _model(path)
    else:
        _trajectory(path)
    return 0


def _model(path: Path) -> None:
    model = load_model(path)
    _describe(model, model.network.settings.architecture)
    if model.certificate is None:
        out.print("certificate  none; training did not end, or is older: see mdlearn check")
        return
    out.print(f"certificate  {summary(model.certificate)}")
    out.print(table(model.certificate))


def _propagator(path: Path) -> None:
    model = load_propagator(path)
    _describe(model, f"propagator over {model.network.settings.stride_fs:g} fs")


def _describe(model: Model | PropagatorModel, what: str) -> None:
    """What all kinds of models have."""
    network = model.network
    weights = sum(each.numel() for each in network.parameters())
    elements = ", ".join(chemical_symbols[z] for z in network.species)
    out.print(f"model        {model.path}; reproduces its golden structures")
    out.print(f"network      {what}, {weights:,} weights, cutoff {network.cutoff} Å")
    out.print(f"elements     {elements}")
    for name, value in model.provenance.items():
        out.print(f"{name.replace('_', ' '):<12} {json.dumps(value, ensure_ascii=False)}")


def _trajectory(path: Path) -> None:
    with Trajectory(path) as trajectory:
        if trajectory.n_replicas > 1:
            _replicas(trajectory)
            return
        formula = Formula.from_list([chemical_symbols[z] for z in trajectory.numbers])
        times = trajectory.times_fs
        out.print(f"trajectory   {path}: {counted(len(trajectory), 'frame')} of {formula:hill}")
        out.print(f"time         {times[0] / 1000:g} to {times[-1] / 1000:g} ps")
        for name in trajectory.observable_names:
            values = trajectory.observable(name)
            unit = trajectory.observable_unit(name)
            out.print(
                f"{name.replace('_', ' '):<17} {values.mean():.6g} ± {values.std():.3g} {unit}"
            )
        drift = energy_drift(trajectory)
        if drift is not None:
            out.print(f"drift        {drift}")
        out.print(f"bonds        {follow_bonds(trajectory)}")
        for key, value in trajectory.provenance.items():
            out.print(f"{key:<12} {value}")


def _replicas(trajectory: Trajectory) -> None:
    n = trajectory.n_replicas
    out.print(f"trajectory   {trajectory.path}: {n} replicas")
    out.print(replica_table(trajectory.path))
    for index in range(n):
        with Trajectory(trajectory.path, index) as replica:
            if replica.stopped:
                out.print(f"replica {index} stopped: {replica.stopped}")
    for key, value in trajectory.provenance.items():
        out.print(f"{key:<12} {value}")


command = verb(
    "info",
    InfoConfig,
    ["path"],
    run,
    """Say what PATH holds: a model, a run folder or a trajectory.

    \b
    Example:
      mdlearn info ethanol-run
    """,
)
