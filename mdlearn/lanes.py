"""Numbers that are computed together: the vectors of a processor, as a type for compiled loops.

A loop over an array may become one over vectors, if the compiler can show that what is written is
not what is read, and never keeps sums over an outer loop in registers. Here that is said in so many
words: `Lanes` are loaded from an array, added, multiplied and stored. They are one kind of value in
a compiled function, of either precision; a number that meets them counts for each of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numpy.typing import DTypeLike, NDArray

from mdlearn.jit import instruction

WIDTH = 32
"""Numbers in `Lanes`. Two registers of AVX-512 in float32: their sums hide each other's latency."""
HALF = WIDTH // 2
"""Numbers in what is loaded by halves, where more than a few values are to stay in registers."""
FOUR = 4
"""Numbers in what belongs to one atom."""
FEATURES = get_host_cpu_features()
REGISTER = 64 if FEATURES.get("avx512f") else 32
"""Bytes of the widest registers: of AVX-512, or of AVX2; NEON has two where AVX2 has one."""
PART = REGISTER // 2
"""Numbers in what is loaded by parts: two registers in float32. AVX2 has no more than sixteen."""
LINE = 64
"""Bytes that a cache has in one piece."""
PERMITTED = ("contract", "nsz")
"""A product and a sum may be rounded once, nothing else: equal lanes have equal results."""
INDEX = ir.IntType(32)
Lanes = Any
"""In signatures: a value of this type."""


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array that begins where a line of the cache does, as NumPy's need not.

    What lies across two lines takes twice as long to load, and lanes would all lie so.
    """
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    room = np.zeros(size + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + size].view(kind).reshape(shape)


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """A copy that begins where a line of the cache does."""
    copy = zeros(values.shape, values.dtype)
    copy[...] = values
    return copy


class LanesType(types.Type):
    """The type of so many numbers of one precision."""

    def __init__(self, dtype: types.Float, count: int) -> None:
        super().__init__(f"Lanes({dtype}, {count})")
        self.dtype = dtype
        self.count = count


@register_model(LanesType)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: LanesType) -> None:
        number = ir.FloatType() if lanes.dtype == types.float32 else ir.DoubleType()
        super().__init__(manager, lanes, ir.VectorType(number, lanes.count))  # type: ignore[no-untyped-call]


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _shuffle(builder: Any, x: Any, places: list[int], other: Any = None) -> Any:
    mask = ir.Constant(ir.VectorType(INDEX, len(places)), places)
    return builder.shuffle_vector(x, other or ir.Constant(x.type, ir.Undefined), mask)


_CHOICES = [[lane for lane in range(FOUR) if bits >> lane & 1] for bits in range(2**FOUR)]
_ORDERS = [
    [2 * lane + half for lane in (choice + FOUR * [0])[:FOUR] for half in (0, 1)]
    for choice in _CHOICES
]
"""For all that bits may say, which halves of numbers in float64 `chosen` takes."""


def splat(builder: Any, value: Any, count: int) -> Any:
    """Writes down a vector of one number, so many times."""
    nothing = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    return _shuffle(builder, builder.insert_element(nothing, value, INDEX(0)), [0] * count)


def _place(context: Any, builder: Any, kind: Any, array: Any, place: Any, lanes: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [place]), lanes.as_pointer())


def _load(count: int) -> Callable[[Any, Any], Lanes]:
    @instruction
    def load(typing: Any, array: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = context.get_value_type(signature.return_type)
            loaded = builder.load(_place(context, builder, array, given[0], given[1], kind))
            loaded.align = array.dtype.bitwidth // 8
            return loaded

        return LanesType(array.dtype, count)(array, types.intp), generate

    return load


load = _load(WIDTH)
"""Lanes from a flat array, at a place and after it."""
load_half = _load(HALF)
"""Half as many."""
load_part = _load(PART)
"""As many as a few of which stay in registers, whatever the processor."""
load_four = _load(FOUR)
"""Four of them: what belongs to an atom in four numbers, or one number of four atoms."""


@instruction
def store(typing: Any, array: Any, place: Any, lanes: Any) -> Any:
    """Writes lanes to a flat array, at a place and after it."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = _place(context, builder, array, given[0], given[1], given[2].type)
        builder.store(given[2], pointer).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), generate


