"""The small floats of the SIMD vocabulary: float16, bfloat16 and float8 e4m3, via float32."""

from typing import Any

from llvmlite import ir
from numba.core import types

from .simd import (
    _F16,
    _F16X16,
    _F32,
    _F32X16,
    _I8,
    _I16,
    _I32,
    _I32X16,
    _U8X64,
    ISA,
    _address,
    _const,
    _load,
    _op,
    _splat,
    f32x16,
    i32x16,
    u8x64,
)


def _widen_f16(b: Any, half: Any) -> Any:
    """float16 to float32, scalar or vector; without F16C by moving bits (finite values only)."""
    vector = isinstance(half.type, ir.VectorType)
    wide_float, wide_int = (_F32X16, _I32X16) if vector else (_F32, _I32)
    if ISA != "generic":
        return b.fpext(half, wide_float)
    narrow = ir.VectorType(_I16, 16) if vector else _I16
    bits = b.zext(b.bitcast(half, narrow), wide_int)

    def constant(kind: Any, value: float) -> Any:
        return _const(kind, value) if vector else ir.Constant(kind, value)

    magnitude = b.shl(b.and_(bits, constant(wide_int, 0x7FFF)), constant(wide_int, 13))
    value = b.fmul(b.bitcast(magnitude, wide_float), constant(wide_float, 2.0**112))
    sign = b.shl(b.and_(bits, constant(wide_int, 0x8000)), constant(wide_int, 16))
    return b.bitcast(b.or_(b.bitcast(value, wide_int), sign), wide_float)


def _narrow_f16(b: Any, x: Any) -> Any:
    """float32 lanes to float16 held to +-65504, rounded to nearest even; bits where no F16C."""
    top = _const(_F32X16, 65504.0)
    x = b.select(b.fcmp_ordered(">", x, top), top, x)
    low = _const(_F32X16, -65504.0)
    x = b.select(b.fcmp_ordered("<", x, low), low, x)
    if ISA != "generic":
        return b.fptrunc(x, _F16X16)
    bits = b.bitcast(x, _I32X16)
    sign = b.lshr(b.and_(bits, _const(_I32X16, 0x80000000)), _const(_I32X16, 16))
    magnitude = b.bitcast(b.and_(bits, _const(_I32X16, 0x7FFFFFFF)), _F32X16)
    # Below 2^-14 the sum with 0.5 has its last bit at 2^-24, the step of float16 subnormals.
    small = b.sub(
        b.bitcast(b.fadd(magnitude, _const(_F32X16, 0.5)), _I32X16), _const(_I32X16, 0x3F000000)
    )
    m = b.bitcast(magnitude, _I32X16)
    odd = b.and_(b.lshr(m, _const(_I32X16, 13)), _const(_I32X16, 1))
    moved = b.add(b.add(m, _const(_I32X16, 0xFFF - (112 << 23))), odd)
    is_small = b.fcmp_ordered("<", magnitude, _const(_F32X16, 2.0**-14))
    half = b.select(is_small, small, b.lshr(moved, _const(_I32X16, 13)))
    return b.bitcast(b.trunc(b.or_(half, sign), ir.VectorType(_I16, 16)), _F16X16)


@_op(f32x16, _address)
def load_f16(b: Any, p: Any) -> Any:
    """16 float16, widened."""
    return _widen_f16(b, _load(b, p, _F16X16))


@_op(types.void, _address, f32x16)
def store_f16(b: Any, p: Any, v: Any) -> Any:
    """Write 16 float16, rounded to nearest even; what float16 cannot hold becomes +-65504."""
    b.store(_narrow_f16(b, v), b.inttoptr(p, _F16X16.as_pointer())).align = 1


@_op(f32x16, i32x16)
def low_bf16(b: Any, v: Any) -> Any:
    """The bfloat16 in the low half of each lane."""
    return b.bitcast(b.shl(v, _const(_I32X16, 16)), _F32X16)


@_op(f32x16, i32x16)
def high_bf16(b: Any, v: Any) -> Any:
    """The bfloat16 in the high half of each lane."""
    return b.bitcast(b.and_(v, _const(_I32X16, 0xFFFF0000)), _F32X16)


@_op(u8x64, _address)
def load_e4m3(b: Any, p: Any) -> Any:
    """32 float8 e4m3fn as float16 times 2^-8, for `low_f16` and `high_f16`.

    Multiply by `E4M3_UNIT`; the NaN codes read as 480. By way of float16, because its small values
    cost no more than others; those of float32 do.
    """
    words = ir.VectorType(_I16, 32)
    wide = b.sext(_load(b, p, ir.VectorType(_I8, 32)), words)
    return b.bitcast(b.and_(b.shl(wide, _const(words, 7)), _const(words, 0xBF80)), _U8X64)


@_op(types.float32, _address)
def load_scalar_e4m3(b: Any, p: Any) -> Any:
    """One float8 e4m3fn times 2^-8."""
    bits = b.and_(b.shl(b.sext(_load(b, p, _I8), _I16), _I16(7)), _I16(0xBF80))
    return _widen_f16(b, b.bitcast(bits, _F16))


E4M3_UNIT = 2.0**8


def _f16_half(b: Any, v: Any, first: int) -> Any:
    halves = b.bitcast(v, ir.VectorType(_F16, 32))
    index = ir.Constant(_I32X16, list(range(first, first + 16)))
    return _widen_f16(b, b.shuffle_vector(halves, halves, index))


@_op(f32x16, u8x64)
def low_f16(b: Any, v: Any) -> Any:
    """float16 0-15 of 32, widened."""
    return _f16_half(b, v, 0)


@_op(f32x16, u8x64)
def high_f16(b: Any, v: Any) -> Any:
    """float16 16-31 of 32, widened."""
    return _f16_half(b, v, 16)


@_op(f32x16, _address)
def load_u4m4(b: Any, p: Any) -> Any:
    """16 unsigned bytes of four exponent and four fraction bits; 0 is 0, 16 is 2^-7, 255 is 248."""
    wide = b.zext(_load(b, p, ir.VectorType(_I8, 16)), _I32X16)
    moved = b.bitcast(b.shl(wide, _const(_I32X16, 19)), _F32X16)
    return b.fmul(moved, _const(_F32X16, U4M4_UNIT))


U4M4_UNIT = 2.0**119


@_op(types.float32, _address)
def load_scalar_f16(b: Any, p: Any) -> Any:
    """One float16, widened."""
    return _widen_f16(b, _load(b, p, _F16))


@_op(types.float32, _address)
def load_scalar_bf16(b: Any, p: Any) -> Any:
    """One bfloat16, widened."""
    return b.bitcast(b.shl(b.zext(_load(b, p, _I16), _I32), _I32(16)), _F32)


@_op(types.void, _address, types.float32)
def store_scalar_f16(b: Any, p: Any, x: Any) -> Any:
    """Write one float16; rounding and range as in `store_f16`."""
    half = b.extract_element(_narrow_f16(b, _splat(b, x)), _I32(0))
    b.store(half, b.inttoptr(p, _F16.as_pointer())).align = 1
