"""float32, float16 and bfloat16 tiles, and raw float32 vectors.

f32 and f16 tiles are [32 columns][16 rows]; bf16 tiles are [16 column pairs][16 rows][2], the
order of the bf16 dot-product instruction. Packing from the format's own type is exact.
"""

import ml_dtypes
import numpy as np

from .layout import COLS, F16, F32, ROWS, U8, Array, Format, FormatError, as_bytes, to_groups

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def _columns(values: Array) -> U8:
    """[R, K] as tiles [32 columns][16 rows]."""
    groups = to_groups(values)
    tiles = groups.reshape(len(groups), ROWS, -1, COLS).transpose(0, 2, 3, 1)
    return as_bytes(tiles).reshape(len(groups), -1)


def _pairs(values: Array) -> U8:
    """[R, K] as tiles [16 column pairs][16 rows][2]."""
    groups = to_groups(values)
    tiles = groups.reshape(len(groups), ROWS, -1, COLS // 2, 2).transpose(0, 2, 3, 1, 4)
    return as_bytes(tiles).reshape(len(groups), -1)


def _require(values: Array, name: str) -> None:
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] == 0 or values.shape[1] % COLS:
        raise FormatError(
            f"format {name} needs shape [R, multiple of 32], found {list(values.shape)}"
        )
    # Of bfloat16 a NaN is a warning as well.
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(values).all()
    if not finite:
        raise FormatError(f"format {name} refuses values that are not finite")


def pack_f32(values: F32) -> U8:
    """Values [R, K] float32, K % 32 == 0, as f32 tiles."""
    _require(values, "f32")
    return _columns(values.astype("<f4", copy=False))


def pack_f16(values: F16) -> U8:
    """Values [R, K] float16, K % 32 == 0, as f16 tiles."""
    _require(values, "f16")
    return _columns(values.astype("<f2", copy=False))


def pack_bf16(values: Array) -> U8:
    """Values [R, K] of ml_dtypes.bfloat16, K % 32 == 0, as bf16 tiles."""
    if values.dtype != BFLOAT16:
        raise FormatError(f"format bf16 needs bfloat16 values, found {values.dtype}")
    _require(values, "bf16")
    return _pairs(values.view(np.uint16))


def _round_f16(values: F32) -> U8:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise FormatError(
            f"format f16 holds magnitudes up to 65504, found {np.abs(values).max():g}; "
            "use --format bf16"
        )
    return _columns(half)


def _round_bf16(values: F32) -> U8:
    rounded = values.astype(BFLOAT16)
    if not np.isfinite(rounded).all():
        raise FormatError(f"format bf16 cannot hold {np.abs(values).max():g}")
    return _pairs(rounded.view(np.uint16))


def _from_columns(data: U8, n_cols: int, dtype: str) -> F32:
    tiles = data.view(dtype).reshape(len(data), n_cols // COLS, COLS, ROWS)
    return tiles.transpose(0, 3, 1, 2).reshape(-1, n_cols).astype(np.float32)


def _unpack_f32(data: U8, n_cols: int) -> F32:
    return _from_columns(data, n_cols, "<f4")


def _unpack_f16(data: U8, n_cols: int) -> F32:
    return _from_columns(data, n_cols, "<f2")


def _unpack_bf16(data: U8, n_cols: int) -> F32:
    tiles = data.view("<u2").reshape(len(data), n_cols // COLS, COLS // 2, ROWS, 2)
    bits = tiles.transpose(0, 3, 1, 2, 4).reshape(-1, n_cols).astype(np.uint32)
    return (bits << np.uint32(16)).view(np.float32)


def _unpack_vec(data: U8, n_values: int) -> F32:
    return np.ascontiguousarray(data).view("<f4").reshape(n_values, 1).astype(np.float32)


VEC = Format("vec", 0, 0, 32.0, lambda n_cols: 0, None, _unpack_vec)
F32_TILES = Format("f32", 1, 32, 32.0, lambda n_cols: 64 * n_cols, _columns, _unpack_f32)
F16_TILES = Format("f16", 2, 32, 16.0, lambda n_cols: 32 * n_cols, _round_f16, _unpack_f16)
BF16_TILES = Format("bf16", 3, 32, 16.0, lambda n_cols: 32 * n_cols, _round_bf16, _unpack_bf16)
