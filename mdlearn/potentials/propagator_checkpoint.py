"""Propagators in model files; golden structures are taken over one stride; see `model_file`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdlearn.errors import MDLearnError, ModelError
from mdlearn.neighbors import build
from mdlearn.potentials import model_file
from mdlearn.potentials.propagator import Propagator, PropagatorSettings, propagate
from mdlearn.system import System


class PropagatorModel(NamedTuple):
    """A propagator and what its file says of it."""

    network: Propagator
    provenance: dict[str, Any]
    """Where it came from: trajectory, configuration, errors, versions."""
    path: Path


def save_propagator(
    path: Path,
    propagator: Propagator,
    provenance: Mapping[str, Any],
    golden: Sequence[tuple[System, Tensor]],
) -> None:
    """Writes the file of a propagator, whole or not at all.

    Args:
        path: the file; by custom it ends in `.safetensors`.
        propagator: with weights in float32 or float64; they are stored as they are.
        provenance: where it came from; anything that JSON can hold.
        golden: structures with momenta for the self-test on loading.

    Raises:
        OutputError: the file cannot be written.
    """
    header, weights = model_file.begin("propagator", propagator, propagator.settings, provenance)
    exact = _make_propagator(header, weights, torch.float64)
    header["golden"] = [_describe_stride(exact, *each) for each in golden]
    model_file.write(path, header, weights)


def load_propagator(path: str | Path, dtype: torch.dtype = torch.float32) -> PropagatorModel:
    """Reads a propagator from its file, or from the run folder that holds one, and tests it.

    Args:
        path: a file or a run folder.
        dtype: the precision of the network; positions and momenta are float64 in any case.

    Raises:
        ModelError: see `checkpoint.load_model`; or the file holds a potential.
    """
    path, header, weights = model_file.load(path, "propagator")
    try:
        exact = _make_propagator(header, weights, torch.float64)
        for index, stored in enumerate(header["golden"]):
            momenta = torch.tensor(stored["momenta"], dtype=torch.float64)
            found = _describe_stride(exact, model_file.system_of(stored), momenta)
            where = f"{path}, golden structure {index}"
            model_file.compare(stored, found, where, ("displacement", "impulse"))
        propagator = _make_propagator(header, weights, dtype).eval()
        return PropagatorModel(propagator, header["provenance"], path)
    except ModelError:
        raise
    except (*model_file.DAMAGE, MDLearnError) as error:
        raise model_file.unfit(path, error) from error


def _make_propagator(
    header: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> Propagator:
    settings = PropagatorSettings(**header["settings"])
    settings = settings._replace(closest=tuple((a, b, d) for a, b, d in settings.closest))
    propagator = Propagator(tuple(header["species"]), settings).to(dtype)
    propagator.load_state_dict(weights)
    return propagator


def _describe_stride(propagator: Propagator, system: System, momenta: Tensor) -> dict[str, Any]:
    """One golden structure of a propagator: geometry, momenta, and what a stride brings."""
    neighbors = build(system, propagator.cutoff)
    with torch.no_grad():
        displacement, impulse = propagate(propagator, system, momenta, neighbors)
    return model_file.geometry(system) | {
        "momenta": momenta.tolist(),
        "displacement": displacement.tolist(),
        "impulse": impulse.tolist(),
    }
