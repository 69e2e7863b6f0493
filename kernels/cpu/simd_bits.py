"""Comparisons and bits of the SIMD vocabulary: lanes that reach a limit, floats as integers."""

from typing import Any

from llvmlite import ir
from numba.core import types

from .simd import (
    _F32,
    _F32X16,
    _I1,
    _I16,
    _I32,
    _I32X16,
    _I64,
    _call,
    _const,
    _op,
    _splat,
    f32x16,
    i32x16,
)


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


def _shift_right(bits: int) -> Any:
    @_op(i32x16, i32x16)
    def shift_right(b: Any, x: Any) -> Any:
        """x / 2^bits, rounded down."""
        return b.ashr(x, _const(_I32X16, bits))

    return shift_right


shift_right_2, shift_right_4, shift_right_6 = (_shift_right(n) for n in (2, 4, 6))


# `exp_coarse`: one octave of the exponent field, and the field of 2^-0.043.
COARSE_STEP = 2.0**23 * 1.4426950408889634
COARSE_OFFSET = 2.0**23 * (127 - 0.043)


@_op(f32x16, f32x16)
def exp_coarse(b: Any, x: Any) -> Any:
    """e^x to 3 %, by straight lines between powers of two; x is held to -86..0."""
    low, high = _const(_F32X16, -86.0), _const(_F32X16, 0.0)
    x = b.select(b.fcmp_ordered(">", x, low), x, low)
    x = b.select(b.fcmp_ordered("<", x, high), x, high)
    # 2^(i + f) is read off the bits of a float as 2^i (1 + f); the offset centres the error.
    step, offset = _const(_F32X16, COARSE_STEP), _const(_F32X16, COARSE_OFFSET)
    bits = _call(b, "llvm.fma.v16f32", _F32X16, x, step, offset)
    return b.bitcast(b.fptosi(bits, _I32X16), _F32X16)


@_op(i32x16, i32x16, i32x16, types.int32)
def mix_i32(b: Any, x: Any, y: Any, factor: Any) -> Any:
    """(x ^ y), rotated 13 bits to the left, times a factor, as uint32."""
    x = b.xor(x, y)
    rotated = b.or_(b.shl(x, _const(_I32X16, 13)), b.lshr(x, _const(_I32X16, 19)))
    return b.mul(rotated, _splat(b, factor))


@_op(i32x16, types.int32)
def count_lanes_from(b: Any, first: Any) -> Any:
    """first, first + 1, …, first + 15."""
    return b.add(_splat(b, first), ir.Constant(_I32X16, list(range(16))))