@instruction
def fetch(typing: Any, array: Any, place: Any) -> Any:
    """Has what stands at a place of a flat array come from memory; nobody waits for it yet."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        form = ir.FunctionType(ir.VoidType(), [pointer, INDEX, INDEX, INDEX])
        function = cgutils.get_or_insert_function(builder.module, form, "llvm.prefetch.p0i8")
        data = context.make_array(array)(context, builder, given[0]).data
        where = builder.bitcast(builder.gep(data, [given[1]]), pointer)
        builder.call(function, [where, INDEX(0), INDEX(3), INDEX(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@instruction
def alike(typing: Any, number: Any, like: Any) -> Any:
    """Lanes that are all the same number, in the precision of others."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return splat(builder, given[0], like.count)

    return like(like.dtype, like), generate


@instruction
def total(typing: Any, lanes: Any) -> Any:
    """The sum over lanes: of halves, of halves of these, and so on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        (x,), width = given, lanes.count
        while width > 1:
            width //= 2
            halves = (list(range(width)), list(range(width, 2 * width)))
            x = builder.fadd(*(_shuffle(builder, x, places) for places in halves))
        return builder.extract_element(x, INDEX(0))

    return lanes.dtype(lanes), generate


@instruction
def totals(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The sums over the lanes of each of four, as four lanes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def halved(x: Any, width: int) -> Any:
            halves = (list(range(width)), list(range(width, 2 * width)))
            return builder.fadd(*(_shuffle(builder, x, places) for places in halves))

        def joined(x: Any, y: Any, places: list[int]) -> Any:
            sides = (places, [place + 2 for place in places])
            return builder.fadd(*(_shuffle(builder, x, each, y) for each in sides))

        parts, width = list(given), a.count
        while width > 2 * FOUR:
            width //= 2
            parts = [halved(each, width) for each in parts]
        places = [0, 8, 1, 9, 4, 12, 5, 13]
        one, other = joined(parts[0], parts[1], places), joined(parts[2], parts[3], places)
        return halved(joined(one, other, [0, 1, 8, 9, 4, 5, 12, 13]), FOUR)

    return LanesType(a.dtype, FOUR)(a, a, a, a), generate


@instruction
def transposed(typing: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Of four times four lanes the first ones, the second ones, the third and the fourth."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        a, b, c, d = given
        parts = [None] * FOUR
        for odd, pairs in enumerate(([0, 4, 2, 6], [1, 5, 3, 7])):
            first, second = _shuffle(builder, a, pairs, b), _shuffle(builder, c, pairs, d)
            for half, places in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
                parts[2 * half + odd] = _shuffle(builder, first, places, second)
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(a, FOUR)(a, a, a, a), generate


@instruction
def below(typing: Any, lanes: Any, limit: Any) -> Any:
    """Which lanes are less than a number, or no numbers, as bits."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, bound = given[0], splat(builder, given[1], lanes.count)
        bits = builder.bitcast(builder.fcmp_unordered("<", x, bound), ir.IntType(lanes.count))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(lanes, lanes.dtype), generate


