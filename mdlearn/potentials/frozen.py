"""Potentials that are no longer trained: the same energies and forces, by compiled loops.

A frozen potential stands for the one that it was made from, which alone can be trained, written and
asked for charges. No derivative is taken of it: the loops give forces themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from typing import TypeGuard

import torch
from torch import nn

from mdlearn.jit import COMPILER_ERRORS
from mdlearn.neighbors import build
from mdlearn.potentials.architectures import Sum
from mdlearn.potentials.composition import Composition
from mdlearn.potentials.equivariant import Equivariant
from mdlearn.potentials.evaluate import Evaluable, Frozen, evaluate
from mdlearn.potentials.frozen_equivariant import freeze_equivariant, has_loops
from mdlearn.potentials.frozen_painn import freeze_painn
from mdlearn.potentials.frozen_pairs import PAIRWISE, FrozenPairs, FrozenSum
from mdlearn.potentials.frozen_schnet import freeze_schnet
from mdlearn.potentials.network import ParametricPotential
from mdlearn.potentials.painn import PaiNN
from mdlearn.potentials.schnet import SchNet
from mdlearn.system import System

AGREEMENT = {torch.float32: 1e-5, torch.float64: 1e-9}
"""In eV/Å, or as a share of a force that is larger than 1 eV/Å; and in eV/atom likewise."""
OLDEST_TRITON = (3, 6)
"""That the kernels were tried with on a GPU."""
WITHOUT_TRITON = "kernels for a GPU take Triton 3.6 or later, which torch 2.11 brings with it"


def freeze(potential: ParametricPotential) -> Evaluable:
    """The fast form of a potential with its weights as they are now, or itself if it has none.

    There are loops for a CPU: for the default network, unless it is chiral, for SchNet and
    PaiNN, for functions of distances, and for sums of these with one of the networks. On a GPU
    there are kernels for the three networks alone.
    """
    device = potential.wall.start.device.type
    if device == "cuda" and _has_kernels(potential) and _has_triton():
        return _freeze_on_gpu(potential)
    if device != "cpu":
        return potential
    parts = list(potential.parts) if isinstance(potential, Sum) else [potential]
    looped = [part for part in parts if isinstance(part, (*PAIRWISE, Composition))]
    others = [part for part in parts if part not in looped]
    if not others and any(isinstance(part, PAIRWISE) for part in looped):
        return FrozenPairs(potential, looped, whole=True)
    network = _freeze_network(others[0]) if len(others) == 1 else None
    if network is None:
        return potential
    # The network has energies of isolated atoms, and walls.
    return FrozenSum([network, FrozenPairs(potential, looped, whole=False)]) if looped else network


def fastest(potential: ParametricPotential, structures: Iterable[System]) -> tuple[Evaluable, str]:
    """The frozen form of a potential, if it has one that agrees with it on some structures.

    To agree is to differ by rounding: then what the certificate says of the potential holds for its
    frozen form. Compiles loops where that has not been done yet.

    Returns:
        What to evaluate; and if that is the potential although there are loops for it, why.
    """
    frozen = freeze(potential)
    if frozen is potential:
        missing = potential.wall.start.device.type == "cuda" and _has_kernels(potential)
        return potential, WITHOUT_TRITON if missing else ""
    if isinstance(frozen, Frozen):
        frozen.begin_compiling()
    off = misgiving(frozen, potential, structures)
    return (potential if off else frozen), off


def misgiving(
    frozen: Evaluable, potential: ParametricPotential, structures: Iterable[System]
) -> str:
    """Why loops are not to be used for a potential, in words; empty if they are. Compiles them."""
    try:
        found = (disagreement(frozen, potential, each) for each in structures)
        return next(filter(None, found), "")
    except COMPILER_ERRORS as error:
        return f"no loops can be compiled ({type(error).__name__}: {error})"


def _freeze_network(network: nn.Module) -> Frozen | None:
    if isinstance(network, Equivariant) and has_loops(network):
        return freeze_equivariant(network)
    if isinstance(network, PaiNN):
        return freeze_painn(network)
    return freeze_schnet(network) if isinstance(network, SchNet) else None


def _has_kernels(potential: ParametricPotential) -> TypeGuard[Equivariant | SchNet | PaiNN]:
    if isinstance(potential, Equivariant):
        return has_loops(potential)
    return isinstance(potential, SchNet | PaiNN)


def _freeze_on_gpu(network: Equivariant | SchNet | PaiNN) -> Frozen:
    # Here, since there may be no Triton.
    if isinstance(network, Equivariant):
        from mdlearn.potentials.frozen_cuda_equivariant import FrozenEquivariantOnGPU

        return FrozenEquivariantOnGPU(network)
    from mdlearn.potentials.frozen_cuda_filters import FrozenFiltersOnGPU

    return FrozenFiltersOnGPU(network)


def _has_triton() -> bool:
    if find_spec("triton") is None:
        return False
    return tuple(int(each) for each in version("triton").split(".")[:2]) >= OLDEST_TRITON


def disagreement(frozen: Evaluable, potential: ParametricPotential, system: System) -> str:
    """By how much a frozen potential is off, in words; empty if only by rounding."""
    dtype, device = potential.wall.start.dtype, potential.wall.start.device
    system = System(*(each.to(device) for each in system))
    neighbors = build(system, potential.cutoff)
    ours, theirs = (evaluate(each, system, neighbors) for each in (frozen, potential))
    largest = theirs.forces.abs().max().clamp_min(1.0)
    force = float((ours.forces - theirs.forces).abs().max() / largest)
    alone = potential.elements.reference_energies(potential.elements.index(system.numbers))
    bound = (theirs.energies - alone).abs().max().clamp_min(1.0)
    energy = float((ours.energies - theirs.energies).abs().max() / bound)
    if force <= AGREEMENT[dtype] and energy <= AGREEMENT[dtype]:  # neither is NaN
        return ""
    return f"frozen forces are off by {force:.1e} and energies by {energy:.1e} of the largest"
