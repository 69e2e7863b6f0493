"""Products of tiled matrices with activation rows: one format's row groups, many tokens.

Layouts: kernels/formats (docs/format.md). A format gives two functions (tiles_int.py,
tiles_float.py): group1 multiplies a 16-row group with one token, group4 or group8 with so many
tokens that share each unpacked tile. All add in the same order, so that a token's result does not
depend on its company. Addresses are int64; a result is 16 rows in the lanes of an f32x16.
"""

from typing import Any

from numba import njit

from . import tiles_float, tiles_int
from .naming import named
from .simd import store_f32

# Tokens that pass a row group before the next: their activations stay in the second-level cache.
TOKEN_BLOCK = 128

# Format codes of kernels/formats.
F32, F16, BF16, FP8, Q8, Q4, Q4M, Q5, Q5M, Q4K, Q5K, Q6K = range(1, 13)


def _rows(name: str, group1: Any, group_n: Any, size: int) -> Any:
    @njit(nogil=True, error_model="numpy")
    @named(name)
    def rows(
        w: Any,
        step: Any,
        n_tiles: Any,
        x: Any,
        xs: Any,
        xsum: Any,
        x_row: Any,
        n: Any,
        g0: Any,
        g1: Any,
        out: Any,
        out_row: Any,
    ) -> None:
        """Row groups g0..g1 for n tokens; out is float32 with out_row bytes per token."""
        s_row, m_row = 4 * n_tiles, 8 * n_tiles
        for start in range(0, n, TOKEN_BLOCK):
            end = min(n, start + TOKEN_BLOCK)
            for g in range(g0, g1):
                p, y, t = w + g * step, out + 64 * g, start
                while t < end:
                    if end - start < size:
                        v = group1(p, n_tiles, x + t * x_row, xs + t * s_row, xsum + t * m_row)
                        store_f32(y + t * out_row, v)
                        t += 1
                        continue
                    # The last tokens may be computed twice.
                    t = min(t, end - size)
                    f, q, s, m = t * out_row, t * x_row, t * s_row, t * m_row
                    group_n(p, n_tiles, x + q, xs + s, xsum + m, y + f, out_row)
                    t += size

    return rows


_rows_f32, _rows_f16 = _rows("f32", *tiles_float.f32), _rows("f16", *tiles_float.f16)
_rows_bf16 = _rows("bf16", *tiles_float.bf16)


@njit(nogil=True, error_model="numpy")
def _rows_fp8(
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
    if n == 1:
        for g in range(g0, g1):
            store_f32(out + 64 * g, tiles_float.fp8_group1(w + g * step, n_tiles, x))
        return
    for start in range(0, n, TOKEN_BLOCK):
        count, y = min(TOKEN_BLOCK, n - start), out + out_row * start
        tiles_float.fp8_rows(w, step, n_tiles, x + x_row * start, x_row, count, g0, g1, y, out_row)


_rows_q8, _rows_q4 = _rows("q8", *tiles_int.q8), _rows("q4", *tiles_int.q4)
_rows_q4m, _rows_q5 = _rows("q4m", *tiles_int.q4m), _rows("q5", *tiles_int.q5)
_rows_q5m, _rows_q4k = _rows("q5m", *tiles_int.q5m), _rows("q4k", *tiles_int.q4k)
_rows_q5k, _rows_q6k = _rows("q5k", *tiles_int.q5k), _rows("q6k", *tiles_int.q6k)


@njit(nogil=True, error_model="numpy")
def product(
    code: Any,
    w: Any,
    step: Any,
    n_cols: Any,
    xf: Any,
    xq: Any,
    xs: Any,
    xsum: Any,
    n: Any,
    g0: Any,
    g1: Any,
    out: Any,
    out_row: Any,
) -> None:
    """Row groups g0..g1 of a matrix in format `code` with n activation rows.

    w: address of the tiles, step bytes per row group; xf float32 [n, n_cols]; xq, xs, xsum its
    int8 quantisation (used by the integer formats); out float32, out_row bytes per token.
    """
    t, f_row = n_cols >> 5, 4 * n_cols
    if code == Q4:
        _rows_q4(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == Q4M:
        _rows_q4m(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == Q8:
        _rows_q8(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == Q4K:
        _rows_q4k(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == Q5:
        _rows_q5(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == Q5M:
        _rows_q5m(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == Q5K:
        _rows_q5k(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == Q6K:
        _rows_q6k(w, step, t, xq, xs, xsum, n_cols, n, g0, g1, out, out_row)
    elif code == FP8:
        _rows_fp8(w, step, t, xf, f_row, n, g0, g1, out, out_row)
    elif code == BF16:
        _rows_bf16(w, step, t, xf, xs, xsum, f_row, n, g0, g1, out, out_row)
    elif code == F16:
        _rows_f16(w, step, t, xf, xs, xsum, f_row, n, g0, g1, out, out_row)
    elif code == F32:
        _rows_f32(w, step, t, xf, xs, xsum, f_row, n, g0, g1, out, out_row)
