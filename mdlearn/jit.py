"""Functions that Numba compiles for the processor at hand, and keeps on disk where it can."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import FunctionCache, _CacheLocator
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.errors import NumbaError
from numba.extending import intrinsic
from scipy.linalg import cython_blas

# A pass that takes a fifth of the time to compile a large function, and makes no loop here faster.
llvmlite.binding.set_option("", "--disable-lsr")
config: Any = numba.config  # which makes its entries when it is imported
njit: Any = numba.njit  # whose types know few of its options
kept: Any = FunctionCache._impl_class  # which looks for a place in the order of a list
Function = TypeVar("Function", bound=Callable[..., Any])
COMPILER_ERRORS = (NumbaError, RuntimeError)
"""Where a function cannot be compiled; the second is of LLVM."""


class _Part(JITCodeLibrary):
    """Code that only ever becomes a part of other code: it is neither optimized nor runs by itself.

    It has neither an address nor, in memory, an environment of Python objects.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._verify_declare_only_symbols()  # type: ignore[no-untyped-call]
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, env: object) -> None:
        pass


class PartCompiler(Compiler):
    """Of inner functions."""

    def define_pipelines(self) -> Any:
        """See Numba."""
        state, library = self.state, cast(Any, _Part)
        state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()  # type: ignore[no-untyped-call]


class _Place(_CacheLocator):
    """Where a function is kept: in the folder of the state of the sources, wherever these lie.

    Numba's own places depend on that, and each environment would compile anew.
    """

    def __init__(self, function: Any, file: str) -> None:
        """Raises OSError where there is no such file, as for what is typed in."""
        self.folder, self.line = Path(file).parent.name, function.__code__.co_firstlineno
        self.stamp = hashlib.sha256(Path(file).read_bytes()).hexdigest()

    def get_cache_path(self) -> str:
        return str(_folder() / self.folder)

    def get_source_stamp(self) -> str:
        return self.stamp

    def get_disambiguator(self) -> str:
        return str(self.line)

    @classmethod
    def from_function(cls, function: Any, file: str) -> Any:
        """None if nothing can be kept there."""
        try:
            place: Any = cls(function, file)
            place.ensure_cache_path()
        except OSError:
            return None
        return place


