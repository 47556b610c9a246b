"""`mdlearn demo`."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from pydantic import Field

from mdlearn.cli import simulate, train
from mdlearn.cli.console import out
from mdlearn.cli.ensembles import SimulateConfig
from mdlearn.cli.options import verb
from mdlearn.config import Config
from mdlearn.files import make_run_folder
from mdlearn.parity import plot_force_parity
from mdlearn.plots import plot_energy_and_temperature
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate
from mdlearn.training.config import Minutes, TrainConfig
from mdlearn.training.dataset import concatenate, make_example
from mdlearn.training.start import read_data
from mdlearn.trajectory import Trajectory

OUTPUTS = ("model", "forces.png", "trajectory.h5", "dynamics.png")


class DemoConfig(Config):
    """Options of `mdlearn demo`."""

    output: Path = Field(Path("mdlearn-demo"), description="folder for everything it makes")
    overwrite: bool = Field(False, description="replace an output that exists")
    budget_min: Minutes = Field(
        "100s", gt=0, alias="budget", validate_default=True, description="how long to train"
    )


def run(config: DemoConfig) -> int:
    """Trains, simulates, plots."""
    folder = config.output
    make_run_folder(folder, overwrite=config.overwrite, contents=OUTPUTS)
    with as_file(files("mdlearn.data") / "ethanol.xyz") as frames:
        out.print(f"1. A potential for ethanol, from {frames.name} (PBE/def2-SVP)\n")
        training = TrainConfig(frames=frames, output=folder / "model", budget_min=config.budget_min)
        code = train.run(training)
        if code:
            return code
        _plot_parity(training, folder / "forces.png")
        out.print("\n2. Ten picoseconds of it at 300 K\n")
        code = simulate.run(
            SimulateConfig(
                model=folder / "model", structure=frames, output=folder / "trajectory.h5"
            )
        )
        if code:
            return code
    with Trajectory(folder / "trajectory.h5") as trajectory:
        plot_energy_and_temperature(folder / "dynamics.png", trajectory)
    out.print(
        f"\n3. Look at {folder / 'forces.png'} and {folder / 'dynamics.png'}, then try\n\n"
        f"  mdlearn info {folder / 'trajectory.h5'}\n"
        f"  mdlearn simulate --resume {folder / 'trajectory.h5'} --time 20ps\n"
        f"  ase gui {folder / 'trajectory.h5'}\n"
        "  mdlearn train your-frames.xyz\n"
    )
    return 0


def _plot_parity(config: TrainConfig, path: Path) -> None:
    """Forces on the validation frames, which the model was not fitted to."""
    network = load_model(config.output or Path()).network
    batch = concatenate([make_example(each, network.cutoff) for each in read_data(config).valid])
    forces = evaluate(network, batch.system, batch.neighbors).forces
    plot_force_parity(
        path, batch.system.numbers.numpy(), batch.labels.forces.numpy(), forces.numpy()
    )


command = verb(
    "demo",
    DemoConfig,
    [],
    run,
    r"""Train on the frames of ethanol that come with mdlearn, simulate 10 ps, and plot.

    Takes about four minutes on two cores. Everything it makes is in one folder.

    \b
    Example:
      mdlearn demo --output ethanol-demo
    """,
)
