"""A weighted sum of rows of a table, with the sum kept in the processor's registers.

Written in Numba's own words, LLVM reads and writes the sum in memory for every
few rows, and checks before each loop that no two arrays overlap: half of the
time where a row is 128 numbers.  Here its instructions are given directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from vivace.jit import SUMS, kernel, vector_loop

Genes = NDArray[np.int32]
Floats = NDArray[np.float32]
Columns = Callable[[Floats, int, int, int, Genes, Floats, Floats], None]

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_WIDTH = 16  # numbers in a vector of 512 bits, which LLVM cuts to what there is
_VECTOR = ir.VectorType(_FLOAT, _WIDTH)
_ROUND = ("contract",)  # fused multiply-add


def _sum_of_columns(n_vectors: int) -> Columns:
    """Kernel that writes ``n_vectors * 16`` columns of the sum, from ``column`` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, column, start, stop = args[:4]
        out, rows, values, table = (
            context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 4, 5, 6)
        )
        width = builder.extract_value(table.shape, 1)
        table_at_column = builder.gep(table.data, [column])

        def vector_at(data: Any, i: int) -> Any:
            place = builder.gep(data, [_LONG(i * _WIDTH)])
            return builder.bitcast(place, _VECTOR.as_pointer())

        sums = [
            cgutils.alloca_once(builder, _VECTOR)  # type: ignore[no-untyped-call]
            for _ in range(n_vectors)
        ]
        for one in sums:
            builder.store(_VECTOR([0.0] * _WIDTH), one)
        with cgutils.for_range_slice(builder, start, stop, _LONG(1), _LONG) as (entry, _):
            row = builder.zext(builder.load(builder.gep(rows.data, [entry])), _LONG)
            value = builder.load(builder.gep(values.data, [entry]))
            first = builder.insert_element(_VECTOR(ir.Undefined), value, _INT(0))
            lanes = ir.VectorType(_INT, _WIDTH)([0] * _WIDTH)
            value = builder.shuffle_vector(first, _VECTOR(ir.Undefined), lanes)
            row_at_column = builder.gep(table_at_column, [builder.mul(row, width)])
            for i, one in enumerate(sums):
                numbers = builder.load(vector_at(row_at_column, i), align=4)
                product = builder.fmul(value, numbers, flags=_ROUND)
                builder.store(builder.fadd(product, builder.load(one), flags=_ROUND), one)
        out_at_column = builder.gep(out.data, [column])
        for i, one in enumerate(sums):
            builder.store(builder.load(one), vector_at(out_at_column, i), align=4)
        return context.get_dummy_value()

    @intrinsic
    def columns(
        typingctx: Any,
        out_h: Any,
        column: Any,
        start: Any,
        stop: Any,
        rows: Any,
        values: Any,
        table: Any,
    ) -> Any:
        arguments = (out_h, types.intp, types.intp, types.intp, rows, values, table)
        return types.none(*arguments), codegen

    return cast("Columns", columns)


_eight, _four, _two, _one = (_sum_of_columns(n) for n in (8, 4, 2, 1))


@kernel(fastmath=SUMS)
def weighted_rows(
    out_h: Floats, start: int, stop: int, rows: Genes, values: Floats, table: Floats
) -> None:
    """Out = sum over entries from start to stop of value * table[row].

    Every array must be contiguous, every row one of the table.  The sum goes from
    the first entry to the last.
    """
    vector_loop()
    h = out_h.size
    c = 0
    while c + 128 <= h:
        _eight(out_h, c, start, stop, rows, values, table)
        c += 128
    if c + 64 <= h:
        _four(out_h, c, start, stop, rows, values, table)
        c += 64
    if c + 32 <= h:
        _two(out_h, c, start, stop, rows, values, table)
        c += 32
    if c + 16 <= h:
        _one(out_h, c, start, stop, rows, values, table)
        c += 16
    if c < h:
        out_h[c:] = np.float32(0)
        for i in range(start, stop):
            row = table[rows[i]]
            for j in range(c, h):
                out_h[j] += values[i] * row[j]
