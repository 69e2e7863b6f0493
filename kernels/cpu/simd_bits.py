"""Comparisons and bits of the SIMD vocabulary: lanes that reach a limit, floats as integers, and
powers of two read off their bits."""

from typing import Any

import numpy as np
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


@_op(f32x16, i32x16)
def as_f32(b: Any, x: Any) -> Any:
    """The float32 lanes of these bits."""
    return b.bitcast(x, _F32X16)


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


# Coarse powers of two: 2^(i + f) is taken as 2^i (1 + f), which is what the bits of a float say: an
# octave is 2^23 of them, and 2^0 is ONE_BITS. Up to 6 % too large, by a factor of f alone: sums of
# such powers may be moved by whole octaves, and ratios of them are within 3 % of the true ones.
LOG2_E, LOG_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
OCTAVE_BITS = 2.0**23
ONE_BITS = 127 * 2.0**23
# No power below 2^-100: the product of two floats so small is still normal, and quick.
LEAST_BITS = 27 * 2.0**23


@_op(f32x16, f32x16, f32x16, f32x16)
def coarse_power(b: Any, x: Any, step: Any, offset: Any) -> Any:
    """The float whose bits are x * step + offset, but no less than 2^-100."""
    bits = _call(b, "llvm.fma.v16f32", _F32X16, x, step, offset)
    least = _const(_F32X16, LEAST_BITS)
    bits = b.select(b.fcmp_ordered(">", bits, least), bits, least)
    return b.bitcast(b.fptosi(bits, _I32X16), _F32X16)


@_op(f32x16, f32x16, f32x16, f32x16)
def coarse_power_near(b: Any, x: Any, step: Any, offset: Any) -> Any:
    """The float whose bits are x * step + offset, for powers between 2^-126 and 2^127."""
    bits = _call(b, "llvm.fma.v16f32", _F32X16, x, step, offset)
    return b.bitcast(b.fptosi(bits, _I32X16), _F32X16)


@_op(f32x16, f32x16)
def coarse_log(b: Any, x: Any) -> Any:
    """The coarse power of two that a positive x is: the exponent, and its fraction above it."""
    bits = b.sub(b.bitcast(x, _I32X16), _const(_I32X16, int(ONE_BITS)))
    return b.fmul(b.sitofp(bits, _F32X16), _const(_F32X16, 1 / OCTAVE_BITS))


@_op(f32x16, f32x16)
def nearest(b: Any, x: Any) -> Any:
    """The nearest whole number, ties to even."""
    return _call(b, "llvm.rint.v16f32", _F32X16, x)


@_op(i32x16, i32x16, i32x16, types.int32, types.int32)
def mix_i32(b: Any, x: Any, y: Any, spread: Any, factor: Any) -> Any:
    """x + y * spread, rotated 13 bits to the left, times a factor, as uint32."""
    x = b.add(x, b.mul(y, _splat(b, spread)))
    rotated = b.or_(b.shl(x, _const(_I32X16, 13)), b.lshr(x, _const(_I32X16, 19)))
    return b.mul(rotated, _splat(b, factor))


@_op(i32x16, types.int32)
def count_lanes_from(b: Any, first: Any) -> Any:
    """first, first + 1, …, first + 15."""
    return b.add(_splat(b, first), ir.Constant(_I32X16, list(range(16))))
