"""Products of matrices in compiled loops, written to where they belong.

`np.dot` copies parts of arrays, and what it makes is an array of its own. A library needs neither:
rows may lie apart, and a product may be added to what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from mdlearn.jit import instruction

BYTE, WORD = ir.IntType(8), ir.IntType(64)
ANYTHING = BYTE.as_pointer()
SIGNATURE = (
    *(BYTE, BYTE, BYTE),  # kind of numbers; whether each factor is turned
    *(WORD, WORD, WORD),  # columns, rows, and what is summed over
    *(ANYTHING, ANYTHING, WORD, ANYTHING, WORD),  # a number, and both factors with their rows
    *(ANYTHING, ANYTHING, WORD),  # a number, and the product
)
"""Of `numba_xxgemm`, by which Numba asks scipy's BLAS; that has columns where arrays have rows."""


def _product(turned: bool, more: bool) -> Callable[[Any, Any, Any], None]:
    """Writes a product of matrices, whose rows are contiguous each.

    Args:
        turned: whether the first factor is turned round.
        more: whether it is added to what is there.
    """

    @instruction
    def product(typing: Any, a: Any, b: Any, out: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            arrays = [
                context.make_array(kind)(context, builder, each)
                for kind, each in zip(signature.args, given, strict=True)
            ]
            size = ir.Constant(WORD, out.dtype.bitwidth // 8)
            places, apart, shapes = [], [], []
            for each in arrays:
                places.append(builder.bitcast(each.data, ANYTHING))
                apart.append(builder.sdiv(cgutils.unpack_tuple(builder, each.strides)[0], size))
                shapes.append(cgutils.unpack_tuple(builder, each.shape))
            kind = context.get_value_type(out.dtype)
            one, before = (
                builder.bitcast(
                    cgutils.alloca_once_value(builder, ir.Constant(kind, value)), ANYTHING
                )
                for value in (1.0, float(more))
            )
            form = ir.FunctionType(ir.IntType(32), SIGNATURE)
            function = cgutils.get_or_insert_function(builder.module, form, "numba_xxgemm")
            letter = {32: "s", 64: "d"}[out.dtype.bitwidth]
            letters = [
                ir.Constant(BYTE, ord(each)) for each in (letter, "n", "t" if turned else "n")
            ]
            rows, columns = shapes[2]
            sizes = (columns, rows, shapes[1][0])
            factors = (one, places[1], apart[1], places[0], apart[0])
            builder.call(function, (*letters, *sizes, *factors, before, places[2], apart[2]))
            return context.get_dummy_value()

        return types.void(a, b, out), generate

    return product


multiply_into = _product(turned=False, more=False)
"""out = a b."""
add_product = _product(turned=False, more=True)
"""out += a b."""
add_product_turned = _product(turned=True, more=True)
"""out += aᵀ b."""
