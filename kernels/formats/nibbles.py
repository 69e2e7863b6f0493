"""Bit fields inside an integer tile, shared by the block and the super-block formats.

Columns are taken in fours so that one 32-bit lane of a vector register holds four columns of one
row, the operand of an int8 dot product. With j = column // 4 and c = column % 4:
bytes [8 j][16 rows][4 c]; nibbles [4 j][16 rows][4 c], low nibble column 4j + c, high nibble
column 16 + 4j + c. Tiles travel as uint8 [groups, tiles, bytes].
"""

import numpy as np

from .layout import COLS, ROWS, U8, to_groups


def tile_codes(codes: U8) -> U8:
    """[R, K] as [groups, tiles, 8 j, 16 rows, 4 c]."""
    groups = np.ascontiguousarray(to_groups(codes))
    # Four columns move as one 32-bit word: a quarter of the elements to transpose.
    words = groups.view(np.uint32).reshape(len(groups), ROWS, -1, 8)
    tiles = np.ascontiguousarray(words.transpose(0, 2, 3, 1))
    return tiles.view(np.uint8).reshape(*tiles.shape, 4)


def untile_codes(tiles: U8) -> U8:
    """[groups, tiles, 8, 16, 4] as [groups, 16 rows, K]."""
    words = np.ascontiguousarray(tiles).view(np.uint32)[..., 0]
    rows = np.ascontiguousarray(words.transpose(0, 3, 1, 2))
    return rows.view(np.uint8).reshape(len(tiles), ROWS, -1)


def pack_low4(tiles: U8) -> U8:
    """Bits 0-3 of tiled codes as [groups, tiles, 256]."""
    low = tiles & np.uint8(15)
    packed = low[:, :, :4] | (low[:, :, 4:] << np.uint8(4))
    return packed.reshape(*tiles.shape[:2], 256)


def unpack_low4(data: U8) -> U8:
    """Inverse of pack_low4, as tiled codes."""
    nibbles = data.reshape(*data.shape[:2], 4, ROWS, 4)
    return np.concatenate((nibbles & np.uint8(15), nibbles >> np.uint8(4)), axis=2)


def pack_bit4(tiles: U8) -> U8:
    """Bit 4 of tiled codes as [groups, tiles, 64]: word j of 64 bits, bit row * 4 + c."""
    bits = (tiles >> np.uint8(4)) & np.uint8(1)
    return np.packbits(bits.reshape(*tiles.shape[:2], 512), axis=-1, bitorder="little")


def unpack_bit4(data: U8) -> U8:
    """Inverse of pack_bit4: 0 or 16 in tiled order."""
    bits = np.unpackbits(np.ascontiguousarray(data), axis=-1, bitorder="little")
    return bits.reshape(*data.shape[:2], 8, ROWS, 4) << np.uint8(4)


def pack_bits45(tiles: U8) -> U8:
    """Bits 4-5 of tiled codes as [groups, tiles, 128]: [2 v][16 rows][4 c], j = 4v + s at bits
    2s and 2s + 1."""
    high = (tiles >> np.uint8(4)).reshape(*tiles.shape[:2], 2, 4, ROWS, 4)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]
    packed: U8 = np.bitwise_or.reduce((high & np.uint8(3)) << shift, axis=3)
    return packed.reshape(*tiles.shape[:2], 128)


def unpack_bits45(data: U8) -> U8:
    """Inverse of pack_bits45: the two bits at their place (0, 16, 32 or 48) in tiled order."""
    packed = data.reshape(*data.shape[:2], 2, 1, ROWS, 4)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None, None]
    high = ((packed >> shift) & np.uint8(3)) << np.uint8(4)
    return high.reshape(*data.shape[:2], COLS // 4, ROWS, 4)
