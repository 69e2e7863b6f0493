"""Tiles of the integer formats against int8 activations.

Activations are quantised per 32 columns: codes int8 [K], scales float32 [K/32], sums of 16 codes
int32 [K/16]. See tiles.py for group1 and group8.
"""

from typing import Any

import numpy as np
from numba import njit

from .naming import named
from .simd import (
    add_i32,
    fma,
    load_i8_as_i32,
    load_scalar_f32,
    load_scalar_i32,
    load_splat_f32,
    load_splat_i32,
    load_u8,
    load_u8_as_i32,
    mul,
    splat_f32,
    splat_i32,
    store_f32,
    to_f32,
)
from .simd_bytes import (
    dot_u7i8,
    dot_u8i8,
    high_nibbles,
    low_nibbles,
    or_bits_0,
    or_bits_2,
    or_bits_4,
    or_bits_6,
    or_fifth_bits,
)
from .simd_half import load_f16

INLINE = {"forceinline": True, "nogil": True, "error_model": "numpy"}


# --- codes: the eight u8x64 of a tile, columns 4*i..4*i+3 in the i-th ----------------------------


@njit(**INLINE)
def _codes8(w: Any) -> Any:
    return (
        load_u8(w),
        load_u8(w + 64),
        load_u8(w + 128),
        load_u8(w + 192),
        load_u8(w + 256),
        load_u8(w + 320),
        load_u8(w + 384),
        load_u8(w + 448),
    )


@njit(**INLINE)
def _codes4(w: Any) -> Any:
    a, b, c, d = load_u8(w), load_u8(w + 64), load_u8(w + 128), load_u8(w + 192)
    return (
        low_nibbles(a),
        low_nibbles(b),
        low_nibbles(c),
        low_nibbles(d),
        high_nibbles(a),
        high_nibbles(b),
        high_nibbles(c),
        high_nibbles(d),
    )


@njit(**INLINE)
def _codes5(w: Any) -> Any:
    c, h = _codes4(w), w + 256
    return (
        or_fifth_bits(c[0], h),
        or_fifth_bits(c[1], h + 8),
        or_fifth_bits(c[2], h + 16),
        or_fifth_bits(c[3], h + 24),
        or_fifth_bits(c[4], h + 32),
        or_fifth_bits(c[5], h + 40),
        or_fifth_bits(c[6], h + 48),
        or_fifth_bits(c[7], h + 56),
    )


@njit(**INLINE)
def _codes6(w: Any) -> Any:
    c, h0, h1 = _codes4(w), load_u8(w + 256), load_u8(w + 320)
    return (
        or_bits_0(c[0], h0),
        or_bits_2(c[1], h0),
        or_bits_4(c[2], h0),
        or_bits_6(c[3], h0),
        or_bits_0(c[4], h1),
        or_bits_2(c[5], h1),
        or_bits_4(c[6], h1),
        or_bits_6(c[7], h1),
    )


def _dots(name: str, dot: Any) -> Any:
    """The products of a tile with 32 activation codes, by one operation."""

    @njit(**INLINE)
    @named(name)
    def dot32(c: Any, x: Any, start: Any) -> Any:
        """start plus the products of a tile with 32 activation codes at x."""
        a = dot(start, c[0], load_splat_i32(x))
        b = dot(splat_i32(np.int32(0)), c[1], load_splat_i32(x + 4))
        a = dot(a, c[2], load_splat_i32(x + 8))
        b = dot(b, c[3], load_splat_i32(x + 12))
        a = dot(a, c[4], load_splat_i32(x + 16))
        b = dot(b, c[5], load_splat_i32(x + 20))
        a = dot(a, c[6], load_splat_i32(x + 24))
        b = dot(b, c[7], load_splat_i32(x + 28))
        return add_i32(a, b)

    return dot32


# Codes of 4, 5 and 6 bits, and of 8.
_dot32, _dot32_wide = _dots("dot", dot_u7i8), _dots("wide", dot_u8i8)


@njit(**INLINE)
def _dot16(c: Any, first: Any, x: Any, start: Any) -> Any:
    """start plus the products of half a tile; `first` picks columns 0-15, else 16-31."""
    if first:
        a = dot_u7i8(start, c[0], load_splat_i32(x))
        b = dot_u7i8(splat_i32(np.int32(0)), c[1], load_splat_i32(x + 4))
        a = dot_u7i8(a, c[2], load_splat_i32(x + 8))
        b = dot_u7i8(b, c[3], load_splat_i32(x + 12))
    else:
        a = dot_u7i8(start, c[4], load_splat_i32(x + 16))
        b = dot_u7i8(splat_i32(np.int32(0)), c[5], load_splat_i32(x + 20))
        a = dot_u7i8(a, c[6], load_splat_i32(x + 24))
        b = dot_u7i8(b, c[7], load_splat_i32(x + 28))
    return add_i32(a, b)


@njit(**INLINE)
def _sum32(xsum: Any) -> Any:
    return np.int32(load_scalar_i32(xsum) + load_scalar_i32(xsum + 4))


# --- groups: a row group times one token or eight ------------------------------------------------


