"""8-bit floats (e4m3fn) with one float32 scale per 128x128 block: value = e4m3(code) * scale.

A row group is K / 32 tiles [32 columns][16 rows] of codes, then ceil(K / 128) float32 scales of
the block row that the group lies in, then zeros up to a multiple of 64 bytes. This is the exact
home of the block-scaled FP8 of DeepSeek-V3 and Qwen3 checkpoints.
"""

import ml_dtypes
import numpy as np

from .layout import COLS, F32, ROWS, U8, Format, FormatError, n_groups, to_groups

BLOCK = 128
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_E4M3_MAX = 448.0
_DECODE: F32 = np.arange(256, dtype=np.uint8).view(_E4M3).astype(np.float32)


def _n_blocks(n: int) -> int:
    return -(-n // BLOCK)


def _group_bytes(n_cols: int) -> int:
    return -(-(ROWS * n_cols + 4 * _n_blocks(n_cols)) // 64) * 64


def pack_fp8(codes: U8, scales: F32) -> U8:
    """Codes [R, K] e4m3fn bytes and scales [ceil(R / 128), ceil(K / 128)] float32 as fp8 groups.

    Exact. Raises FormatError for a NaN code and for a scale that is negative or not finite. A
    matrix streamed by row ranges starts each range at a multiple of 128 rows.
    """
    if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] == 0 or codes.shape[1] % COLS:
        raise FormatError(f"format fp8 needs shape [R, multiple of 32], found {list(codes.shape)}")
    n_rows, n_cols = codes.shape
    expected = (_n_blocks(n_rows), _n_blocks(n_cols))
    if scales.shape != expected:
        raise FormatError(
            f"format fp8 needs scales of shape {list(expected)} for codes "
            f"[{n_rows}, {n_cols}], found {list(scales.shape)}"
        )
    if ((codes & 0x7F) == 0x7F).any():
        raise FormatError("an fp8 code is NaN (0x7f or 0xff)")
    bad = ~(np.isfinite(scales) & (scales >= 0))
    if bad.any():
        row, col = np.argwhere(bad)[0]
        raise FormatError(
            f"fp8 block scale [{row}, {col}] needs to be finite and not negative, "
            f"found {scales[row, col]}"
        )
    groups = to_groups(codes)
    out = np.zeros((len(groups), _group_bytes(n_cols)), np.uint8)
    tiles = groups.reshape(len(groups), ROWS, -1, COLS).transpose(0, 2, 3, 1)
    out[:, : ROWS * n_cols] = tiles.reshape(len(groups), -1)
    rows = np.repeat(scales.astype("<f4"), BLOCK // ROWS, axis=0)[: len(groups)]
    end = ROWS * n_cols + 4 * scales.shape[1]
    out[:, ROWS * n_cols : end] = np.ascontiguousarray(rows).view(np.uint8)
    return out


def quantize_fp8(values: F32) -> tuple[U8, F32]:
    """Codes [R, K] and scales [ceil(R / 128), ceil(K / 128)] of values, scale = amax / 448."""
    n_rows, n_cols = values.shape
    block_rows, block_cols = _n_blocks(n_rows), _n_blocks(n_cols)
    padded = np.zeros((block_rows * BLOCK, block_cols * BLOCK), np.float32)
    padded[:n_rows, :n_cols] = values
    blocks = padded.reshape(block_rows, BLOCK, block_cols, BLOCK)
    scales = np.abs(blocks).max(axis=(1, 3)) / np.float32(_E4M3_MAX)
    divisor = np.where(scales > 0, scales, np.float32(1))
    blocks /= divisor[:, None, :, None]
    np.clip(padded, -_E4M3_MAX, _E4M3_MAX, out=padded)
    return padded[:n_rows, :n_cols].astype(_E4M3).view(np.uint8), scales


def _pack(values: F32) -> U8:
    return pack_fp8(*quantize_fp8(values))


def _unpack(data: U8, n_cols: int) -> F32:
    tiles = data[:, : ROWS * n_cols].reshape(len(data), n_cols // COLS, COLS, ROWS)
    values = _DECODE[tiles.transpose(0, 3, 1, 2).reshape(len(data), ROWS, n_cols)]
    end = ROWS * n_cols + 4 * _n_blocks(n_cols)
    scales = np.ascontiguousarray(data[:, ROWS * n_cols : end]).view("<f4")
    values *= np.repeat(scales, BLOCK, axis=1)[:, None, :n_cols]
    return values.reshape(n_groups(len(data) * ROWS) * ROWS, n_cols)


FP8 = Format("fp8", 4, 32, 8 + 32 / (ROWS * BLOCK), _group_bytes, _pack, _unpack)
