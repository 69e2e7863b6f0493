"""Tiles of the float formats against float32 activations; see tiles.py for group1 and group4."""

from typing import Any

import numpy as np
from numba import njit

from .naming import named
from .simd import (
    add,
    fma,
    load_f32,
    load_i32,
    load_splat_f32,
    mul,
    splat_f32,
)
from .simd_half import E4M3_UNIT, high_bf16, load_e4m3, load_f16, low_bf16

INLINE = {"forceinline": True, "nogil": True, "error_model": "numpy"}


def _float_groups(name: str, columns: Any, tile_bytes: int, step: int) -> Any:
    """group1 and group4 over tiles whose `columns(w, x, acc)` adds `step` columns."""
    n_steps, step_bytes = 32 // step, tile_bytes * step // 32

    @njit(nogil=True, error_model="numpy")
    @named(name)
    def group1(w: Any, n_tiles: Any, x: Any, xs: Any, xsum: Any) -> Any:
        acc = other = splat_f32(np.float32(0))
        for _ in range(n_tiles * n_steps // 2):
            acc = columns(w, x, acc)
            other = columns(w + step_bytes, x + 4 * step, other)
            w += 2 * step_bytes
            x += 8 * step
        return add(acc, other)

    @njit(nogil=True, error_model="numpy")
    @named(name)
    def group4(w: Any, n_tiles: Any, x: Any, xs: Any, xsum: Any) -> Any:
        a = b = c = d = splat_f32(np.float32(0))
        e = f = g = h = splat_f32(np.float32(0))
        row = 128 * n_tiles
        for _ in range(n_tiles * n_steps // 2):
            v, y = w + step_bytes, x + 4 * step
            a = columns(w, x, a)
            b = columns(w, x + row, b)
            c = columns(w, x + 2 * row, c)
            d = columns(w, x + 3 * row, d)
            e = columns(v, y, e)
            f = columns(v, y + row, f)
            g = columns(v, y + 2 * row, g)
            h = columns(v, y + 3 * row, h)
            w += 2 * step_bytes
            x += 8 * step
        return add(a, e), add(b, f), add(c, g), add(d, h)

    return group1, group4


@njit(**INLINE)
def _columns_f32(w: Any, x: Any, acc: Any) -> Any:
    return fma(load_f32(w), load_splat_f32(x), acc)


@njit(**INLINE)
def _columns_f16(w: Any, x: Any, acc: Any) -> Any:
    return fma(load_f16(w), load_splat_f32(x), acc)


@njit(**INLINE)
def _columns_bf16(w: Any, x: Any, acc: Any) -> Any:
    v = load_i32(w)
    acc = fma(low_bf16(v), load_splat_f32(x), acc)
    return fma(high_bf16(v), load_splat_f32(x + 4), acc)


@njit(**INLINE)
def _fp8_span(w: Any, n: Any, x: Any) -> Any:
    """n columns (a multiple of 2) of one 128-column block, unscaled."""
    a = b = splat_f32(np.float32(0))
    for i in range(0, n, 2):
        a = fma(load_e4m3(w + 16 * i), load_splat_f32(x + 4 * i), a)
        b = fma(load_e4m3(w + 16 * i + 16), load_splat_f32(x + 4 * i + 4), b)
    return add(a, b)


@njit(nogil=True, error_model="numpy")
def _fp8_group1(w: Any, n_tiles: Any, x: Any, xs: Any, xsum: Any) -> Any:
    acc = splat_f32(np.float32(0))
    scales, unit = w + 512 * n_tiles, splat_f32(np.float32(E4M3_UNIT))
    for t in range(0, n_tiles, 4):
        n = 32 * min(4, n_tiles - t)
        s = mul(load_splat_f32(scales + t), unit)
        acc = fma(_fp8_span(w + 512 * t, n, x + 128 * t), s, acc)
    return acc


@njit(nogil=True, error_model="numpy")
def _fp8_group4(w: Any, n_tiles: Any, x: Any, xs: Any, xsum: Any) -> Any:
    a = b = c = d = splat_f32(np.float32(0))
    scales, unit, row = w + 512 * n_tiles, splat_f32(np.float32(E4M3_UNIT)), 128 * n_tiles
    for t in range(0, n_tiles, 4):
        n = 32 * min(4, n_tiles - t)
        s = mul(load_splat_f32(scales + t), unit)
        p, y = w + 512 * t, x + 128 * t
        e0 = e1 = e2 = e3 = splat_f32(np.float32(0))
        o0 = o1 = o2 = o3 = splat_f32(np.float32(0))
        for i in range(0, n, 2):
            u, v, z = load_e4m3(p + 16 * i), load_e4m3(p + 16 * i + 16), y + 4 * i
            e0 = fma(u, load_splat_f32(z), e0)
            o0 = fma(v, load_splat_f32(z + 4), o0)
            e1 = fma(u, load_splat_f32(z + row), e1)
            o1 = fma(v, load_splat_f32(z + row + 4), o1)
            e2 = fma(u, load_splat_f32(z + 2 * row), e2)
            o2 = fma(v, load_splat_f32(z + 2 * row + 4), o2)
            e3 = fma(u, load_splat_f32(z + 3 * row), e3)
            o3 = fma(v, load_splat_f32(z + 3 * row + 4), o3)
        a = fma(add(e0, o0), s, a)
        b = fma(add(e1, o1), s, b)
        c = fma(add(e2, o2), s, c)
        d = fma(add(e3, o3), s, d)
    return a, b, c, d


f32 = _float_groups("f32", _columns_f32, 2048, 1)
f16 = _float_groups("f16", _columns_f16, 1024, 1)
bf16 = _float_groups("bf16", _columns_bf16, 1024, 2)
fp8 = (_fp8_group1, _fp8_group4)
