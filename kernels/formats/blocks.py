"""Integer codes with one float16 scale (and, in q4m and q5m, one minimum) per row and 32 columns.

q8, q4, q4m, q5 and q5m are the exact homes of GGUF Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1. A tile is its
codes, then scale[16], then min[16]; value = (code - zero) * scale or code * scale + min.
"""

import numpy as np

from . import nibbles
from .layout import (
    COLS,
    F16,
    F32,
    ROWS,
    U8,
    Format,
    FormatError,
    as_bytes,
    require_parts,
    to_groups,
)

# Scale candidates of the q4 search: the largest magnitude lands on 8 +- 1 steps. On Gaussian
# weights 1, 5, 9 and 19 candidates leave errors of 8.40, 8.11, 8.09 and 8.09 %.
_Q4_CANDIDATES = np.arange(-4, 5, dtype=np.float32) * np.float32(0.25) + np.float32(8)
_REFINEMENTS = 4
# Rows that a float quantiser works on at a time: keeps its temporaries in cache and small.
_SLAB_ROWS = 128


def _side(scale: F16) -> U8:
    """Scales [R, tiles] as [groups, tiles, 32 bytes]."""
    return as_bytes(to_groups(scale, "<f2").transpose(0, 2, 1))


def _join(*fields: U8) -> U8:
    joined = np.concatenate(fields, axis=2)
    return joined.reshape(len(joined), -1)


def pack_q8(codes: U8, scale: F16) -> U8:
    """Codes [R, K] uint8 (int8 + 128) and scale [R, K / 32] float16 as q8 groups; exact."""
    require_parts(codes, COLS, (scale,), COLS)
    tiles = nibbles.tile_codes(codes)
    return _join(tiles.reshape(*tiles.shape[:2], 512), _side(scale))


def pack_q4(codes: U8, scale: F16) -> U8:
    """Codes [R, K] 0..15 and scale [R, K / 32] float16 as q4 groups; exact."""
    require_parts(codes, COLS, (scale,), COLS, 16)
    return _join(nibbles.pack_low4(nibbles.tile_codes(codes)), _side(scale))


def pack_q4m(codes: U8, scale: F16, minimum: F16) -> U8:
    """Codes [R, K] 0..15, scale and minimum [R, K / 32] float16 as q4m groups; exact."""
    require_parts(codes, COLS, (scale, minimum), COLS, 16)
    return _join(nibbles.pack_low4(nibbles.tile_codes(codes)), _side(scale), _side(minimum))


def pack_q5(codes: U8, scale: F16) -> U8:
    """Codes [R, K] 0..31 and scale [R, K / 32] float16 as q5 groups; exact."""
    require_parts(codes, COLS, (scale,), COLS, 32)
    tiles = nibbles.tile_codes(codes)
    return _join(nibbles.pack_low4(tiles), nibbles.pack_bit4(tiles), _side(scale))


def pack_q5m(codes: U8, scale: F16, minimum: F16) -> U8:
    """Codes [R, K] 0..31, scale and minimum [R, K / 32] float16 as q5m groups; exact."""
    require_parts(codes, COLS, (scale, minimum), COLS, 32)
    tiles = nibbles.tile_codes(codes)
    low, high = nibbles.pack_low4(tiles), nibbles.pack_bit4(tiles)
    return _join(low, high, _side(scale), _side(minimum))


def _to_f16(values: F32, what: str) -> F16:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise FormatError(f"a {what} of {np.abs(values).max():g} is too large for float16")
    return half


