"""Functions that Numba compiles for the processor at hand, and keeps on disk where it can."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import llvmlite.binding
import numba
from numba.core import cgutils, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic
from scipy.linalg import cython_blas

# A pass that takes a fifth of the time to compile a large function, and makes no loop here faster.
llvmlite.binding.set_option("", "--disable-lsr")
config: Any = numba.config  # which makes its entries when it is imported
njit: Any = numba.njit  # whose types know few of its options
Function = TypeVar("Function", bound=Callable[..., Any])
COMPILER_ERRORS = (NumbaError, RuntimeError)
"""Where a function cannot be compiled; the second is of LLVM."""


def compiled(
    *,
    fastmath: Collection[str] = (),
    nogil: bool = False,
    error_model: Literal["python", "numpy"] = "python",
    keep: bool = True,
    inner: bool = False,
    merge: bool = False,
) -> Callable[[Function], Function]:
    """A decorator: the function is compiled when it is first called with arguments of some types.

    What is compiled is kept in the user's folder for such things, `~/.cache/mdlearn`, or where
    `NUMBA_CACHE_DIR` says; not beside the package, as Numba would have it, where it would outlive
    an uninstallation. Where no folder can be written to, every process compiles anew.

    Args:
        fastmath: what may be done to floating-point arithmetic, in LLVM's words.
        nogil: other threads may run Python meanwhile.
        error_model: `python` raises where a number is divided by zero, `numpy` does not.
        keep: on disk; not what is made from other functions.
        inner: only called by compiled functions, and made a part of each of them, which are kept;
            so it is nothing to its bits in which process it was compiled. What is called by name is
            linked to code of that name: where it has just been compiled, to its own, and where its
            caller was loaded from disk, to what was optimized once more along with that.
        merge: with the function that calls it, and with its options for `fastmath`. A caller is
            compiled together with all that it calls, once more after that was compiled by itself:
            what has a single caller need not be.
    """
    permitted = set(fastmath) or False

    def decorate(function: Function) -> Function:
        def make(cache: bool) -> Any:
            options = njit(
                cache=cache,
                fastmath=permitted,
                nogil=nogil,
                error_model=error_model,
                inline="always" if merge else "never",
                forceinline=inner,
                no_cpython_wrapper=inner or merge,
                no_cfunc_wrapper=True,
            )
            return options(function)

        given = config.CACHE_DIR
        config.CACHE_DIR = given or str(_folder())
        try:
            dispatcher: Function = make(keep and not (inner or merge))
        except RuntimeError:  # there is no place for a cache
            dispatcher = make(False)
        finally:
            config.CACHE_DIR = given
        return dispatcher

    return decorate


def place_of(function: Any, *arguments: Any) -> int:
    """Where a function is in memory that is compiled, or was, for such arguments; for `call`."""
    signature = tuple(map(numba.typeof, arguments))
    function.compile(signature)
    made = function.overloads[signature]
    place: int = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    return place


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a compiled function may call: given types, it gives a signature, and writes code."""
    return intrinsic(function)


@instruction
def call(typing: Any, place: Any, arguments: Any) -> Any:
    """Calls a function at a place in memory, which returns nothing, with the parts of a tuple.

    Called by its name it would be compiled once more, together with its caller.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        calling, kinds = context.call_conv, tuple(arguments)
        kind = calling.get_function_type(types.none, kinds)
        function = builder.inttoptr(given[0], kind.as_pointer())
        parts = cgutils.unpack_tuple(builder, given[1])
        status, _ = calling.call_function(builder, function, types.none, kinds, parts)
        with cgutils.if_unlikely(builder, status.is_error):
            calling.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), generate


@contextmanager
def helped(function: Any, processors: int, action: str, *arguments: str) -> Iterator[None]:
    """Meanwhile another process compiles a function, unless some of it is kept on disk already.

    Whoever needs the function then asks for it as ever: if the other process has failed, nothing is
    kept, and it is compiled once more.

    Args:
        function: the function.
        processors: that there are; for one it is not worth it.
        action: the name of what compiles it, with the module,
        arguments: and what that is given.
    """
    folder, source = function.stats.cache_path, function.py_func
    name = f"{Path(source.__code__.co_filename).stem}.{source.__qualname__}-*.nbi"
    kept = folder is None or any(Path(folder).glob(name))
    if kept or processors == 1 or not sys.executable:  # none where Python is a part of a program
        yield
        return
    module, verb = action.rsplit(".", 1)
    command = [sys.executable, "-c", f"from {module} import {verb}; {verb}(*{arguments})"]
    nowhere = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere):
        yield


def keep_blas_on_one_thread() -> None:
    """Has matrix products in compiled functions stay on the thread that asks for them.

    They are products of scipy's BLAS. OpenBLAS shares out larger ones among threads of its own, for
    which the threads that share out blocks of atoms would wait in turn. Another BLAS takes its
    number of threads from the environment only.
    """
    library = ctypes.CDLL(cython_blas.__file__)
    for prefix in ("scipy_", ""):  # of scipy's wheels, and of systems
        with suppress(AttributeError):
            library[f"{prefix}openblas_set_num_threads"](1)


@cache
def _folder() -> Path:
    """One for each state of the sources.

    Numba looks at the file of a function only, not at those of what is compiled into it.
    """
    here = Path(__file__).parent
    names = ("jit", "lanes", "meeting", "search", "neighbors", "guards", "momenta", "chain")
    sources = [here / f"{name}.py" for name in names]
    sources += sorted((here / "potentials" / "kernels").glob("*.py"))
    state = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdlearn" / state
