"""What is compiled is kept, away from the package; or is not, where nothing can be kept."""

from __future__ import annotations

import ast
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from checks import random_potential
from numpy.typing import NDArray
from scipy.linalg import cython_blas

import mdlearn
from mdlearn.jit import call, compiled, place_of
from mdlearn.potentials.kernels import learning
from mdlearn.potentials.learning import loops_of
from mdlearn.words import Words, kind_of

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


def test_another_environment_finds_them(tmp_path: Path) -> None:
    run(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(Path(mdlearn.__file__).parent, elsewhere / "mdlearn")
    before = f"""
import sys
sys.path.insert(0, "{elsewhere}")
import mdlearn
assert mdlearn.__file__ == "{elsewhere}/mdlearn/__init__.py"
"""
    assert run(tmp_path, before) == ["2.0", "1"]


SERVES = """
from mdlearn import jit
from mdlearn.potentials.kernels.atoms import total
import numpy as np
def work(answer, more):
    assert (answer, more) in (("yes", "and"), ("nothing", "and"))
    if answer == "nothing":
        return
    total(np.zeros(2, np.int64), np.eye(3)[None], np.ones(2), np.zeros((2, 3, 3)))
def serve():
    jit.serve(work)
"""


@pytest.mark.parametrize(
    ("processors", "answer", "hits"),
    [(2, "yes", "1"), (1, "yes", "0"), (2, "no", "0"), (2, "nothing", "0")],
)
def test_another_process_helps(tmp_path: Path, processors: int, answer: str, hits: str) -> None:
    """Where there is a processor for it; and where it fails, nothing is lost but time."""
    (tmp_path / "elsewhere.py").write_text(SERVES)
    before = f"""
import os
os.sched_getaffinity = lambda process: range({processors})
from mdlearn.jit import Helper
from mdlearn.potentials.kernels.atoms import total
helper = Helper("elsewhere.serve")
assert not helper.is_at(total)
helper.tell(total, "{answer}", "and")
assert helper.is_at(total) is {processors > 1}
helper.wait(total)
assert not helper.is_at(total)
"""
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert run(tmp_path, before, PYTHONPATH=path) == ["2.0", hits]


def test_another_process_finds_the_same_package(tmp_path: Path) -> None:
    """Not one that lies where the program was started, as Python would for a command."""
    (tmp_path / "mdlearn").mkdir()
    (tmp_path / "mdlearn" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "begin.py"
    script.write_text("""
from mdlearn.jit import HELPER
from mdlearn.lists import fill_rows
from mdlearn.potentials.beforehand import LISTS
HELPER.tell(fill_rows, LISTS)
assert HELPER.is_at(fill_rows)
HELPER.wait(fill_rows)
HELPER.tell(fill_rows, LISTS)
assert HELPER.process is None
""")
    path = str(Path(mdlearn.__file__).parents[1])
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": path}
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, str(script)]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300)


def test_what_dynamics_takes_is_compiled_without_torch(tmp_path: Path) -> None:
    """A process that only compiles begins sooner; and it is what is asked for later."""
    compile_ = """
import sys
from mdlearn.potentials import beforehand
for what in (beforehand.LISTS, beforehand.MOTION):
    beforehand.compile_(what)
assert "torch" not in sys.modules
"""
    use = """
from ase.build import molecule
from mdlearn.atoms import to_system
from mdlearn.jit import HELPER, place_of
from mdlearn.lists import fill_rows
from mdlearn.neighbors import build
from mdlearn.potentials import beforehand
from mdlearn.potentials.kernels.motion import arrive
from mdlearn.words import forms_of
for what in (beforehand.LISTS, beforehand.MOTION):
    beforehand.begin(what)
assert HELPER.process is None
build(to_system(molecule("H2O")), 3.0)
place_of(arrive, *forms_of(arrive))
for function in (fill_rows, arrive):
    assert function.stats.cache_hits
    assert not function.stats.cache_misses
"""
    run(tmp_path, compile_)
    run(tmp_path, use)


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


def test_nothing_is_kept_where_nothing_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("mdlearn.jit._folder", lambda: tmp_path / "file")

    def double(x: float) -> float:
        return 2.0 * x

    assert compiled()(double)(1.5) == 3.0


def test_what_is_typed_in_is_not_kept(tmp_path: Path) -> None:
    before = """
from mdlearn.jit import compiled
scope = {}
exec(compile("def double(x): return 2.0 * x", "<stdin>", "exec"), scope)
assert compiled()(scope["double"])(1.5) == 3.0
"""
    assert run(tmp_path, before)[0] == "2.0"


