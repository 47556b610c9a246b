"""The floor plan: who may import whom, and what never happens below the driver."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mdlearn

ROOT = Path(mdlearn.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
"""Path of each module by its name below `mdlearn`."""

BELOW = (
    "units",
    "errors",
    "system",
    "search",
    "neighbors",
    "division",
    "integrators",
    "potentials",
)
"""Only torch, numpy and the search; pure functions, no files."""
LIBRARIES_BELOW = {"torch", "numpy", "vesin"}
CORE = {
    "system",
    "neighbors",
    "units",
    "errors",
    "jit",
    "words",
    "lists",
    "lanes",
    "matrices",
    "meeting",
    "graph",
    "chain",
}
ALLOWED = {
    "units": set[str](),
    "errors": set[str](),
    "system": {"units", "errors"},
    "search": {"system", "errors", "lists"},
    "neighbors": {"search", "system", "lists"},
    "division": {"neighbors", "system"},
    "potentials": {"potentials", "division", *CORE},
    "integrators": {"integrators", *CORE},
    "guards": {"integrators", "potentials.wall", "potentials.kernels.usage", *CORE},
    "trips": {"guards", "integrators", *CORE},
    "momenta": {"system", "jit"},
    "launched": {"integrators", "potentials.frozen_cuda", "potentials.kernels", *CORE},
    "recorded": {
        "guards",
        "integrators",
        "launched",
        "potentials.elements",
        "potentials.evaluate",
        "potentials.frozen_cuda",
        "potentials.kernels",
        *CORE,
    },
    "looped": {
        "guards",
        "integrators",
        "potentials.frozen_network",
        "potentials.kernels",
        *CORE,
    },
    "steps": {"guards", "integrators", "looped", "recorded", *CORE},
    "simulate": {
        "guards",
        "trips",
        "momenta",
        "steps",
        "integrators",
        "potentials.evaluate",
        *CORE,
    },
    "minimize": {"simulate", "integrators", "potentials.evaluate", *CORE},
    "timestep": {"simulate", "momenta", "integrators", "potentials.evaluate", *CORE},
    "probes": CORE,
    "certificate": {"probes", "simulate", "momenta", "integrators", "potentials", *CORE},
    "labels": CORE,
    "atoms": {"labels", "packed", *CORE},
    "doctor": {"doctor", "atoms", "labels", "packed", *CORE},
    "calculator": {"atoms", "potentials", "device", *CORE},
    "training": {
        "training",
        "certificate",
        "potentials",
        "atoms",
        "labels",
        "doctor",
        "packed",
        "report",
        "config",
        "device",
        "files",
        *CORE,
    },
}
CHECKPOINTS = [
    f"potentials.{name}" for name in ("checkpoint", "propagator_checkpoint", "model_file")
]
"""Models in files; the only ones below the driver that know what a file is."""
FILES_FOR_CHECKPOINTS = {"files"}

ON_A_GPU = {
    "potentials.frozen_cuda",
    "potentials.frozen_cuda_equivariant",
    "potentials.frozen_cuda_filters",
}
HOT = [name for name in MODULES if name.split(".")[0] in ("integrators", "potentials")]
# What is frozen, and what learns in loops, computes on a CPU, where a tensor is an array and nobody
# waits; weights are looked at once. On a GPU nothing may wait.
HOT = [
    name
    for name in HOT
    if name not in (*CHECKPOINTS, "potentials.learning")
    and ("frozen" not in name or name in ON_A_GPU)
]
USE_OF_AN_OPERATOR = """
import torch
from mdlearn.potentials.pairs import _gather
zero = torch.zeros(1, 1, dtype=torch.int64)
_gather(torch.ones(1, 1), zero, zero)
"""
SYNCHRONIZES = {"item", "nonzero", "masked_select", "cpu", "numpy", "argwhere", "unique"}
CASTS = {"bool", "float", "int"}


def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(node: ast.AST, own: str) -> set[str]:
    """Every module that is imported, by full name; those under TYPE_CHECKING do not run."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{own}: relative import"
            names = {f"{child.module}.{alias.name}" for alias in child.names}
            # `from mdlearn import units` names a module, `from mdlearn.units import fs` does not.
            modules = {each for each in names if each.removeprefix("mdlearn.") in MODULES}
            found |= modules or {str(child.module)}
        else:
            found |= imports(child, own)
    return found


