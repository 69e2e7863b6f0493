"""The byte half of the SIMD vocabulary: nibbles, bit planes and the dot product of bytes.

The dot product is the one operation without a portable form: `vpdpbusd` on AVX-512 VNNI, `pmaddwd`
on AVX2, `usdot`, `sdot` or `smull` on NEON, plain 32-bit products elsewhere. All are exact.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import types

from . import target
from .simd import (
    _I1,
    _I8,
    _I16,
    _I32,
    _I32X16,
    _I64,
    _U8X64,
    ISA,
    _address,
    _call,
    _const,
    _load,
    _op,
    i32x16,
    u8x64,
)


@_op(u8x64, u8x64)
def low_nibbles(b: Any, v: Any) -> Any:
    """Bits 0-3 of each byte."""
    return b.and_(v, _const(_U8X64, 15))


@_op(u8x64, u8x64)
def high_nibbles(b: Any, v: Any) -> Any:
    """Bits 4-7 of each byte."""
    return b.lshr(v, _const(_U8X64, 4))


def _two_bits(shift: int) -> Any:
    @_op(u8x64, u8x64, u8x64)
    def or_two_bits(b: Any, nibbles: Any, v: Any) -> Any:
        """nibbles plus two bits of v, moved to bits 4-5."""
        move = 4 - shift
        wide = ir.VectorType(_I16, 32)
        v = b.bitcast(v, wide)
        if move > 0:
            v = b.shl(v, _const(wide, move))
        elif move < 0:
            v = b.lshr(v, _const(wide, -move))
        return b.or_(nibbles, b.and_(b.bitcast(v, _U8X64), _const(_U8X64, 0x30)))

    return or_two_bits


or_bits_0, or_bits_2, or_bits_4, or_bits_6 = (_two_bits(s) for s in (0, 2, 4, 6))


def _bit_pair(shift: int) -> Any:
    @_op(u8x64, u8x64)
    def bit_pair(b: Any, v: Any) -> Any:
        """Bits `shift` and `shift` + 1 of each byte, where they stand."""
        return b.and_(v, _const(_U8X64, 3 << shift))

    return bit_pair


bit_pair_0, bit_pair_2, bit_pair_4, bit_pair_6 = (_bit_pair(s) for s in (0, 2, 4, 6))


def _bit(place: int) -> Any:
    @_op(u8x64, u8x64)
    def bit(b: Any, v: Any) -> Any:
        """One bit of each byte, as 0 or 1."""
        moved = b.lshr(b.bitcast(v, _I32X16), _const(_I32X16, place))
        return b.and_(b.bitcast(moved, _U8X64), _const(_U8X64, 1))

    return bit


bit_0, bit_1, bit_2, bit_3, bit_4, bit_5, bit_6, bit_7 = (_bit(i) for i in range(8))


@_op(types.int64, _address)
def largest_of_128_bytes(b: Any, p: Any) -> Any:
    """The largest of the unsigned bytes p..p + 128."""
    low, high = _load(b, p, _U8X64), _load(b, b.add(p, _I64(64)), _U8X64)
    larger = b.select(b.icmp_unsigned(">", low, high), low, high)
    return b.zext(_call(b, "llvm.vector.reduce.umax.v64i8", _I8, larger), _I64)


@_op(u8x64, u8x64, _address)
def or_fifth_bits(b: Any, nibbles: Any, p: Any) -> Any:
    """nibbles plus 16 where the bit of the 64-bit word at p is set (bit i belongs to byte i)."""
    mask = b.bitcast(_load(b, p, _I64), ir.VectorType(_I1, 64))
    return b.or_(nibbles, b.select(mask, _const(_U8X64, 16), _const(_U8X64, 0)))


def _dot_portable(b: Any, acc: Any, u: Any, s: Any) -> Any:
    for k in range(4):
        x = b.and_(b.lshr(b.bitcast(u, _I32X16), _const(_I32X16, 8 * k)), _const(_I32X16, 255))
        y = b.ashr(b.shl(s, _const(_I32X16, 24 - 8 * k)), _const(_I32X16, 24))
        acc = b.add(acc, b.mul(x, y))
    return acc


def _dot_avx2(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """Bytes widened to 16 bits, then pmaddwd: exact for every u8 and i8 (pmaddubsw saturates)."""
    words, sums = ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
    s = b.bitcast(s, _U8X64)
    wide = []
    for part in range(2):
        index = ir.Constant(ir.VectorType(_I32, 32), list(range(32 * part, 32 * part + 32)))
        x = b.shuffle_vector(u, ir.Constant(_U8X64, ir.Undefined), index)
        y = b.shuffle_vector(s, ir.Constant(_U8X64, ir.Undefined), index)
        x, y = b.bitcast(x, words), b.bitcast(y, words)
        even = _call(
            b,
            "llvm.x86.avx2.pmadd.wd",
            sums,
            b.and_(x, _const(words, 255)),
            b.ashr(b.shl(y, _const(words, 8)), _const(words, 8)),
        )
        odd = _call(
            b,
            "llvm.x86.avx2.pmadd.wd",
            sums,
            b.lshr(x, _const(words, 8)),
            b.ashr(y, _const(words, 8)),
        )
        wide.append(b.add(even, odd))
    joined = b.shuffle_vector(wide[0], wide[1], ir.Constant(_I32X16, list(range(16))))
    return b.add(acc, joined)


def _dot_avx512(b: Any, acc: Any, u: Any, s: Any) -> Any:
    # LLVM 22 changed the operands of vpdpbusd from <16 x i32> to <64 x i8>.
    operand = _U8X64 if binding.llvm_version_info[0] >= 22 else _I32X16
    name = "llvm.x86.avx512.vpdpbusd.512"
    return _call(b, name, _I32X16, acc, b.bitcast(u, operand), b.bitcast(s, operand))


_I32X4, _I8X16 = ir.VectorType(_I32, 4), ir.VectorType(_I8, 16)


def _quarter(b: Any, v: Any, part: int) -> Any:
    """A quarter of a vector of 512 bits: what a register of NEON holds."""
    n = v.type.count // 4
    index = ir.Constant(ir.VectorType(_I32, n), list(range(n * part, n * part + n)))
    return b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), index)


def _by_quarters(b: Any, emit: Callable[..., Any], acc: Any, u: Any, s: Any) -> Any:
    """`emit` of the quarters of acc, u and s, put together again."""
    s = b.bitcast(s, _U8X64)
    parts = [emit(b, *(_quarter(b, v, i) for v in (acc, u, s))) for i in range(4)]
    eight = ir.Constant(ir.VectorType(_I32, 8), list(range(8)))
    low, high = (b.shuffle_vector(*parts[i : i + 2], eight) for i in (0, 2))
    return b.shuffle_vector(low, high, ir.Constant(_I32X16, list(range(16))))


def _sdot(b: Any, acc: Any, x: Any, y: Any) -> Any:
    return _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", _I32X4, acc, x, y)


def _quarter_i8mm(b: Any, acc: Any, u: Any, s: Any) -> Any:
    return _call(b, "llvm.aarch64.neon.usdot.v4i32.v16i8", _I32X4, acc, u, s)


def _quarter_dotprod(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """Signed by signed alone: u - 128 in place of u, and 128 s by two steps of 64."""
    acc = _sdot(b, acc, b.xor(u, _const(_I8X16, 128)), s)
    for _ in range(2):
        acc = _sdot(b, acc, _const(_I8X16, 64), s)
    return acc


def _quarter_smull(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """Even and odd bytes as 16 bits, products of 32 bits, neighbours added."""
    words, wide = ir.VectorType(_I16, 8), ir.VectorType(_I32, 8)
    u, s, eight = b.bitcast(u, words), b.bitcast(s, words), _const(words, 8)
    even = b.and_(u, _const(words, 255)), b.ashr(b.shl(s, eight), eight)
    odd = b.lshr(u, eight), b.ashr(s, eight)
    products = [b.mul(*(b.sext(v, wide) for v in pair)) for pair in (even, odd)]
    pairs = b.add(*products)
    halves = [
        b.shuffle_vector(pairs, pairs, ir.Constant(_I32X4, list(range(first, first + 4))))
        for first in (0, 4)
    ]
    return b.add(acc, _call(b, "llvm.aarch64.neon.addp.v4i32", _I32X4, *halves))


_QUARTERS = {"i8mm": _quarter_i8mm, "dotprod": _quarter_dotprod, "": _quarter_smull}


def _dot_neon(b: Any, acc: Any, u: Any, s: Any) -> Any:
    return _by_quarters(b, _QUARTERS[target.dot_products()], acc, u, s)


_DOT = {
    "avx512": _dot_avx512,
    "avx2": _dot_avx2,
    "neon": _dot_neon,
    "generic": _dot_portable,
}[ISA]


@_op(i32x16, i32x16, u8x64, i32x16)
def dot_u8i8(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc plus, per lane, the sum of four products of unsigned u and signed s bytes."""
    return _DOT(b, acc, u, s)


@_op(i32x16, i32x16, u8x64, i32x16)
def dot_u7i8(b: Any, acc: Any, u: Any, s: Any) -> Any:
    """`dot_u8i8` of u below 128, which signed products can take as they are."""
    if ISA == "neon" and target.dot_products() == "dotprod":
        return _by_quarters(b, _sdot, acc, u, s)
    return _DOT(b, acc, u, s)
