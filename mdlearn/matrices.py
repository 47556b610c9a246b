"""Products of matrices in compiled loops, written to where they belong.

`np.dot` copies parts of arrays, and what it makes is an array of its own. Here rows may lie apart,
and a product may be added to what is there.

A library brings a matrix into the order in which it reads it whenever it multiplies by it. For the
few rows of a block of atoms that takes as long as the product itself. What is multiplied by here is
`packed` before, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from mdlearn.jit import instruction
from mdlearn.lanes import PERMITTED, REGISTER, WIDTH, splat

Array = NDArray[Any]
BYTE, WORD = ir.IntType(8), ir.IntType(64)
ANYTHING = BYTE.as_pointer()
SIGNATURE = (
    *(BYTE, BYTE, BYTE),  # kind of numbers; whether each factor is turned
    *(WORD, WORD, WORD),  # columns, rows, and what is summed over
    *(ANYTHING, ANYTHING, WORD, ANYTHING, WORD),  # a number, and both factors with their rows
    *(ANYTHING, ANYTHING, WORD),  # a number, and the product
)
"""Of `numba_xxgemm`, by which Numba asks scipy's BLAS; that has columns where arrays have rows."""
ROWS = REGISTER // 16
"""Of a product, whose sums in float32 stay in registers together: in half of those of AVX2 or NEON,
and in a quarter of those of AVX-512."""