@instruction
def ones(typing: Any, bits: Any) -> Any:
    """How many bits are set."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.ctpop(given[0])

    return types.int64(types.int64), generate


@instruction
def chosen(typing: Any, lanes: Any, bits: Any) -> Any:
    """Of four numbers in float64 those whose bits are set, and then what does not matter."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        x, bits = given
        if FEATURES.get("avx2") and not FEATURES.get("avx512vl"):
            orders = ir.Constant(
                ir.ArrayType(ir.VectorType(INDEX, 2 * FOUR), len(_ORDERS)), _ORDERS
            )
            table = cgutils.global_constant(builder, "orders", orders)
            order = builder.load(builder.gep(table, [ir.Constant(bits.type, 0), bits]))
            halves = builder.bitcast(x, ir.VectorType(ir.FloatType(), 2 * FOUR))
            name, taken = "llvm.x86.avx2.permps", [halves, order]
        else:
            keep = builder.bitcast(
                builder.trunc(bits, ir.IntType(FOUR)), ir.VectorType(ir.IntType(1), FOUR)
            )
            name = "llvm.experimental.vector.compress.v4f64"
            taken = [x, keep, ir.Constant(x.type, ir.Undefined)]
        form = ir.FunctionType(taken[0].type, [each.type for each in taken])
        function = cgutils.get_or_insert_function(builder.module, form, name)
        return builder.bitcast(builder.call(function, taken), x.type)

    return lanes(lanes, types.int64), generate


def polynomial(single: Sequence[float], double: Sequence[float]) -> Callable[[Lanes], Lanes]:
    """A polynomial of lanes, by Horner's scheme.

    Args:
        single: coefficients for lanes in float32, that of the highest power first,
        double: and for those in float64.
    """

    @instruction
    def evaluate(typing: Any, x: Any) -> Any:
        coefficients = single if x.dtype == types.float32 else double

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            (value,) = given
            terms = [_constant(value.type, each) for each in coefficients]
            result = terms[0]
            for term in terms[1:]:
                product = builder.fmul(result, value, flags=PERMITTED)
                result = builder.fadd(product, term, flags=PERMITTED)
            return result

        return x(x), generate

    return evaluate


@instruction
def if_negative(typing: Any, x: Any, one: Any, other: Any) -> Any:
    """One where x < 0, the other elsewhere, where x is no number, too."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        negative = builder.fcmp_ordered("<", given[0], _constant(given[0].type, 0.0))
        return builder.select(negative, given[1], given[2])

    return x(x, x, x), generate


@instruction
def root(typing: Any, x: Any) -> Any:
    """The square roots."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(given[0].type, [given[0].type])
        name = f"llvm.sqrt.v{x.count}f{x.dtype.bitwidth}"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), given)

    return x(x), generate


@instruction
def truncated(typing: Any, x: Any) -> Any:
    """The integers on the way to zero, as lanes."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        integers = ir.VectorType(ir.IntType(x.dtype.bitwidth), x.count)
        return builder.sitofp(builder.fptosi(given[0], integers), given[0].type)

    return x(x), generate


@instruction
def power_of_two(typing: Any, x: Any) -> Any:
    """2ⁿ for lanes that are integers, as large as an exponent may be."""
    fraction, bias = (23, 127) if x.dtype == types.float32 else (52, 1023)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kind = ir.VectorType(ir.IntType(x.dtype.bitwidth), x.count)
        exponent = builder.add(builder.fptosi(given[0], kind), _constant(kind, bias))
        return builder.bitcast(builder.shl(exponent, _constant(kind, fraction)), given[0].type)

    return x(x), generate


def _operate(operation: Callable[..., Any], name: str) -> None:
    """Lets an operation of Python act on lanes and lanes, or on lanes and a number."""

    @infer_global(operation)
    class Lanewise(AbstractTemplate):
        def generic(self, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            lanes = next((each for each in given if isinstance(each, LanesType)), None)
            if lanes is None:
                return None
            kinds = [each if each == lanes else lanes.dtype for each in given]
            return signature(lanes, *kinds)

    def generate(context: Any, builder: Any, types_: Any, given: Any) -> Any:
        lanes, kinds = types_.return_type, zip(types_.args, given, strict=True)
        x, y = [v if kind == lanes else splat(builder, v, lanes.count) for kind, v in kinds]
        return getattr(builder, name)(x, y, flags=PERMITTED)

    for kinds in ((LanesType, LanesType), (LanesType, types.Float), (types.Float, LanesType)):
        lower_builtin(operation, *kinds)(generate)


_operate(operator.add, "fadd")
_operate(operator.sub, "fsub")
_operate(operator.mul, "fmul")
_operate(operator.truediv, "fdiv")