def inside(name: str) -> set[str]:
    """Modules of the package that a module imports, by their names below `mdlearn`."""
    found = imports(tree(name), name)
    return {each.removeprefix("mdlearn.") for each in found if each.startswith("mdlearn.")}


def outside(name: str) -> set[str]:
    """Libraries that a module imports, by the name of their top package."""
    tops = {each.split(".")[0] for each in imports(tree(name), name)}
    return tops - {"mdlearn"} - set(sys.stdlib_module_names)


def covers(allowed: set[str], name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] in ALLOWED])
def test_imports_go_one_way(name: str) -> None:
    allowed = ALLOWED[name.split(".")[0]]
    if name in CHECKPOINTS:
        allowed = allowed | FILES_FOR_CHECKPOINTS
    wrong = {each for each in inside(name) if not covers(allowed, each)}
    assert not wrong, f"mdlearn.{name} may not import {wrong}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] in BELOW])
def test_below_the_driver_there_is_only_torch(name: str) -> None:
    allowed = LIBRARIES_BELOW | ({"safetensors"} if name in CHECKPOINTS else set())
    if name.startswith("potentials.kernels."):
        allowed = {"triton", "torch"} if "triton" in name else {"numpy"}
    assert outside(name) <= allowed
    forbidden = {"logging", "pathlib", "os", "shutil", "io", "tempfile", "sys", "time", "random"}
    if name in CHECKPOINTS:
        forbidden -= {"pathlib"}
    assert not imports(tree(name), name) & forbidden
    calls = {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}
    assert not calls & {"open", "print", "input"}


def test_the_driver_knows_no_files_and_no_screen() -> None:
    assert outside("simulate") == {"torch", "numpy"}
    assert not imports(tree("simulate"), "simulate") & {"logging", "pathlib", "os", "time"}


def test_only_the_command_line_knows_click() -> None:
    users = {name for name in MODULES if "click" in outside(name)}
    assert users
    assert all(name.split(".")[0] in ("cli", "__main__") for name in users)
    assert not any(
        covers({"cli"}, each)
        for name in MODULES
        if name.split(".")[0] not in ("cli", "__main__")
        for each in inside(name)
    )


def test_derivatives_are_taken_in_few_places() -> None:
    """By where atoms are, also if kernels of a GPU know that; and by what a network has learned."""
    users = set()
    for name in MODULES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("autograd.grad"):
                users.add(name)
            if isinstance(node, ast.ImportFrom) and node.module in ("torch.autograd", "torch.func"):
                users.add(name)
    by_positions = {"potentials.evaluate", "potentials.frozen_cuda_filters"}
    assert users == by_positions | {"training.recorded"}


@pytest.mark.parametrize("name", HOT)
def test_a_step_never_waits_for_a_value(name: str) -> None:
    for node in ast.walk(tree(name)):
        if not isinstance(node, ast.Call):
            continue
        where = f"mdlearn.{name}, line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node.func, ast.Attribute):
            assert node.func.attr not in SYNCHRONIZES, where
        elif isinstance(node.func, ast.Name):
            assert node.func.id not in CASTS, where


@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("neighbors", "pair_vectors"),
        ("neighbors", "_moved_by_operations"),
        ("guards", "_shares_by_operations"),
    ],
)
def test_what_else_a_step_does_on_a_device_never_waits(module: str, function: str) -> None:
    (found,) = [
        node
        for node in tree(module).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    calls = [node.func for node in ast.walk(found) if isinstance(node, ast.Call)]
    assert not {c.attr for c in calls if isinstance(c, ast.Attribute)} & SYNCHRONIZES
    assert not {c.id for c in calls if isinstance(c, ast.Name)} & CASTS


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mdlearn", "torch ase numpy click h5py rich"),
        ("import mdlearn.units, mdlearn.errors", "torch ase numpy click"),
        # vesin loads ase by itself where it is installed, so ase cannot be asked for here.
        ("import mdlearn.simulate", "click h5py rich safetensors"),
        (USE_OF_AN_OPERATOR, "torch._dynamo sympy"),
    ],
)
def test_import_is_light(statement: str, absent: str) -> None:
    code = f"{statement}\nimport sys\nprint([n for n in {absent.split()} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    for name in mdlearn.__all__:
        assert getattr(mdlearn, name).__name__ == name
    with pytest.raises(AttributeError, match="ghost"):
        _ = mdlearn.ghost
