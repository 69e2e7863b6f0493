"""The register tile of a small matrix product: rows of scalars times rows of vectors.

Accumulators stay in registers for the whole sum, so that a multiplication costs far less than a
load. Every sum is one chain in the order of the inner index: an element of the result is the same
whatever the shape of the tile.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from .simd import _F32, _F32X16, _I64, ISA, _address, _call, _const, _load, _op, _splat, f32x16

# Rows and vectors of a tile: as many accumulators as the registers hold, less the operands.
BLOCK_ROWS, BLOCK_VECTORS = (12, 2) if ISA == "avx512" else (4, 1)
# Bytes between the rows of vectors: two vectors.
STEP_BYTES = 128


def fma_tile(rows: int, vectors: int, scalar_row: int, accumulate: bool) -> Any:
    """Make an operation: out[r][v] = sum over i < n of scalars[r][i] * matrix[i][v].

    scalar_row: bytes between the rows of scalars (float32); accumulate: add the sum to out. The
    operation takes the addresses of scalars and matrix, n, the address of out and its row bytes.
    """

    @_op(types.void, _address, _address, types.int64, _address, types.int64)
    def product(b: Any, scalars: Any, matrix: Any, n: Any, out: Any, out_row: Any) -> Any:
        zero = _const(_F32X16, 0.0)
        sums = [[cgutils.alloca_once_value(b, zero) for _ in range(vectors)] for _ in range(rows)]
        with cgutils.for_range(b, n) as loop:
            line = b.add(matrix, b.mul(loop.index, _I64(STEP_BYTES)))
            line = [_load(b, b.add(line, _I64(64 * v)), _F32X16) for v in range(vectors)]
            column = b.add(scalars, b.mul(loop.index, _I64(4)))
            for r in range(rows):
                x = _splat(b, _load(b, b.add(column, _I64(scalar_row * r)), _F32))
                for v in range(vectors):
                    total = b.load(sums[r][v])
                    b.store(_call(b, "llvm.fma.v16f32", _F32X16, line[v], x, total), sums[r][v])
        for r in range(rows):
            for v in range(vectors):
                at = b.add(b.add(out, b.mul(out_row, _I64(r))), _I64(64 * v))
                total = b.load(sums[r][v])
                if accumulate:
                    total = b.fadd(_load(b, at, _F32X16), total)
                b.store(total, b.inttoptr(at, _F32X16.as_pointer())).align = 1

    return product


def fma_rows(rows: int) -> Any:
    """Make an operation: out[r] += scale * sum over i < n of scalars[r][i] * matrix[i].

    Even and odd i (n is even) are summed apart. The operation takes the address of scalars and
    their row bytes, the address of the matrix (vectors, one after another), n, the scale (a
    vector), the address of out and its row bytes.
    """

    @_op(types.void, _address, types.int64, _address, types.int64, f32x16, _address, types.int64)
    def product(
        b: Any, scalars: Any, row: Any, matrix: Any, n: Any, scale: Any, out: Any, out_row: Any
    ) -> Any:
        zero = _const(_F32X16, 0.0)
        sums = [[cgutils.alloca_once_value(b, zero) for _ in range(2)] for _ in range(rows)]
        with cgutils.for_range(b, b.lshr(n, _I64(1))) as loop:
            line = b.add(matrix, b.mul(loop.index, _I64(128)))
            pair = [_load(b, b.add(line, _I64(64 * j)), _F32X16) for j in range(2)]
            column = b.add(scalars, b.mul(loop.index, _I64(8)))
            for r in range(rows):
                at = b.add(column, b.mul(row, _I64(r)))
                for j in range(2):
                    x = _splat(b, _load(b, b.add(at, _I64(4 * j)), _F32))
                    total = b.load(sums[r][j])
                    b.store(_call(b, "llvm.fma.v16f32", _F32X16, pair[j], x, total), sums[r][j])
        for r in range(rows):
            at = b.add(out, b.mul(out_row, _I64(r)))
            total = b.fadd(*(b.load(half) for half in sums[r]))
            total = _call(b, "llvm.fma.v16f32", _F32X16, total, scale, _load(b, at, _F32X16))
            b.store(total, b.inttoptr(at, _F32X16.as_pointer())).align = 1

    return product


def stack_vectors(count: int) -> Any:
    """Make an operation that gives the address of `count` vectors, valid until its caller returns.

    A caller that is inlined returns with the function around it.
    """

    @_op(_address)
    def scratch(b: Any) -> Any:
        array = cgutils.alloca_once(b, ir.ArrayType(_F32X16, count))
        array.align = 64
        return b.ptrtoint(array, _I64)

    return scratch
