"""Model files: safetensors weights with a JSON header. Nothing in them is ever executed.

The header says what kind of model it is, what the model is (settings, species) and where it came
from, and holds a few golden structures with what the model gave for them in float64 when it was
saved. They are recomputed on loading: a model that loads is the model that was saved. Here is what
files of all kinds of models share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mdlearn.errors import ModelError
from mdlearn.files import write_atomically
from mdlearn.potentials.network import ParametricPotential, Settings
from mdlearn.potentials.propagator import Propagator, PropagatorSettings
from mdlearn.system import System

FORMAT_VERSION = 2
DAMAGE = (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError)
"""What a header raises that is JSON, but not ours."""
OTHER_KINDS = {
    "potential": (
        "a potential, and a propagator was expected: make one with `mdlearn train --propagator"
        " TRAJECTORY`, or leave out --integrator learned"
    ),
    "propagator": (
        "a propagator, which moves atoms and knows neither energies nor forces: `mdlearn simulate"
        " --integrator learned` takes it; a potential was expected, of `mdlearn train FRAMES`"
    ),
}
"""What to say of a file that holds a model of another kind than was asked for."""
GOLDEN_TOLERANCE = 1e-9
"""Relative to the largest number compared; float64 leaves about 1e-13."""


def kind_of(path: str | Path) -> str:
    """Whether a file, or a run folder, holds a `potential` or a `propagator`.

    Raises:
        ModelError: no such file, or not a model.
    """
    return str(read(_file_of(path))[0].get("kind", "potential"))


def _file_of(path: str | Path) -> Path:
    """The file of a model, given itself or its run folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"{path}: no such model; expected a file made by `mdlearn train` or its folder"
        )
    return path


def begin(
    kind: str,
    network: ParametricPotential | Propagator,
    settings: Settings | PropagatorSettings,
    provenance: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header of any kind of model, so far, and the weights."""
    weights = {
        name: each.detach().cpu().contiguous() for name, each in network.state_dict().items()
    }
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "weights_sha256": _hash(weights),
        "settings": settings._asdict(),
        "species": list(network.species),
        "provenance": dict(provenance),
    }
    return header, weights


def load(path: str | Path, kind: str) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """The path of a model file, and its header and weights, if they are whole and of a kind.

    Raises:
        ModelError: no such file, not a model, damaged, of another kind, or made by another version.
    """
    path = _file_of(path)
    header, weights = read(path)
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        older = isinstance(version, int) and version < FORMAT_VERSION
        remedy = "train again" if older else "upgrade with `pip install -U mdlearn`"
        raise ModelError(
            f"{path}: model format {version}; this version of mdlearn reads {FORMAT_VERSION}:"
            f" {remedy}"
        )
    if header.get("weights_sha256") != _hash(weights):
        raise ModelError(
            f"{path}: damaged: the weights ({path.stat().st_size} bytes) do not have the hash that"
            " the header names; use a backup or train again"
        )
    found = header.get("kind", "potential")  # older files are potentials and do not say so
    if found != kind:
        raise ModelError(f"{path}: {OTHER_KINDS.get(found, f'a model of the kind {found}')}")
    return path, header, weights


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and weights of a model file.

    Raises:
        ModelError: the file is not a model.
    """
    size = path.stat().st_size
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["mdlearn"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        with path.open("rb") as file:
            first = file.read(2)
        pickled = first == b"PK" or first[:1] == b"\x80"
        why = (
            "a pickle, which can run any code and is never loaded"
            if pickled
            else "truncated, damaged or of another kind"
        )
        raise ModelError(
            f"{path}: not a model of mdlearn ({size} bytes; {why}); expected the model.safetensors"
            " of a run of `mdlearn train`"
        ) from error
    return header, weights


def write(path: Path, header: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes a model file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, save(dict(weights), metadata={"mdlearn": json.dumps(header)}))


def unfit(path: Path, error: Exception) -> ModelError:
    """What to raise where a header is JSON, but not ours; see `DAMAGE`."""
    return ModelError(
        f"{path}: damaged: header and weights do not fit together"
        f" ({type(error).__name__}: {error}); use a backup or train again"
    )


def _hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def system_of(stored: Mapping[str, Any]) -> System:
    """The structure that `geometry` described."""
    numbers = torch.tensor(stored["numbers"])
    # Older files have no masses. A nucleus has about two units of mass for each proton.
    masses = stored.get("masses", [2.0 * z for z in stored["numbers"]])
    return System(
        torch.tensor(stored["positions"], dtype=torch.float64),
        numbers,
        torch.tensor(masses, dtype=torch.float64),
        torch.tensor(stored["cell"], dtype=torch.float64)[None],
        torch.tensor(stored["pbc"])[None],
        torch.zeros(len(numbers), dtype=torch.int64),
        torch.zeros(1, dtype=torch.float64),
    )


def geometry(system: System) -> dict[str, Any]:
    """The structure of a golden structure, as JSON has it."""
    return {
        "numbers": system.numbers.tolist(),
        "positions": system.positions.tolist(),
        "masses": system.masses.tolist(),
        "cell": system.cell[0].tolist(),
        "pbc": system.pbc[0].tolist(),
    }


def compare(
    stored: Mapping[str, Any],
    recomputed: Mapping[str, Any],
    where: str,
    quantities: Sequence[str] = ("energy", "forces", "stress"),
) -> None:
    """Compares what a golden structure has stored with what the model gives for it now.

    Raises:
        ModelError: a quantity differs by more than `GOLDEN_TOLERANCE`.
    """
    for quantity in quantities:
        if stored[quantity] is None:
            continue
        expected = torch.tensor(stored[quantity], dtype=torch.float64)
        found = torch.tensor(recomputed[quantity], dtype=torch.float64)
        error = float((found - expected).abs().max())
        # `not <=` so that NaN is a difference.
        if not error <= GOLDEN_TOLERANCE * max(1.0, float(expected.abs().max())):
            raise ModelError(
                f"{where}: {quantity} differs by {error:.2g} from what the model gave when it was"
                " saved; the file is damaged: use a backup or train again"
            )
