"""From atomic energies to everything else. The only derivative by positions is taken here.

A potential gives the energy of each atom as a function of pair vectors r[n,k] (from atom n to its
k-th neighbor). One backward pass gives g = dE/dr, and with it

    forces            F[n] = sum_k (g[n,k] - g.flat[reverse[n,k]])
    atomic virials    W[n] = sum_k r[n,k] ⊗ g[n,k]
    stress            σ = sum_n W[n] / V

Newton's third law holds by construction, and a strain never has to be built: a homogeneous strain ε
turns r into r(1 + ε), so that dE/dε = sum r ⊗ g. The sign is ASE's: σ = (1/V) dE/dε, negative for a
system that wants to expand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mdlearn.neighbors import LOOPED_SKIN, Neighbors, pair_vectors
from mdlearn.potentials.pairs import transpose_sum
from mdlearn.potentials.threads import Team, leave_one_thread
from mdlearn.system import Evaluation, System, share_out, sum_by_system, volume

MANY_PAIRS = 20_000
"""More than these are shared by all threads without a trial, which would take half a second."""


class Potential(Protocol):
    """The contract of every potential; the implementations are modules of torch.

    It sees geometry only through pair vectors, so it is invariant under translation by
    construction. The influence of a pair goes to zero with two continuous derivatives at `cutoff`
    and is zero beyond. An atom without neighbors has the energy of its isolated element, exactly.
    """

    cutoff: float
    """Å."""
    species: tuple[int, ...]
    """Atomic numbers that it was built for."""

    def __call__(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> Tensor:
        """Numbers (n_atoms,) and r (n_atoms, K, 3) Å -> atomic energies (n_atoms,) eV."""
        ...


class Frozen(ABC):
    """A potential that gives forces by itself, faster than by `Potential` and a derivative of it.

    It is made by `frozen.freeze` from a potential that stays as it is, and agrees with that.
    """

    cutoff: float
    """Å."""
    species: tuple[int, ...]
    """Atomic numbers that it was built for."""
    summands: Sequence[Frozen] = ()
    """Of a sum."""
    skins = (LOOPED_SKIN, 0.0)
    """That its lists for dynamics have at the least, see `neighbors.choose_skin`."""

    def __init__(self) -> None:
        """Has nobody yet to share work."""
        self.team = Team()
        """The threads that share an evaluation, on a CPU; their number changes no bits."""
        self.most = 0
        """That there may be, once that is known."""

    @abstractmethod
    def evaluate(self, system: System, neighbors: Neighbors) -> Evaluation:
        """What `evaluate` says; how virials are shared out to atoms is the frozen potential's."""

    @abstractmethod
    def workspace(self, n_atoms: int, capacity: int) -> int:
        """Bytes that an evaluation works in, besides its list of so many slots per atom."""

    def begin_compiling(self) -> None:
        """Has another process begin with what is to be compiled, if it is going to be needed."""
        for each in self.summands:
            each.begin_compiling()

    def choose_threads(self, system: System, neighbors: Neighbors) -> None:
        """Settles how many threads share an evaluation of batches like this one, with its pairs.

        Up to as many as torch had are tried, and all taken where there is enough for all to do.
        Torch is left one: its own would wait for its next operation on the cores that these need.
        """
        self.most = self.most or torch.get_num_threads()
        torch.set_num_threads(1)
        if neighbors.j.numel() > MANY_PAIRS:
            self.team.size = self.most
        else:
            self.team.measure(self.most, lambda: self.evaluate(system, neighbors))


Evaluable = Potential | Frozen


class Multipoles(NamedTuple):
    """How charge is distributed in a batch of systems, as far as a network tells."""

    charges: Tensor
    """(n_atoms,) e; they sum to the charge of each system."""
    dipole: Tensor
    """(n_systems, 3) e Å, from negative to positive, about the origin."""


class Multipolar(Protocol):
    """A network that tells charges and atomic dipoles."""

    def multipoles(self, numbers: Tensor, r: Tensor, neighbors: Neighbors) -> tuple[Tensor, Tensor]:
        """Charges (n_atoms,) e, whatever their sum, and atomic dipoles (n_atoms, 3) e Å."""
        ...


