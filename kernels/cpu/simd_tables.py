"""Byte tables of the SIMD vocabulary (AVX-512 VBMI alone): 64 look-ups by one instruction."""

from typing import Any

from llvmlite import binding, ir

from .simd import (
    _F32X16,
    _I16,
    _I32X16,
    _U8X64,
    _address,
    _call,
    _const,
    _load,
    _op,
    f32x16,
    i32x16,
    u8x64,
)

# Codes stand half a step beside the centre: -1.5, -0.5, 0.5, 1.5.
_GRID = (-1.5, -0.5, 0.5, 1.5)


@_op(f32x16)
def inner_codes(b: Any) -> Any:
    """The grid value of bits 0-1 of 0..15."""
    return ir.Constant(_F32X16, [_GRID[i % 4] for i in range(16)])


@_op(f32x16)
def outer_codes(b: Any) -> Any:
    """The grid value of bits 2-3 of 0..15."""
    return ir.Constant(_F32X16, [_GRID[i // 4] for i in range(16)])


def _bit_signs(bit: int) -> Any:
    @_op(f32x16)
    def bit_signs(b: Any) -> Any:
        """1 where a bit of 0..15 is set, -1 where it is not."""
        return ir.Constant(_F32X16, [1.0 if i >> bit & 1 else -1.0 for i in range(16)])

    return bit_signs


bit_signs_0, bit_signs_1, bit_signs_2, bit_signs_3 = (_bit_signs(i) for i in range(4))


def _places(shift: int) -> Any:
    @_op(u8x64, u8x64)
    def places(b: Any, v: Any) -> Any:
        """Bits shift..shift + 3 of each byte, plus 16 times the byte's place in its lane."""
        if shift:
            wide = ir.VectorType(_I16, 32)
            v = b.bitcast(b.lshr(b.bitcast(v, wide), _const(wide, shift)), _U8X64)
        place = ir.Constant(_U8X64, [16 * (i % 4) for i in range(64)])
        return b.or_(b.and_(v, _const(_U8X64, 15)), place)

    return places


low_places, high_places = _places(0), _places(4)


@_op(u8x64, _address, u8x64)
def look_up(b: Any, table: Any, places: Any) -> Any:
    """table[place] for each place; a table is 64 bytes."""
    entries = _load(b, table, _U8X64)
    return _call(b, "llvm.x86.avx512.permvar.qi.512", _U8X64, entries, places)


@_op(i32x16, i32x16, u8x64)
def add_bytes(b: Any, acc: Any, v: Any) -> Any:
    """acc plus the four signed bytes of each lane."""
    # LLVM 22 changed the operands of vpdpbusd from <16 x i32> to <64 x i8>.
    operand = _U8X64 if binding.llvm_version_info[0] >= 22 else _I32X16
    ones = b.bitcast(_const(_U8X64, 1), operand)
    name = "llvm.x86.avx512.vpdpbusd.512"
    return _call(b, name, _I32X16, acc, ones, b.bitcast(v, operand))
