"""A model as a calculator of ASE, and so inside everything that speaks ASE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mdlearn.atoms import require_species, to_system
from mdlearn.device import PRECISIONS, choose_device
from mdlearn.neighbors import SKIN, Neighbors, build, moved_since_build
from mdlearn.potentials.checkpoint import load_model
from mdlearn.potentials.evaluate import evaluate, evaluate_multipoles
from mdlearn.potentials.frozen import fastest
from mdlearn.system import System


class MDLearnCalculator(Calculator):
    """Energies, forces and stress of a model of mdlearn.

    `free_energy` equals `energy`: the forces are its exact derivative. Stress is there for systems
    that have a cell with a volume. Models that were trained on dipoles also give the dipole (e Å,
    about the origin) and charges of atoms, which sum to `atoms.info["charge"]` or zero. The
    neighbor list is kept while no atom moves by more than half the skin.

    Example:
        >>> atoms.calc = MDLearnCalculator("ethanol-run")
        >>> atoms.get_forces()  # eV/Å
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012  declared so by ASE

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        precision: str = "mixed",
    ) -> None:
        """Loads a model.

        Args:
            model: a model file, or the run folder that holds one.
            device: auto, cpu or cuda.
            precision: mixed (float32 network, float64 positions and sums) or float64.

        Raises:
            ModelError: the model cannot be read.
            ResourceError: there is no such device.
        """
        Calculator.__init__(self)
        self.device = choose_device(device)
        loaded = load_model(model, PRECISIONS[precision])
        self.network = loaded.network.to(self.device)
        if self.network.settings.dipole:
            self.implemented_properties = [*self.implemented_properties, "dipole", "charges"]
        self.potential, _ = fastest(self.network, loaded.golden)
        self._neighbors: Neighbors | None = None
        self._identity: tuple[Any, ...] = ()

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluates the model; called by ASE.

        Raises:
            ModelError: an element that the model does not know.
            DataError, UnstableError: see `neighbors.build`.
            PropertyNotImplementedError: stress of a system without a volume.
        """
        Calculator.calculate(self, atoms, properties, system_changes)
        assert self.atoms is not None
        system = System(*(each.to(self.device) for each in to_system(self.atoms)))
        require_species(self.network.species, system, "atoms")
        identity = (tuple(self.atoms.numbers), tuple(self.atoms.pbc))
        if (
            self._neighbors is None
            or identity != self._identity
            or not bool(moved_since_build(system, self._neighbors) <= SKIN / 2)
        ):
            self._neighbors = build(system, self.network.cutoff, SKIN)
            self._identity = identity
        evaluation = evaluate(self.potential, system, self._neighbors)
        energy = float(evaluation.energy)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": evaluation.energies.cpu().numpy(),
            "forces": evaluation.forces.cpu().numpy(),
        }
        if self.network.settings.dipole:
            with torch.no_grad():
                multipoles = evaluate_multipoles(self.network, system, self._neighbors)
            self.results["charges"] = multipoles.charges.cpu().numpy()
            self.results["dipole"] = multipoles.dipole[0].cpu().numpy()
        stress = evaluation.stress[0].cpu().numpy()
        if not torch.isnan(evaluation.stress).any():
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)
        elif "stress" in properties:
            raise PropertyNotImplementedError(
                "stress needs a cell with a volume; these atoms have none"
            )