def evaluate_multipoles(network: Multipolar, system: System, neighbors: Neighbors) -> Multipoles:
    """Charges of atoms and dipoles of systems.

    What the charges of a system lack is shared out evenly among its atoms. The dipole is
    μ = sum_n (q[n] x[n] + μ[n]) with unwrapped positions x and atomic dipoles μ[n]: it turns with
    the system; a shift by t adds Q t for a system with charge Q, and nothing for a neutral one. In
    a periodic system it depends on which image of each atom is meant.

    Args:
        network: one with the heads for it.
        system: the batch.
        neighbors: its pairs, up to at least the network's cutoff.
    """
    r = pair_vectors(system, neighbors)
    raw, dipoles = network.multipoles(system.numbers, r, neighbors)
    n_atoms = sum_by_system(torch.ones_like(raw), system)
    charges = raw + share_out((system.charge - sum_by_system(raw, system)) / n_atoms, system)
    return Multipoles(charges, sum_by_system(charges[:, None] * system.positions + dipoles, system))


def evaluate(
    potential: Evaluable,
    system: System,
    neighbors: Neighbors,
    *,
    create_graph: bool = False,
) -> Evaluation:
    """Energy, forces and stress of a batch.

    Args:
        potential: gives the energy of each atom, or is frozen.
        system: the batch.
        neighbors: its pairs, up to at least the potential's cutoff.
        create_graph: keep what is needed to differentiate the results by the potential's
            parameters, as the loss of a training does. The results are plain numbers otherwise,
            and always from a frozen potential.
    """
    if isinstance(potential, Frozen):
        return potential.evaluate(system, neighbors)
    r = pair_vectors(system, neighbors).detach()
    energies, g = differentiate(potential, system.numbers, r, neighbors, create_graph=create_graph)
    evaluation = assemble(system, neighbors, r, energies, g)
    if create_graph:
        return evaluation
    return Evaluation(*(each.detach() for each in evaluation))


def differentiate(
    potential: Potential,
    numbers: Tensor,
    r: Tensor,
    neighbors: Neighbors,
    chosen: Tensor | None = None,
    *,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Energies of atoms, and the derivative of their sum by pair vectors.

    Args:
        potential: gives the energies.
        numbers: (n_atoms,) atomic numbers.
        r: (n_atoms, K, 3) Å, pair vectors; is given a gradient.
        neighbors: the pairs.
        chosen: (P,) indices of the atoms that count; all of them if None.
        create_graph: see `evaluate`.

    Returns:
        (P,) eV and (n_atoms, K, 3) eV/Å.
    """
    r.requires_grad_()
    with torch.enable_grad():
        energies = potential(numbers, r, neighbors)
        energies = energies if chosen is None else energies[chosen]
        (g,) = torch.autograd.grad(energies.sum(), r, create_graph=create_graph)
    return energies, g


def assemble(
    system: System, neighbors: Neighbors, r: Tensor, energies: Tensor, g: Tensor
) -> Evaluation:
    """What follows from the energies of atoms and their derivatives by pair vectors.

    Args:
        system: the batch.
        neighbors: its pairs.
        r: (n_atoms, K, 3) Å, pair vectors.
        energies: (n_atoms,) eV.
        g: (n_atoms, K, 3) eV/Å, derivatives of their sum.
    """
    forces = g.sum(1) - transpose_sum(g, neighbors)
    virials = (r[..., None] * g[..., None, :]).sum(1)
    space = volume(system)[:, None, None]
    stress = sum_by_system(virials, system) / torch.where(space > 0.0, space, torch.nan)
    return Evaluation(sum_by_system(energies, system), forces, stress, energies, virials)


def choose_threads(
    potential: Evaluable, system: System, neighbors: Neighbors, pairs: float
) -> None:
    """Settles how many threads share an evaluation.

    Args:
        potential: if it is frozen, threads change no bits, and their number is measured.
        system: a batch to measure with,
        neighbors: and its list.
        pairs: of all that is to be evaluated. What autograd is given may change bits, so for a run
            that is resumed this is to be what it was at its start.
    """
    if isinstance(potential, Frozen):
        potential.choose_threads(system, neighbors)
    else:
        leave_one_thread(pairs)


def kept_for_derivatives(
    potential: Potential, system: System, neighbors: Neighbors, *, create_graph: bool = False
) -> dict[int, int]:
    """Bytes that an evaluation keeps for derivatives, by address; see `evaluate`.

    Weights are among it, which are there anyway.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluate(potential, system, neighbors, create_graph=create_graph)
    return kept