def compiled(
    *,
    fastmath: Collection[str] = (),
    nogil: bool = False,
    error_model: Literal["python", "numpy"] = "python",
    keep: bool = True,
    inner: bool = False,
    placed: bool = False,
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
            so it is nothing to its bits in which process it was compiled. It is optimized where it
            has become a part only: to do so before as well took a quarter of the time of compiling.
            What else is called by name is linked to code of that name: where it has just been
            compiled, to its own, and where its caller was loaded from disk, to what was optimized
            once more along with that. Of what has no `fastmath` these give the same bits.
        placed: only called by its place in memory (`place_of`, `call`), not by Python.
    """
    permitted = set(fastmath) or False

    def decorate(function: Function) -> Function:
        def make(cache: bool) -> Any:
            options = njit(
                cache=cache,
                fastmath=permitted,
                nogil=nogil,
                error_model=error_model,
                forceinline=inner,
                no_cpython_wrapper=inner or placed,
                no_cfunc_wrapper=True,
                pipeline_class=PartCompiler if inner else Compiler,
            )
            return options(function)

        places = kept._locator_classes
        kept._locator_classes = places if config.CACHE_DIR else [_Place]
        try:
            dispatcher: Function = make(keep and not inner)
        except RuntimeError:  # there is no place for a cache
            dispatcher = make(False)
        finally:
            kept._locator_classes = places
        return dispatcher

    return decorate


def place_of(function: Any, *arguments: Any) -> int:
    """Where a function is in memory that is compiled, or was, for such arguments; for `call`.

    If another process is at it, waits for that, and has what that keeps.

    Args:
        function: the function.
        arguments: or their types: of what it is given in memory, `words.kind_of`.
    """
    kinds = [each if isinstance(each, types.Type) else numba.typeof(each) for each in arguments]
    signature = tuple(kinds)
    HELPER.wait(function)
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

    Called by its name it would be compiled once more, together with its caller. Where the function
    takes a tuple in memory (`words`), it is given the address.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _call(context, builder, types.none, tuple(arguments), given)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), generate


@instruction
def ask(typing: Any, place: Any, arguments: Any) -> Any:
    """The same with a function that returns whether something is so."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return _call(context, builder, types.boolean, tuple(arguments), given)

    return types.boolean(types.int64, arguments), generate


def _call(context: Any, builder: Any, returned: Any, kinds: tuple[Any, ...], given: Any) -> Any:
    """Writes the call; its errors are those of the caller."""
    kind = context.call_conv.get_function_type(returned, kinds)
    function = builder.inttoptr(given[0], kind.as_pointer())
    parts = cgutils.unpack_tuple(builder, given[1])
    status, value = context.call_conv.call_function(builder, function, returned, kinds, parts)
    with cgutils.if_unlikely(builder, status.is_error):
        context.call_conv.return_status_propagate(builder, status)
    return value


@instruction
def borrowed(typing: Any, value: Any) -> Any:
    """A tuple of arrays, whoever owns them; others have to hold them meanwhile.

    To count who uses an array takes longer than to look at a row of it, above all where several
    threads count.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        (tuple_,) = given
        for index, kind in enumerate(value):
            if isinstance(kind, types.Array):
                part = builder.extract_value(tuple_, index)
                array = context.make_array(kind)(context, builder, part)
                for owner in ("meminfo", "parent"):
                    setattr(array, owner, ir.Constant(getattr(array, owner).type, None))
                tuple_ = builder.insert_value(tuple_, array._getvalue(), index)
        return tuple_

    return value(value), generate


@instruction
def on_stack(typing: Any, count: Any, like: Any) -> Any:
    """An array of so many numbers, of the type of another one's, which are not set.

    It is there until the function returns that asks for it, or that this is made a part of, and it
    is never returned. The count stands in the source. It takes no time to have, and the compiler
    knows that nobody else sees it.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None  # Numba tries again with the number itself
    kind, size = types.Array(like.dtype, 1, "C"), count.literal_value

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word, number = ir.IntType(64), context.get_data_type(like.dtype)
        row = cgutils.alloca_once(builder, ir.ArrayType(number, size))
        row.align = 64
        array = context.make_array(kind)(context, builder)
        itemsize = ir.Constant(word, like.dtype.bitwidth // 8)
        context.populate_array(
            array,
            data=builder.bitcast(row, number.as_pointer()),
            shape=cgutils.pack_array(builder, [ir.Constant(word, size)]),
            strides=cgutils.pack_array(builder, [itemsize]),
            itemsize=itemsize,
            meminfo=None,
        )
        return array._getvalue()

    return kind(count, like), generate


class Helper:
    """Another process that compiles what it is told to, one function after another.

    Whoever needs a function waits for it, and asks for the function as ever: if the process has
    failed, nothing is kept, and it is compiled once more.
    """

    def __init__(self, action: str) -> None:
        """Starts nothing yet.

        Args:
            action: the name, with the module, of what calls `serve` there.
        """
        self.action = action
        self.process: subprocess.Popen[str] | None = None
        self.told: list[object] = []
        """What it has not answered to yet."""

    def tell(self, function: Any, *words: str) -> None:
        """Has a function compiled, unless some of it is kept on disk already, or told before.

        Args:
            function: the function.
            words: without spaces, of which `serve` makes something.
        """
        # No interpreter where Python is a part of a program.
        if function in self.told or _is_kept(function) or _processors() == 1 or not sys.executable:
            return
        if self.process is None:
            module, verb = self.action.rsplit(".", 1)
            # From where this process has it: what is kept is of a place, and cannot be found else.
            code = f"import sys; sys.path[:] = {sys.path}; from {module} import {verb}; {verb}()"
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=nowhere, text=True
            )
            atexit.register(self.dismiss)
        assert self.process.stdin is not None
        self.told.append(function)
        with suppress(BrokenPipeError):  # it has failed
            self.process.stdin.write(" ".join(words) + "\n")
            self.process.stdin.flush()

    def is_at(self, function: Any) -> bool:
        """Whether to wait for a function would take time."""
        if self.process is None or function not in self.told or _is_kept(function):
            return False
        return self.process.poll() is None

    def wait(self, function: Any) -> None:
        """Waits for an answer about a function that it was told; or for the end of the process."""
        while function in self.told:
            assert self.process is not None
            assert self.process.stdout is not None
            if not self.process.stdout.readline():
                self.told.clear()
                break
            self.told.pop(0)
        if not self.told:
            self.dismiss()

    def dismiss(self) -> None:
        """Ends the process, whatever it is at; nothing is half-written."""
        self.told.clear()
        if self.process is not None:
            atexit.unregister(self.dismiss)
            self.process.terminate()
            self.process.communicate()
            self.process = None


HELPER = Helper("mdlearn.potentials.beforehand.serve")


def serve(compile_: Callable[..., object]) -> None:
    """Compiles what a `Helper` tells, and answers, until its process ends.

    Args:
        compile_: is given the words.
    """
    for line in sys.stdin:
        compile_(*line.split())
        print(flush=True)


def _is_kept(function: Any) -> bool:
    """Whether a function is on disk, for arguments of some types; or cannot be."""
    folder, source = function.stats.cache_path, function.py_func
    name = f"{Path(source.__code__.co_filename).stem}.{source.__qualname__}-*.nbc"
    return folder is None or any(Path(folder).glob(name))


def _processors() -> int:
    """For this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    """One for each state of the sources, and of what compiles them.

    Numba looks at the file of a function only, not at those of what is compiled into it.
    """
    here = Path(__file__).parent
    names = "jit words lanes matrices meeting lists guards momenta chain"
    sources = [here / f"{name}.py" for name in names.split()]
    sources += sorted((here / "potentials" / "kernels").glob("*.py"))
    made_of = [numba.__version__.encode(), *(each.read_bytes() for each in sources)]
    state = hashlib.sha256(b"".join(made_of)).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mdlearn" / state
