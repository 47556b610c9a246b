"""What is compiled is kept, away from the package; or is not, where nothing can be kept."""

from __future__ import annotations

import ast
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checks import random_potential
from scipy.linalg import cython_blas

import mdlearn
from mdlearn.potentials.frozen import freeze
from mdlearn.potentials.kernels import learning

CODE = """
from mdlearn.potentials.kernels.atoms import total
import numpy as np
energy, _ = total(np.zeros(2, np.int64), np.eye(3)[None], np.ones(2), np.zeros((2, 3, 3)))
print(energy[0], total.stats.cache_hits.total())
"""


def run(folder: Path, before: str = "", **variables: str) -> list[str]:
    """The sum of two ones, and how often it was read from disk; after something else."""
    environment = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    environment |= {"XDG_CACHE_HOME": str(folder), "HOME": str(folder)} | variables
    command = [sys.executable, "-W", "error", "-c", before + CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.split()


def test_compiled_functions_are_kept(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path)
    assert first[0] == second[0] == "2.0"
    assert (first[1], second[1]) == ("0", "1")
    assert list(tmp_path.glob("mdlearn/**/*.nbi"))


@pytest.mark.parametrize(
    ("processors", "works", "hits"), [(2, True, "1"), (1, True, "0"), (2, False, "0")]
)
def test_another_process_helps(tmp_path: Path, processors: int, works: bool, hits: str) -> None:
    """Where there is a processor for it; and where it fails, nothing is lost but time."""
    script = tmp_path / "compile.py"
    script.write_text(CODE if works else "raise ValueError")
    before = f"""
from mdlearn.jit import helped
from mdlearn.potentials.kernels.atoms import total
with helped(total, {processors}, "runpy.run_path", {str(script)!r}):
    pass
"""
    assert run(tmp_path, before) == ["2.0", hits]


def test_what_is_kept_is_of_these_sources(tmp_path: Path) -> None:
    """Also where only a function has changed that is compiled into others, of another file."""
    shutil.copytree(Path(mdlearn.__file__).parent, tmp_path / "mdlearn")
    code = "from mdlearn.jit import _folder; print(_folder())"

    def folder() -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout

    before = folder()
    assert folder() == before
    with (tmp_path / "mdlearn/potentials/kernels/pair.py").open("a") as file:
        file.write("# changed\n")
    assert folder() != before


def test_numba_may_be_told_where(tmp_path: Path) -> None:
    run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "there"))
    assert list(tmp_path.glob("there/**/*.nbi"))


def test_nothing_is_kept_where_nothing_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CacheImpl

    from mdlearn.jit import compiled

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    def double(x: float) -> float:
        return 2.0 * x

    assert compiled()(double)(1.5) == 3.0


def test_matrix_products_have_no_threads_of_their_own() -> None:
    library = ctypes.CDLL(cython_blas.__file__)  # of a wheel of scipy, with OpenBLAS in it
    library.scipy_openblas_set_num_threads(2)
    assert library.scipy_openblas_get_num_threads() == 2
    freeze(random_potential("equivariant"))
    assert library.scipy_openblas_get_num_threads() == 1


def _compiled(tree: ast.Module) -> dict[str, tuple[ast.FunctionDef, set[str]]]:
    """Compiled functions of a module, and which options each has."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            for each in node.decorator_list:
                if isinstance(each, ast.Call) and ast.unparse(each.func) == "compiled":
                    found[node.name] = node, {str(option.arg) for option in each.keywords}
    return found


def test_what_compiled_functions_call_becomes_part_of_them() -> None:
    """Else the code of a function depends on whether it was compiled here or read from disk."""
    trees = {
        path: ast.parse(path.read_text()) for path in Path(mdlearn.__file__).parent.rglob("*.py")
    }
    modules = {path: _compiled(tree) for path, tree in trees.items()}
    names = {
        ".".join(path.relative_to(Path(mdlearn.__file__).parents[1]).with_suffix("").parts): path
        for path in trees
    }
    calls = 0
    for path, functions in modules.items():
        known = dict(functions)
        for node in ast.walk(trees[path]):
            if isinstance(node, ast.ImportFrom) and node.module in names:
                there = modules[names[node.module]]
                known |= {each.name: there[each.name] for each in node.names if each.name in there}
        for name, (function, options) in functions.items():
            if "keep" in options:  # made from other functions, and compiled anew by each process
                continue
            for node in ast.walk(function):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if called in known and called != name:
                    calls += 1
                    assert known[called][1] & {"inner", "merge"}, f"{path}: {name} calls {called}"
    assert calls > 50


def test_inner_functions_become_part_of_their_callers() -> None:
    dispatcher: Any = learning.hear
    assert dispatcher.targetoptions["forceinline"] is True