def _codes(blocks: F32, scale: F32, low: int, high: int) -> F32:
    """Nearest integers of blocks [n, 32] / scale [n, 1], clipped; 0 where the scale is 0."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    # A subnormal scale has no finite inverse in float32; such a block is 0 to every reader.
    inverse[~np.isfinite(inverse)] = 0
    codes = blocks * inverse
    np.rint(codes, out=codes)
    return np.clip(codes, low, high, out=codes)


def quantize_q8(values: F32) -> tuple[U8, F16]:
    """Codes [R, K] uint8 and scale [R, K / 32] float16 of values, scale = amax / 127."""
    blocks = values.reshape(-1, COLS)
    scale = _to_f16(np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127), "q8 scale")
    codes = _codes(blocks, scale.astype(np.float32), -127, 127) + np.float32(128)
    return codes.astype(np.uint8).reshape(values.shape), scale.reshape(len(values), -1)


def _quantize_q4_slab(values: F32) -> tuple[U8, F16]:
    blocks = values.reshape(-1, COLS)
    index = np.abs(blocks).argmax(axis=1)[:, None]
    peak = np.take_along_axis(blocks, index, axis=1)
    best_scale = np.zeros_like(peak)
    best_gain = np.zeros_like(peak)
    for steps in _Q4_CANDIDATES:
        # The peak takes the sign that has the code -8: one more step than the other side.
        codes = _codes(blocks, peak / -steps, -8, 7)
        product = np.einsum("bk,bk->b", codes, blocks)[:, None]
        norm = np.einsum("bk,bk->b", codes, codes)[:, None]
        # The least-squares scale of these codes is product / norm; it takes gain off the error.
        scale = np.divide(product, norm, out=np.zeros_like(norm), where=norm > 0)
        gain = scale * product
        better = gain > best_gain
        best_scale = np.where(better, scale, best_scale)
        best_gain = np.where(better, gain, best_gain)
    half = _to_f16(best_scale, "q4 scale")
    codes = _codes(blocks, half.astype(np.float32), -8, 7) + np.float32(8)
    return codes.astype(np.uint8).reshape(values.shape), half.reshape(len(values), -1)


def _quantize_q4m_slab(values: F32) -> tuple[U8, F16, F16]:
    blocks = values.reshape(-1, COLS)
    low = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - low) / np.float32(15)
    minimum = low
    best_scale, best_minimum = np.zeros_like(scale), np.zeros_like(scale)
    best_error = np.full_like(scale, np.inf)
    mean = blocks.mean(axis=1, keepdims=True)
    for _ in range(_REFINEMENTS):
        scale = _to_f16(scale, "q4m scale").astype(np.float32)
        minimum = _to_f16(minimum, "q4m minimum").astype(np.float32)
        codes = _codes(blocks - minimum, scale, 0, 15)
        error = np.square(codes * scale + minimum - blocks).sum(axis=1, keepdims=True)
        better = error < best_error
        best_scale = np.where(better, scale, best_scale)
        best_minimum = np.where(better, minimum, best_minimum)
        best_error = np.where(better, error, best_error)
        # Least squares of the values on these codes: the next scale and minimum.
        centred = codes - codes.mean(axis=1, keepdims=True)
        norm = np.square(centred).sum(axis=1, keepdims=True)
        scale = np.divide(
            (centred * blocks).sum(axis=1, keepdims=True),
            norm,
            out=np.zeros_like(norm),
            where=norm > 0,
        )
        minimum = mean - scale * codes.mean(axis=1, keepdims=True)
    codes = _codes(blocks - best_minimum, best_scale, 0, 15)
    shape = (len(values), values.shape[1] // COLS)
    return (
        codes.astype(np.uint8).reshape(values.shape),
        best_scale.astype(np.float16).reshape(shape),
        best_minimum.astype(np.float16).reshape(shape),
    )


def quantize_q4(values: F32) -> tuple[U8, F16]:
    """Codes [R, K] 0..15 and scale [R, K / 32] float16: least squared error, zero at 8."""
    slabs = [_quantize_q4_slab(values[r : r + _SLAB_ROWS]) for r in _slab_starts(values)]
    return np.concatenate([s[0] for s in slabs]), np.concatenate([s[1] for s in slabs])


def quantize_q4m(values: F32) -> tuple[U8, F16, F16]:
    """Codes [R, K] 0..15, scale and minimum [R, K / 32] float16, fitted by least squares."""
    slabs = [_quantize_q4m_slab(values[r : r + _SLAB_ROWS]) for r in _slab_starts(values)]
    return (
        np.concatenate([s[0] for s in slabs]),
        np.concatenate([s[1] for s in slabs]),
        np.concatenate([s[2] for s in slabs]),
    )


def _slab_starts(values: F32) -> range:
    return range(0, len(values), _SLAB_ROWS)


def _pack_q8(values: F32) -> U8:
    return pack_q8(*quantize_q8(np.ascontiguousarray(values)))


def _pack_q4(values: F32) -> U8:
    return pack_q4(*quantize_q4(np.ascontiguousarray(values)))


def _pack_q4m(values: F32) -> U8:
    return pack_q4m(*quantize_q4m(np.ascontiguousarray(values)))


def _per_column(field: U8) -> F32:
    """A float16 field [groups, tiles, 32 bytes] as float32 [groups, 16 rows, K]."""
    side = np.ascontiguousarray(field).view("<f2").astype(np.float32)
    return np.repeat(side.transpose(0, 2, 1), COLS, axis=2)


def _values(tiles: U8, zero: int, scale: U8, minimum: U8 | None = None) -> F32:
    values = nibbles.untile_codes(tiles).astype(np.float32)
    values -= np.float32(zero)
    values *= _per_column(scale)
    if minimum is not None:
        values += _per_column(minimum)
    return values.reshape(len(values) * ROWS, -1)


def _unpack_q8(data: U8, n_cols: int) -> F32:
    tiles = data.reshape(len(data), n_cols // COLS, 544)
    codes = tiles[:, :, :512].reshape(*tiles.shape[:2], 8, ROWS, 4)
    return _values(codes, 128, tiles[:, :, 512:])


def _unpack_q4(data: U8, n_cols: int) -> F32:
    tiles = data.reshape(len(data), n_cols // COLS, 288)
    return _values(nibbles.unpack_low4(tiles[:, :, :256]), 8, tiles[:, :, 256:])


def _unpack_q4m(data: U8, n_cols: int) -> F32:
    tiles = data.reshape(len(data), n_cols // COLS, 320)
    codes = nibbles.unpack_low4(tiles[:, :, :256])
    return _values(codes, 0, tiles[:, :, 256:288], tiles[:, :, 288:])


def _codes5(tiles: U8) -> U8:
    return nibbles.unpack_low4(tiles[:, :, :256]) | nibbles.unpack_bit4(tiles[:, :, 256:320])


def _unpack_q5(data: U8, n_cols: int) -> F32:
    tiles = data.reshape(len(data), n_cols // COLS, 352)
    return _values(_codes5(tiles), 16, tiles[:, :, 320:])


def _unpack_q5m(data: U8, n_cols: int) -> F32:
    tiles = data.reshape(len(data), n_cols // COLS, 384)
    return _values(_codes5(tiles), 0, tiles[:, :, 320:352], tiles[:, :, 352:])


Q8 = Format("q8", 5, 32, 8.5, lambda n_cols: n_cols // COLS * 544, _pack_q8, _unpack_q8)
Q4 = Format("q4", 6, 32, 4.5, lambda n_cols: n_cols // COLS * 288, _pack_q4, _unpack_q4)
Q4M = Format("q4m", 7, 32, 5.0, lambda n_cols: n_cols // COLS * 320, _pack_q4m, _unpack_q4m)
Q5 = Format("q5", 8, 32, 5.5, lambda n_cols: n_cols // COLS * 352, None, _unpack_q5)
Q5M = Format("q5m", 9, 32, 6.0, lambda n_cols: n_cols // COLS * 384, None, _unpack_q5m)