def test_matrix_products_have_no_threads_of_their_own() -> None:
    library = ctypes.CDLL(cython_blas.__file__)  # of a wheel of scipy, with OpenBLAS in it
    library.scipy_openblas_set_num_threads(2)
    assert library.scipy_openblas_get_num_threads() == 2
    assert loops_of(random_potential("equivariant").float()) is not None
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
    """Else the code of a function depends on whether it was compiled here or read from disk.

    Where nothing may be done to its arithmetic, it gives the same bits all the same.
    """
    trees = {
        path: ast.parse(path.read_text()) for path in Path(mdlearn.__file__).parent.rglob("*.py")
    }
    modules = {path: _compiled(tree) for path, tree in trees.items()}
    names = {
        ".".join(path.relative_to(Path(mdlearn.__file__).parents[1]).with_suffix("").parts): path
        for path in trees
    }
    calls = 0

    def is_exact(name: str, known: dict[str, tuple[ast.FunctionDef, set[str]]]) -> bool:
        function, options = known[name]
        called = {
            ast.unparse(each.func) for each in ast.walk(function) if isinstance(each, ast.Call)
        }
        others = called & known.keys() - {name}
        return "fastmath" not in options and all(is_exact(each, known) for each in others)

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
                    is_part = "inner" in known[called][1]
                    assert is_part or is_exact(called, known), f"{path}: {name} calls {called}"
    assert calls > 50


def test_inner_functions_become_part_of_their_callers() -> None:
    dispatcher: Any = learning.hear
    assert dispatcher.targetoptions["forceinline"] is True


class Few(NamedTuple):
    """A part of what a function is given in memory."""

    count: int
    weights: NDArray[Any]


class Several(NamedTuple):
    """What a function is given in memory."""

    rows: NDArray[Any]
    sums: NDArray[Any]
    factor: float
    parts: tuple[NDArray[Any], int]
    few: Few


@compiled(inner=True)
def _weigh(few: Few, sums: NDArray[Any]) -> None:
    for n in range(few.count):
        sums[n] *= few.weights[n]


@compiled(placed=True)
def _read(value: Several) -> None:
    sums = value.sums
    for n in range(value.rows.shape[0]):
        for k in range(value.rows.shape[1]):
            sums[n] += value.factor * value.rows[n, k]
    sums[0] += value.parts[1] * value.parts[0][1, 0, 1]
    _weigh(value.few, sums)


@compiled()
def _tell(place: int, value: int) -> None:
    call(place, (value,))


def test_functions_read_what_is_written_down_as_words() -> None:
    rows, sums = np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros(2)
    parts = (np.arange(8, dtype=np.float32).reshape(2, 2, 2), -3)
    value = Several(rows, sums, -0.5, parts, Few(2, np.array([2.0, 3.0])))
    words = Words(value)
    place = place_of(_read, kind_of(value))
    _tell(place, words.address)
    assert sums.tolist() == [2.0 * (-0.5 * 3.0 - 3 * 5.0), 3.0 * (-0.5 * 12.0)]
    words.renew(value._replace(rows=2.0 * rows), 1)
    sums[:] = 0.0
    _tell(place, words.address)
    assert sums.tolist() == [2.0 * (-0.5 * 6.0 - 3 * 5.0), 3.0 * (-0.5 * 24.0)]


def test_a_tuple_in_memory_has_only_the_parts_it_is_made_of() -> None:
    @compiled(placed=True, keep=False)
    def read(value: Any) -> None:
        value.weights[0] = value.missing

    kind = kind_of(Few(2, np.zeros(2)))
    with pytest.raises(numba.core.errors.TypingError, match="Unknown attribute 'missing'"):
        place_of(read, kind)


def test_parts_are_not_made_machine_code_of_themselves() -> None:
    sums = np.array([1.0, 1.0])
    few = Words(Few(2, np.array([2.0, 3.0])))
    place = place_of(_use, kind_of(few.value), sums)
    assert place != 0
    dispatcher: Any = _weigh
    (made,) = dispatcher.overloads.values()
    assert made.library.get_pointer_to_function(made.fndesc.llvm_func_name) == 0


@compiled(placed=True, keep=False)
def _use(few: Few, sums: NDArray[Any]) -> None:
    _weigh(few, sums)
