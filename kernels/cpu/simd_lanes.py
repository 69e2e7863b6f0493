"""Lanes of the SIMD vocabulary: halves of vectors, and choices by lane."""

from typing import Any

from llvmlite import ir
from numba.core import types

from .simd import _F32X16, _I32X16, _const, _op, _splat, f32x16


@_op(f32x16, f32x16, f32x16)
def low_halves(b: Any, x: Any, y: Any) -> Any:
    """Lanes 0-7 of x, then of y."""
    return b.shuffle_vector(x, y, ir.Constant(_I32X16, [*range(8), *range(16, 24)]))


@_op(f32x16, f32x16, f32x16)
def high_halves(b: Any, x: Any, y: Any) -> Any:
    """Lanes 8-15 of x, then of y."""
    return b.shuffle_vector(x, y, ir.Constant(_I32X16, [*range(8, 16), *range(24, 32)]))


@_op(f32x16, types.float32, types.float32)
def splat_halves(b: Any, x: Any, y: Any) -> Any:
    """x in lanes 0-7, y in lanes 8-15."""
    halves = ir.Constant(_I32X16, [0] * 8 + [16] * 8)
    return b.shuffle_vector(_splat(b, x), _splat(b, y), halves)


@_op(f32x16, f32x16, types.float32, types.int32, types.int32, types.int32, types.int32)
def mask_halves(b: Any, x: Any, other: Any, low0: Any, high0: Any, low1: Any, high1: Any) -> Any:
    """x in the lanes low0 <= i < high0 of the first half and low1 <= i < high1 of the second,
    each counted from 0; `other` elsewhere."""
    lane = ir.Constant(_I32X16, [*range(8), *range(8)])
    halves = ir.Constant(_I32X16, [0] * 8 + [16] * 8)
    low = b.shuffle_vector(_splat(b, low0), _splat(b, low1), halves)
    high = b.shuffle_vector(_splat(b, high0), _splat(b, high1), halves)
    inside = b.and_(b.icmp_signed(">=", lane, low), b.icmp_signed("<", lane, high))
    return b.select(inside, x, _splat(b, other))


@_op(f32x16, f32x16, types.float32, f32x16)
def where_above(b: Any, x: Any, limit: Any, value: Any) -> Any:
    """value in the lanes where x > limit, 0 elsewhere."""
    above = b.fcmp_ordered(">", x, _splat(b, limit))
    return b.select(above, value, _const(_F32X16, 0.0))
