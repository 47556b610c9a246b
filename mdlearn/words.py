"""Tuples as words in memory, so that compiled functions are given an address in place of them.

A network has dozens of arrays, and what its loops work in as many. To hand on tuples of them takes
a compiler long, and what they are made of is a part of the name of every function that is given
one. So they are written down once, and read where they are used.
"""

from __future__ import annotations

import hashlib
import struct
from typing import (
    Annotated,
    Any,
    Generic,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.datamodel.models import PointerModel
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, register_model
from numba.np.numpy_support import from_dtype
from numpy.typing import NDArray

Value = TypeVar("Value", bound=tuple[Any, ...])


class Written(types.CPointer):
    """The type by which a compiled function takes a tuple that stands in memory.

    Parts of a named tuple are read by name, as of the tuple itself; of a part that is a named
    tuple, in turn, there is the address.
    """

    def __init__(self, kind: Any) -> None:
        super().__init__(kind)  # type: ignore[no-untyped-call]
        self.name = f"written_{hashlib.sha256(str(kind).encode()).hexdigest()[:12]}"


register_model(Written)(PointerModel)


class Form(NamedTuple):
    """What an array is that a function is given in memory: it lies there in the order of C."""

    rank: int
    """How many axes it has."""
    dtype: str = ""
    """NumPy's name of the type of its numbers, or nothing where the precision settles it."""


Array1 = Annotated[NDArray[Any], Form(1)]
Array2 = Annotated[NDArray[Any], Form(2)]
Array3 = Annotated[NDArray[Any], Form(3)]
Array4 = Annotated[NDArray[Any], Form(4)]
Array5 = Annotated[NDArray[Any], Form(5)]
Array6 = Annotated[NDArray[Any], Form(6)]
"""Of so many axes, in the precision of the network;"""
Exact0 = Annotated[NDArray[Any], Form(0, "float64")]
Exact1 = Annotated[NDArray[Any], Form(1, "float64")]
Exact2 = Annotated[NDArray[Any], Form(2, "float64")]
Exact3 = Annotated[NDArray[Any], Form(3, "float64")]
Exact4 = Annotated[NDArray[Any], Form(4, "float64")]
Short1 = Annotated[NDArray[Any], Form(1, "int32")]
Short2 = Annotated[NDArray[Any], Form(2, "int32")]
Index1 = Annotated[NDArray[Any], Form(1, "int64")]
Index2 = Annotated[NDArray[Any], Form(2, "int64")]
Flags2 = Annotated[NDArray[Any], Form(2, "bool")]
"""and of a type that is always the same."""


def form_of(hint: Any, precision: str) -> Any:
    """The type for compiled functions of what an annotation says.

    Args:
        hint: a named tuple, all annotated; a tuple, an array with its `Form`, or a kind of number.
        precision: NumPy's name of the type of numbers where a form says none.
    """
    if isinstance(hint, type) and issubclass(hint, tuple):
        hints = get_type_hints(hint, include_extras=True)
        parts = [form_of(each, precision) for each in hints.values()]
        return types.BaseTuple.from_types(parts, hint)
    if get_origin(hint) is Annotated:
        (form,) = hint.__metadata__
        return types.Array(from_dtype(np.dtype(form.dtype or precision)), form.rank, "C")
    if get_origin(hint) is tuple:
        return types.BaseTuple.from_types([form_of(each, precision) for each in get_args(hint)])
    return {float: types.float64, int: types.int64}[hint]


def forms_of(function: Any, precision: str = "") -> list[Any]:
    """The types of what a compiled function is annotated to be given; see `form_of`.

    A named tuple goes by its address where a function is only called by its place in memory.
    """
    hints = get_type_hints(function.py_func, include_extras=True)
    del hints["return"]
    forms = [form_of(each, precision) for each in hints.values()]
    if not function.targetoptions["no_cpython_wrapper"]:
        return forms
    return [Written(each) if isinstance(each, types.BaseNamedTuple) else each for each in forms]


def kind_of(value: object) -> Any:
    """The type by which a compiled function takes the words of such a value."""
    return Written(numba.typeof(value))


class Words(Generic[Value]):
    """A tuple as compiled functions have it in memory, in words of eight bytes.

    It is to be of the type that they were compiled for: nobody looks.
    """

    def __init__(self, value: Value) -> None:
        """Writes down a tuple of arrays, integers, floats, and such tuples."""
        self.value = value  # which keeps its arrays
        self.words = np.array(_words_of(value), np.int64)
        self.address: int = self.words.ctypes.data

    def renew(self, value: Value, count: int) -> None:
        """Writes down a tuple again, of which only the first few parts are not as they were.

        These are arrays; shapes are as they were.
        """
        self.value, start = value, 0
        for array in value[:count]:
            self.words[start + 4] = array.ctypes.data
            start += 5 + 2 * array.ndim


def _words_of(value: object) -> list[int]:
    if isinstance(value, np.ndarray):
        start = value.__array_interface__["data"][0]
        return [0, 0, value.size, value.itemsize, start, *value.shape, *value.strides]
    if isinstance(value, tuple):
        return [word for part in value for word in _words_of(part)]
    if isinstance(value, float):
        (word,) = struct.unpack("q", struct.pack("d", value))
        return [word]
    assert isinstance(value, int)
    assert not isinstance(value, bool)  # which has one byte
    return [value]


@infer_getattr
class _Parts(AttributeTemplate):
    key = Written

    def generic_resolve(self, whole: Any, name: str) -> Any:  # type: ignore[override]
        """The type of a part."""
        kind = whole.dtype
        if name not in kind.fields:
            return None
        part = kind[kind.fields.index(name)]
        return Written(part) if isinstance(part, types.BaseNamedTuple) else part


@lower_getattr_generic(Written)  # type: ignore[untyped-decorator]
def _read(context: Any, builder: Any, whole: Any, address: Any, name: str) -> Any:
    """Reads a part where it is used.

    An array has no owner there: to count who uses it would cost more than to look. While a compiled
    function runs, nobody writes these words; so the compiler may read them earlier, and once.
    """
    rank = whole.dtype.fields.index(name)
    part, word = whole.dtype[rank], ir.IntType(64)
    start = sum(len(_owners(each)) for each in whole.dtype.types[:rank])
    first = builder.gep(builder.bitcast(address, word.as_pointer()), [ir.Constant(word, start)])
    if isinstance(part, types.BaseNamedTuple):
        return builder.bitcast(first, context.get_value_type(Written(part)))
    packer = context.get_arg_packer([part])
    found, settled = [], builder.module.add_metadata([])
    forms = zip(packer.argument_types, _owners(part), strict=True)
    for index, (form, owner) in enumerate(forms):
        if owner:
            found.append(ir.Constant(form, None))
            continue
        place = builder.gep(first, [ir.Constant(word, index)])
        found.append(builder.load(builder.bitcast(place, form.as_pointer())))
        found[-1].set_metadata("invariant.load", settled)
    (value,) = packer.from_arguments(builder, found)
    return value


def _owners(kind: Any) -> list[bool]:
    """Of the words of a value of some type, which name the owner of an array."""
    if isinstance(kind, types.Array):
        return [True, True] + [False] * (3 + 2 * kind.ndim)
    if isinstance(kind, types.BaseTuple):
        parts: Any = kind
        return [each for part in parts for each in _owners(part)]
    return [False]
