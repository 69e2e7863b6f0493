"""Comparisons and bits of the SIMD vocabulary: lanes that reach a limit, floats as integers."""

from typing import Any

from numba.core import types

from .simd import _F32, _I1, _I16, _I32, _I64, _call, _op, _splat, f32x16


def _mask(b: Any, bits: Any) -> Any:
    return b.zext(b.bitcast(bits, _I16), _I64)


@_op(types.int64, f32x16, types.float32)
def lanes_at_least(b: Any, x: Any, limit: Any) -> Any:
    """Bit i is set where lane i is at least limit."""
    return _mask(b, b.fcmp_ordered(">=", x, _splat(b, limit)))


@_op(types.int64, types.int64)
def count_bits(b: Any, x: Any) -> Any:
    """Bits set."""
    return _call(b, "llvm.ctpop.i64", _I64, x)


@_op(types.int64, types.int64)
def lowest_bit(b: Any, x: Any) -> Any:
    """Number of the lowest bit set; 64 of 0."""
    return _call(b, "llvm.cttz.i64", _I64, x, _I1(0))


@_op(types.float32, types.int32)
def float_of_bits(b: Any, x: Any) -> Any:
    """The float32 of these bits."""
    return b.bitcast(x, _F32)


@_op(types.int32, types.float32)
def bits_of_float(b: Any, x: Any) -> Any:
    """The bits of this float32."""
    return b.bitcast(x, _I32)
