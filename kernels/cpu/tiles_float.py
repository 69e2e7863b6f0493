"""Tiles of the float formats against float32 activations; see tiles.py for group1 and group4."""

from typing import Any

import numpy as np
from numba import njit

from .naming import named
from .simd import (
    ISA,
    add,
    fma,
    load_f32,
    load_i32,
    load_splat_f32,
    mul,
    splat_f32,
    store_f32,
)
from .simd_half import (
    E4M3_UNIT,
    high_bf16,
    high_f16,
    load_e4m3,
    load_f16,
    low_bf16,
    low_f16,
)
from .simd_tile import fma_rows, stack_vectors

# Tokens that share a load of widened float8.
ROWS = 8 if ISA == "avx512" else 4
_fp8_tile, _fp8_tile1, _fp8_scratch = fma_rows(ROWS), fma_rows(1), stack_vectors(128)

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
    def group4(w: Any, n_tiles: Any, x: Any, xs: Any, xsum: Any, out: Any, out_row: Any) -> None:
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
        store_f32(out, add(a, e))
        store_f32(out + out_row, add(b, f))
        store_f32(out + 2 * out_row, add(c, g))
        store_f32(out + 3 * out_row, add(d, h))

    return group1, group4, 4


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
        v = load_e4m3(w + 16 * i)
        a = fma(low_f16(v), load_splat_f32(x + 4 * i), a)
        b = fma(high_f16(v), load_splat_f32(x + 4 * i + 4), b)
    return add(a, b)


@njit(nogil=True, error_model="numpy")
def fp8_group1(w: Any, n_tiles: Any, x: Any) -> Any:
    """A row group times one token."""
    acc = splat_f32(np.float32(0))
    scales, unit = w + 512 * n_tiles, splat_f32(np.float32(E4M3_UNIT))
    for t in range(0, n_tiles, 4):
        n = 32 * min(4, n_tiles - t)
        s = mul(load_splat_f32(scales + t), unit)
        acc = fma(_fp8_span(w + 512 * t, n, x + 128 * t), s, acc)
    return acc


@njit(nogil=True, error_model="numpy")
def fp8_rows(
    w: Any,
    step: Any,
    n_tiles: Any,
    x: Any,
    x_row: Any,
    n: Any,
    g0: Any,
    g1: Any,
    out: Any,
    out_row: Any,
) -> None:
    """Row groups g0..g1 for n tokens, as in tiles.py.

    The 128 columns of a scale are widened once for all tokens.
    """
    unit, wide = splat_f32(np.float32(E4M3_UNIT)), _fp8_scratch()
    for g in range(g0, g1):
        p, y = w + g * step, out + 64 * g
        for i in range(n):
            store_f32(y + out_row * i, splat_f32(np.float32(0)))
        for t in range(0, n_tiles, 4):
            n_columns, at, i = 32 * min(4, n_tiles - t), x + 128 * t, 0
            for c in range(0, n_columns, 2):
                halves = load_e4m3(p + 512 * t + 16 * c)
                store_f32(wide + 64 * c, low_f16(halves))
                store_f32(wide + 64 * c + 64, high_f16(halves))
            s = mul(load_splat_f32(p + 512 * n_tiles + t), unit)
            while i + ROWS <= n:
                _fp8_tile(at + x_row * i, x_row, wide, n_columns, s, y + out_row * i, out_row)
                i += ROWS
            while i < n:
                _fp8_tile1(at + x_row * i, x_row, wide, n_columns, s, y + out_row * i, out_row)
                i += 1


f32 = _float_groups("f32", _columns_f32, 2048, 1)
f16 = _float_groups("f16", _columns_f16, 1024, 1)
bf16 = _float_groups("bf16", _columns_bf16, 1024, 2)