def _groups(name: str, codes: Any, token: Any, tile_bytes: int, super_bytes: int = 0) -> Any:
    """group1 and group8 over tiles, eight of which may share super-scales that follow them."""

    @njit(**INLINE)
    @named(name)
    def place(w: Any, t: Any) -> Any:
        """Addresses of tile t and of its super-scales."""
        if super_bytes == 0:
            return w + t * tile_bytes, w
        span = w + (t >> 3) * super_bytes
        return span + (t & 7) * tile_bytes, span + 8 * tile_bytes

    @njit(nogil=True, error_model="numpy")
    @named(name)
    def group1(w: Any, n_tiles: Any, x: Any, xs: Any, xsum: Any) -> Any:
        acc = splat_f32(np.float32(0))
        for t in range(n_tiles):
            p, d = place(w, t)
            acc = token(codes(p), p, d, x + 32 * t, xs + 4 * t, xsum + 8 * t, acc)
        return acc

    @njit(nogil=True, error_model="numpy")
    @named(name)
    def group8(w: Any, n_tiles: Any, x: Any, xs: Any, xsum: Any, out: Any, out_row: Any) -> None:
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = splat_f32(np.float32(0))
        i, j, k = 32 * n_tiles, 4 * n_tiles, 8 * n_tiles
        for t in range(n_tiles):
            p, d = place(w, t)
            u, y, s, m = codes(p), x + 32 * t, xs + 4 * t, xsum + 8 * t
            a0 = token(u, p, d, y, s, m, a0)
            a1 = token(u, p, d, y + i, s + j, m + k, a1)
            a2 = token(u, p, d, y + 2 * i, s + 2 * j, m + 2 * k, a2)
            a3 = token(u, p, d, y + 3 * i, s + 3 * j, m + 3 * k, a3)
            a4 = token(u, p, d, y + 4 * i, s + 4 * j, m + 4 * k, a4)
            a5 = token(u, p, d, y + 5 * i, s + 5 * j, m + 5 * k, a5)
            a6 = token(u, p, d, y + 6 * i, s + 6 * j, m + 6 * k, a6)
            a7 = token(u, p, d, y + 7 * i, s + 7 * j, m + 7 * k, a7)
        store_f32(out, a0)
        store_f32(out + out_row, a1)
        store_f32(out + 2 * out_row, a2)
        store_f32(out + 3 * out_row, a3)
        store_f32(out + 4 * out_row, a4)
        store_f32(out + 5 * out_row, a5)
        store_f32(out + 6 * out_row, a6)
        store_f32(out + 7 * out_row, a7)

    return group1, group8, 8


# --- integer formats whose tile carries float16 scales -------------------------------------------


def _scaled(
    name: str,
    codes: Any,
    scale_at: int,
    tile_bytes: int,
    zero: int,
    has_min: bool,
    dot32: Any = _dot32,
) -> Any:
    """group1 and group8 of a format with one scale (and minimum) per row and tile.

    value = (code - zero) * scale, or code * scale + min.
    """

    @njit(**INLINE)
    @named(name)
    def token(c: Any, w: Any, d: Any, x: Any, xs: Any, xsum: Any, acc: Any) -> Any:
        sx = load_splat_f32(xs)
        start = splat_i32(np.int32(-zero) * _sum32(xsum))
        acc = fma(to_f32(dot32(c, x, start)), mul(load_f16(w + scale_at), sx), acc)
        if has_min:
            sum_x = np.float32(_sum32(xsum)) * load_scalar_f32(xs)
            acc = fma(load_f16(w + (scale_at + 32)), splat_f32(sum_x), acc)
        return acc

    return _groups(name, codes, token, tile_bytes)


# --- K formats: 8-bit scales inside the tile, float16 super-scales after eight tiles --------------


def _super(name: str, codes: Any, scale_at: int, tile_bytes: int) -> Any:
    """Q4_K and Q5_K: value = code * (d * sc) - dmin * mn."""

    @njit(**INLINE)
    @named(name)
    def token(c: Any, w: Any, d: Any, x: Any, xs: Any, xsum: Any, acc: Any) -> Any:
        sx = load_splat_f32(xs)
        dot = to_f32(_dot32(c, x, splat_i32(np.int32(0))))
        scale = mul(load_f16(d), to_f32(load_u8_as_i32(w + scale_at)))
        low = mul(load_f16(d + 32), to_f32(load_u8_as_i32(w + (scale_at + 16))))
        sum_x = np.float32(_sum32(xsum)) * load_scalar_f32(xs)
        return fma(low, splat_f32(-sum_x), fma(dot, mul(scale, sx), acc))

    return _groups(name, codes, token, tile_bytes, 8 * tile_bytes + 64)


@njit(**INLINE)
def _q6k_token(c: Any, w: Any, d: Any, x: Any, xs: Any, xsum: Any, acc: Any) -> Any:
    """Q6_K: value = (code - 32) * (d * sc), sc per 16 columns."""
    scale = mul(load_f16(d), load_splat_f32(xs))
    low = _dot16(c, True, x, splat_i32(np.int32(-32) * load_scalar_i32(xsum)))
    high = _dot16(c, False, x, splat_i32(np.int32(-32) * load_scalar_i32(xsum + 4)))
    acc = fma(mul(to_f32(low), to_f32(load_i8_as_i32(w + 384))), scale, acc)
    return fma(mul(to_f32(high), to_f32(load_i8_as_i32(w + 400))), scale, acc)


q8 = _scaled("q8", _codes8, 512, 544, 128, False, _dot32_wide)
q4 = _scaled("q4", _codes4, 256, 288, 8, False)
q4m = _scaled("q4m", _codes4, 256, 320, 0, True)
q5 = _scaled("q5", _codes5, 320, 352, 16, False)
q5m = _scaled("q5m", _codes5, 320, 384, 0, True)
q4k = _super("q4k", _codes4, 256, 288)
q5k = _super("q5k", _codes5, 320, 352)
q6k = _groups("q6k", _codes6, _q6k_token, 416, 8 * 416 + 32)
