"""Two kernels: a weighted sum of a table's rows, and a row added to a table's rows, weighted.

What all entries share, the sum or the added row, stays in the processor's registers. From
Numba's own loops LLVM makes code that reads and writes it in memory every few entries, and
that checks before each loop that no two arrays overlap: half of the time where a row has 128
numbers. So this module gives the instructions itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from vivace.ops.runtime.kernels import SUMS, inner_kernel, kernel
from vivace.ops.runtime.llvm import vector_loop
from vivace.types import F32, I32

Columns = Callable[[F32, int, int, int, int, I32, F32, F32], None]

_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_WIDTH = 16  # numbers in a vector of 512 bits, which LLVM splits if the processor has none
_VECTOR = ir.VectorType(_FLOAT, _WIDTH)
_ROUND = ("contract",)  # fused multiply-add


def _vectors(builder: Any, array: Any, offset: Any, number: int) -> list[Any]:
    """Pointers to ``number`` adjacent vectors of an array, from ``offset`` on."""
    start = builder.gep(array.data, [offset])
    places = (builder.gep(start, [_LONG(i * _WIDTH)]) for i in range(number))
    return [builder.bitcast(place, _VECTOR.as_pointer()) for place in places]


def _broadcast(builder: Any, number: Any) -> Any:
    """Copy a number to all lanes of a vector."""
    first = builder.insert_element(_VECTOR(ir.Undefined), number, _INT(0))
    lanes = ir.VectorType(_INT, _WIDTH)([0] * _WIDTH)
    return builder.shuffle_vector(first, _VECTOR(ir.Undefined), lanes)


def _add(builder: Any, total: Any, value: Any, numbers: Any) -> None:
    """Add value * numbers to the vector at ``total``, rounded once."""
    product = builder.fmul(value, numbers, flags=_ROUND)
    old = builder.load(total, align=4)
    builder.store(builder.fadd(product, old, flags=_ROUND), total, align=4)


def _columns(n_vectors: int, summed: bool) -> Columns:
    """Make the kernel for ``n_vectors * 16`` columns from ``column`` on.

    Over the entries from start to stop it sums value * table[row - first] in ``row_h``.
    Without ``summed`` it adds value * row_h to table[row - first] instead.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, column, start, stop, first = args[:5]
        row_h, rows, values, table = (
            context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 5, 6, 7)
        )
        width = builder.extract_value(table.shape, 1)
        row_places = _vectors(builder, row_h, column, n_vectors)
        # LLVM keeps these stack slots in registers
        registers = [cgutils.alloca_once(builder, _VECTOR) for _ in row_places]  # type: ignore[no-untyped-call]
        for register, place in zip(registers, row_places, strict=True):
            zero = _VECTOR([0.0] * _WIDTH)
            builder.store(zero if summed else builder.load(place, align=4), register)
        with cgutils.for_range_slice(builder, start, stop, _LONG(1), _LONG) as (entry, _):
            row = builder.zext(builder.load(builder.gep(rows.data, [entry])), _LONG)
            value = _broadcast(builder, builder.load(builder.gep(values.data, [entry])))
            offset = builder.add(builder.mul(builder.sub(row, first), width), column)
            table_places = _vectors(builder, table, offset, n_vectors)
            for register, place in zip(registers, table_places, strict=True):
                if summed:
                    _add(builder, register, value, builder.load(place, align=4))
                else:
                    _add(builder, place, value, builder.load(register))
        if summed:
            for register, place in zip(registers, row_places, strict=True):
                builder.store(builder.load(register), place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def columns(
        typingctx: Any,
        row_h: Any,
        column: Any,
        start: Any,
        stop: Any,
        first: Any,
        rows: Any,
        values: Any,
        table: Any,
    ) -> Any:
        integers = (types.intp,) * 4
        return types.none(row_h, *integers, rows, values, table), codegen

    return cast("Columns", columns)


_sum_8, _sum_4, _sum_2, _sum_1 = (_columns(n, summed=True) for n in (8, 4, 2, 1))
_add_4, _add_2, _add_1 = (_columns(n, summed=False) for n in (4, 2, 1))


@kernel(fastmath=SUMS)
def weighted_rows(out_h: F32, start: int, stop: int, rows: I32, values: F32, table: F32) -> None:
    """Write the sum, over entries from start to stop, of value * table[row].

    Every array must be contiguous, and every row must be one of the table. The sum goes
    from the first entry to the last.
    """
    vector_loop()
    h = out_h.size
    c = 0
    while c + 128 <= h:
        _sum_8(out_h, c, start, stop, 0, rows, values, table)
        c += 128
    if c + 64 <= h:
        _sum_4(out_h, c, start, stop, 0, rows, values, table)
        c += 64
    if c + 32 <= h:
        _sum_2(out_h, c, start, stop, 0, rows, values, table)
        c += 32
    if c + 16 <= h:
        _sum_1(out_h, c, start, stop, 0, rows, values, table)
        c += 16
    if c < h:
        out_h[c:] = np.float32(0)
        for i in range(start, stop):
            row = table[rows[i]]
            for j in range(c, h):
                out_h[j] += values[i] * row[j]


@inner_kernel(fastmath=SUMS)
def add_to_rows(
    table: F32, start: int, stop: int, first: int, rows: I32, values: F32, row_h: F32
) -> None:
    """Add value * row_h to table[row - first], for the entries from start to stop in turn.

    Every array must be contiguous, and every row must be one of the table.
    """
    vector_loop()
    h = row_h.size
    c = 0
    while c + 64 <= h:
        _add_4(row_h, c, start, stop, first, rows, values, table)
        c += 64
    if c + 32 <= h:
        _add_2(row_h, c, start, stop, first, rows, values, table)
        c += 32
    if c + 16 <= h:
        _add_1(row_h, c, start, stop, first, rows, values, table)
        c += 16
    if c < h:
        for i in range(start, stop):
            total = table[rows[i] - first]
            for j in range(c, h):
                total[j] += values[i] * row_h[j]