def packed(matrices: Array) -> Array:
    """Matrices (..., K, N) in the order in which products read them: (..., N/32, K, 32).

    Columns are filled up with zeros. The first k rows of a matrix are [..., :k, :] again.
    """
    *others, columns = matrices.shape
    out = np.zeros((*others[:-1], -(-columns // WIDTH), others[-1], WIDTH), matrices.dtype)
    for place, view in panels(matrices, out):
        place[...] = view
    return out


def panels(matrices: Array, out: Array) -> list[tuple[Array, Array]]:
    """Parts of what is `packed`, and of matrices, that one is a copy of the other."""
    *others, columns = matrices.shape
    full = columns // WIDTH
    views = matrices[..., : full * WIDTH].reshape(*others, full, WIDTH)
    parts = [(out[..., :full, :, :], np.moveaxis(views, -2, -3))]
    if columns % WIDTH:
        parts.append((out[..., full, :, : columns % WIDTH], matrices[..., full * WIDTH :]))
    return parts


def _product(more: bool) -> Callable[[Any, Any, Any], None]:
    """Writes a product of a matrix (W, K) and of one that is packed.

    Rows of the first one, and of the product, are contiguous each. Every number is the sum of its
    products in their order, however many rows there are.

    Args:
        more: whether it is added to what is there.
    """

    @instruction
    def product(typing: Any, a: Any, b: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            arrays = [
                context.make_array(kind)(context, builder, each)
                for kind, each in zip(signature.args, given, strict=True)
            ]
            words = []
            for array in arrays:
                words += [array.data, _apart(builder, array, out)]
            rows, columns = cgutils.unpack_tuple(builder, arrays[2].shape)
            _, depth, _ = cgutils.unpack_tuple(builder, arrays[1].shape)
            function = _function(builder.module, context.get_value_type(out.dtype), more)
            builder.call(function, (*words, rows, depth, columns))
            return context.get_dummy_value()

        return types.void(a, b, out), generate

    return product


def _apart(builder: Any, array: Any, kind: Any) -> Any:
    """How many numbers lie between the beginnings of rows."""
    size = ir.Constant(WORD, kind.dtype.bitwidth // 8)
    return builder.sdiv(cgutils.unpack_tuple(builder, array.strides)[0], size)


def _function(module: Any, number: Any, more: bool) -> Any:
    """What multiplies by a packed matrix: once in all that is linked together."""
    form = ir.FunctionType(ir.VoidType(), [number.as_pointer(), WORD] * 3 + [WORD] * 3)
    name = f"mdlearn_{'add_product' if more else 'multiply_into'}_{number}"
    function = cgutils.get_or_insert_function(module, form, name)
    if function.is_declaration:
        function.linkage = "linkonce_odr"
        function.attributes.add("noinline")
        _write(ir.IRBuilder(function.append_basic_block()), number, function.args, more)
    return function


def _write(builder: Any, number: Any, given: Any, more: bool) -> None:
    """Writes the loops: over panels of columns, over a few rows at a time, and over the sum."""
    a, a_apart, b, b_apart, out, out_apart, rows, depth, columns = given
    lanes, align = ir.VectorType(number, WIDTH), {"float": 4, "double": 8}[str(number)]
    zero, width = WORD(0), WORD(WIDTH)

    def at(start: Any, row: Any, apart: Any, column: Any) -> Any:
        return builder.gep(start, [builder.add(builder.mul(row, apart), column)])

    def load(place: Any) -> Any:
        loaded = builder.load(builder.bitcast(place, lanes.as_pointer()))
        loaded.align = align
        return loaded

    def put(value: Any, place: Any, before: Any) -> None:
        value = builder.fadd(before(place), value) if more else value
        builder.store(value, builder.bitcast(place, value.type.as_pointer())).align = align

    def strip(first_row: Any, count: int, panel: Any, first: Any) -> None:
        sums = [cgutils.alloca_once(builder, lanes) for _ in range(count)]
        places = [builder.add(first_row, WORD(r)) for r in range(count)]
        for each in sums:
            builder.store(ir.Constant(lanes, [0.0] * WIDTH), each)
        with cgutils.for_range(builder, depth) as loop:
            weights = load(at(panel, loop.index, width, zero))
            for row, each in zip(places, sums, strict=True):
                factor = splat(builder, builder.load(at(a, row, a_apart, loop.index)), WIDTH)
                part = builder.fmul(factor, weights, flags=PERMITTED)
                builder.store(builder.fadd(builder.load(each), part, flags=PERMITTED), each)
        left = builder.sub(columns, first)
        with builder.if_else(builder.icmp_signed(">=", left, width)) as (whole, partly):
            with whole:
                for row, each in zip(places, sums, strict=True):
                    put(builder.load(each), at(out, row, out_apart, first), load)
            with partly:
                for row, each in zip(places, sums, strict=True):
                    numbers, start = builder.bitcast(each, a.type), at(out, row, out_apart, first)
                    with cgutils.for_range(builder, left) as loop:
                        value = builder.load(builder.gep(numbers, [loop.index]))
                        put(value, builder.gep(start, [loop.index]), builder.load)

    count_of_panels = builder.sdiv(builder.add(columns, WORD(WIDTH - 1)), width)
    with cgutils.for_range(builder, count_of_panels) as loop:
        panel = builder.gep(b, [builder.mul(loop.index, b_apart)])
        first, begin = builder.mul(loop.index, width), zero
        count = ROWS * 4 // align
        while count:
            end = builder.sub(rows, builder.srem(rows, WORD(count)))
            with cgutils.for_range_slice(builder, begin, end, WORD(count), WORD) as (row, _):
                strip(row, count, panel, first)
            begin, count = end, count // 2
    builder.ret_void()


multiply_into = _product(more=False)
"""out = a b, for a (W, K), b packed of (K, N), and out (W, N)."""
add_product = _product(more=True)
"""out += a b, likewise."""


@instruction
def add_product_turned(typing: Any, a: Any, b: Any, out: Any) -> Any:
    """Out += aᵀ b, for matrices whose rows are contiguous each, and none of which is packed."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        places, apart, shapes = [], [], []
        for kind, each in zip(signature.args, given, strict=True):
            array = context.make_array(kind)(context, builder, each)
            places.append(builder.bitcast(array.data, ANYTHING))
            apart.append(_apart(builder, array, out))
            shapes.append(cgutils.unpack_tuple(builder, array.shape))
        kind = context.get_value_type(out.dtype)
        one = builder.bitcast(cgutils.alloca_once_value(builder, ir.Constant(kind, 1.0)), ANYTHING)
        form = ir.FunctionType(ir.IntType(32), SIGNATURE)
        function = cgutils.get_or_insert_function(builder.module, form, "numba_xxgemm")
        letter = {32: "s", 64: "d"}[out.dtype.bitwidth]
        letters = [ir.Constant(BYTE, ord(each)) for each in (letter, "n", "t")]
        rows, columns = shapes[2]
        sizes = (columns, rows, shapes[1][0])
        factors = (one, places[1], apart[1], places[0], apart[0])
        builder.call(function, (*letters, *sizes, *factors, one, places[2], apart[2]))
        return context.get_dummy_value()

    return types.void(a, b, out), generate
