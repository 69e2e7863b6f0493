"""Two-level scales over 256 columns: the exact homes of GGUF Q4_K, Q5_K and Q6_K.

A super-tile is eight 32-column tiles, each codes then its small integer scales, followed by the
float16 scales of the 256 columns. q4k, q5k: value = code * (d * sc) - dmin * mn; q6k:
value = (code - 32) * (d * sc), one sc per 16 columns.
"""

import numpy as np
import numpy.typing as npt

from . import nibbles
from .layout import COLS, F16, F32, ROWS, U8, Array, Format, as_bytes, require_parts, to_groups

SPAN = 256
_TILES = SPAN // COLS


def _small(field: Array) -> U8:
    """8-bit scales [R, n] as [groups, n, 16 rows]."""
    return as_bytes(to_groups(field).transpose(0, 2, 1))


def _join(tiles: U8, *wide: F16) -> U8:
    """Tiles [groups, tiles, bytes] and float16 fields [R, K / 256] as super-tiles."""
    n_groups, n_tiles, tile_bytes = tiles.shape
    body = tiles.reshape(n_groups, n_tiles // _TILES, _TILES * tile_bytes)
    tail = [as_bytes(to_groups(field, "<f2").transpose(0, 2, 1)) for field in wide]
    return np.concatenate((body, *tail), axis=2).reshape(n_groups, -1)


def pack_q4k(codes: U8, sc: U8, mn: U8, d: F16, dmin: F16) -> U8:
    """Codes [R, K] 0..15; sc, mn [R, K / 32] uint8; d, dmin [R, K / 256] float16; exact."""
    require_parts(codes, SPAN, (sc, mn), COLS, 16)
    require_parts(codes, SPAN, (d, dmin), SPAN)
    low = nibbles.pack_low4(nibbles.tile_codes(codes))
    return _join(np.concatenate((low, _small(sc), _small(mn)), axis=2), d, dmin)


def pack_q5k(codes: U8, sc: U8, mn: U8, d: F16, dmin: F16) -> U8:
    """Codes [R, K] 0..31; sc, mn [R, K / 32] uint8; d, dmin [R, K / 256] float16; exact."""
    require_parts(codes, SPAN, (sc, mn), COLS, 32)
    require_parts(codes, SPAN, (d, dmin), SPAN)
    tiles = nibbles.tile_codes(codes)
    low, high = nibbles.pack_low4(tiles), nibbles.pack_bit4(tiles)
    return _join(np.concatenate((low, high, _small(sc), _small(mn)), axis=2), d, dmin)


def pack_q6k(codes: U8, sc: npt.NDArray[np.int8], d: F16) -> U8:
    """Codes [R, K] 0..63; sc [R, K / 16] int8; d [R, K / 256] float16; exact."""
    require_parts(codes, SPAN, (sc,), COLS // 2, 64)
    require_parts(codes, SPAN, (d,), SPAN)
    tiles = nibbles.tile_codes(codes)
    low, high = nibbles.pack_low4(tiles), nibbles.pack_bits45(tiles)
    scales = _small(sc).reshape(len(low), -1, COLS)
    return _join(np.concatenate((low, high, scales), axis=2), d)


def _split(data: U8, n_cols: int, tile_bytes: int) -> tuple[U8, U8]:
    """Super-tiles as tiles [groups, tiles, tile_bytes] and the rest [groups, K / 256, bytes]."""
    spans = data.reshape(len(data), n_cols // SPAN, -1)
    end = _TILES * tile_bytes
    return spans[:, :, :end].reshape(len(data), n_cols // COLS, tile_bytes), spans[:, :, end:]


def _wide(field: U8) -> F32:
    """A float16 field [groups, K / 256, 32 bytes] as float32 [groups, 16 rows, K / 32]."""
    values = np.ascontiguousarray(field).view("<f2").astype(np.float32)
    return np.repeat(values.transpose(0, 2, 1), _TILES, axis=2)


def _affine(tiles: U8, small: U8, tail: U8) -> F32:
    codes = nibbles.untile_codes(tiles).astype(np.float32)
    scale = _wide(tail[:, :, :32]) * small[:, :, :ROWS].transpose(0, 2, 1)
    minimum = _wide(tail[:, :, 32:]) * small[:, :, ROWS:].transpose(0, 2, 1)
    codes *= np.repeat(scale, COLS, axis=2)
    codes -= np.repeat(minimum, COLS, axis=2)
    return codes.reshape(len(codes) * ROWS, -1)


def _unpack_q4k(data: U8, n_cols: int) -> F32:
    tiles, tail = _split(data, n_cols, 288)
    return _affine(nibbles.unpack_low4(tiles[:, :, :256]), tiles[:, :, 256:], tail)


def _unpack_q5k(data: U8, n_cols: int) -> F32:
    tiles, tail = _split(data, n_cols, 352)
    codes = nibbles.unpack_low4(tiles[:, :, :256]) | nibbles.unpack_bit4(tiles[:, :, 256:320])
    return _affine(codes, tiles[:, :, 320:], tail)


def _unpack_q6k(data: U8, n_cols: int) -> F32:
    tiles, tail = _split(data, n_cols, 416)
    codes = nibbles.unpack_low4(tiles[:, :, :256]) | nibbles.unpack_bits45(tiles[:, :, 256:384])
    values = nibbles.untile_codes(codes).astype(np.float32) - np.float32(32)
    small = np.ascontiguousarray(tiles[:, :, 384:]).view(np.int8)
    by_half = small.reshape(len(data), -1, ROWS).transpose(0, 2, 1)
    scale = np.repeat(_wide(tail), 2, axis=2) * by_half
    values *= np.repeat(scale, COLS // 2, axis=2)
    return values.reshape(len(values) * ROWS, -1)


Q4K = Format("q4k", 10, 256, 2368 / 512, lambda n: n // SPAN * 2368, None, _unpack_q4k)
Q5K = Format("q5k", 11, 256, 2880 / 512, lambda n: n // SPAN * 2880, None, _unpack_q5k)
Q6K = Format("q6k", 12, 256, 3360 / 512, lambda n: n // SPAN * 3360, None, _unpack_q6k)
