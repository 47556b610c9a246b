"""What all tests share: asserts that explain themselves, one thread, fixed seeds."""

from __future__ import annotations

import math
import os
import sys

# Before torch is imported anywhere: small tensors gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Before Triton is imported anywhere: without a GPU, kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.register_assert_rewrite("checks")

from checks import (  # noqa: E402
    CUTOFF,
    REFERENCE_ENERGIES,
    SPECIES,
    Run,
    crystal,
    molecule,
    random_schnet,
)

from mdlearn import cli  # noqa: E402
from mdlearn.atoms import to_system  # noqa: E402
from mdlearn.potentials.architectures import make_potential  # noqa: E402
from mdlearn.potentials.checkpoint import save_model  # noqa: E402
from mdlearn.potentials.network import Settings  # noqa: E402

settings.register_profile("mdlearn", deadline=None, max_examples=10, derandomize=True)
settings.load_profile("mdlearn")


@pytest.fixture(autouse=True)
def _as_if_alone() -> None:
    """No test has the random numbers or the threads of the one before it.

    More threads than cores wait for one another in circles: some tests took twenty times as long.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of a small random network, for all tests that only read it."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    network = random_schnet(scale=0.5)
    golden = [to_system(molecule()), to_system(crystal())]
    save_model(path, network, {"data": "random weights"}, golden)
    return path


@pytest.fixture(scope="session")
def lennard_jones_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of Lennard-Jones, with a different depth for each pair of elements."""
    settings = Settings("lennard-jones", CUTOFF, 1, 1, 1, average_neighbors=8.0, scale=1.0)
    network = make_potential(SPECIES, REFERENCE_ENERGIES, settings).double()
    network.get_parameter("log_sigma").data.fill_(math.log(1.1))
    depths = torch.tensor([[0.1, 0.2, 0.3], [0.2, 0.15, 0.1], [0.3, 0.1, 0.25]])
    network.get_parameter("log_epsilon").data.copy_(depths.log())
    path = tmp_path_factory.mktemp("lennard-jones") / "model.safetensors"
    save_model(path, network, {}, [])
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb in this process; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mdlearn", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, output.out, output.err

    return call
