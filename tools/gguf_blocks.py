"""GGUF quantisation blocks to the tiles of kernels/formats, without changing a value.

Each GGUF block type has one exact home: its codes, scales and minimums are taken apart into
plain arrays and handed to the packer of that format. Source: ggml's `ggml-common.h` block structs
and `ggml-quants.c` dequantisers; tests compare with the `gguf` package on random blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hga.kernels import formats

U8 = npt.NDArray[np.uint8]
F16 = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class GgufType:
    """A GGUF tensor type: columns and bytes of a block, and its exact home.

    `pack` takes whole rows of raw blocks, uint8 [R, K / block * block_bytes], and returns row
    groups; it raises FormatError where a scale is not finite.
    """

    name: str
    block: int
    block_bytes: int
    home: str
    pack: Callable[[U8], U8]

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of one row of `n_cols` columns."""
        return n_cols // self.block * self.block_bytes


def _half(raw: U8, start: int) -> F16:
    """The float16 at byte `start` of each block of raw [R, blocks, bytes]."""
    return np.ascontiguousarray(raw[:, :, start : start + 2]).view("<f2")[:, :, 0]


def _nibbles(packed: U8) -> U8:
    """[..., n] bytes as [..., 2n] codes: all low nibbles, then all high ones."""
    return np.concatenate((packed & np.uint8(15), packed >> np.uint8(4)), axis=-1)


def _rows(codes: U8) -> U8:
    return codes.reshape(len(codes), -1)


def _q4_0(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 18)
    return formats.pack_q4(_rows(_nibbles(raw[:, :, 2:])), _half(raw, 0))


def _q4_1(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 20)
    return formats.pack_q4m(_rows(_nibbles(raw[:, :, 4:])), _half(raw, 0), _half(raw, 2))


def _fifth_bits(packed: U8) -> U8:
    """[R, blocks, 4] as 0 or 16 per column, [R, blocks, 32]."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def _q5_0(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 22)
    codes = _nibbles(raw[:, :, 6:]) | _fifth_bits(raw[:, :, 2:6])
    return formats.pack_q5(_rows(codes), _half(raw, 0))


def _q5_1(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 24)
    codes = _nibbles(raw[:, :, 8:]) | _fifth_bits(raw[:, :, 4:8])
    return formats.pack_q5m(_rows(codes), _half(raw, 0), _half(raw, 2))


def _q8_0(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 34)
    return formats.pack_q8(_rows(raw[:, :, 2:] ^ np.uint8(128)), _half(raw, 0))


def _small_scales(packed: U8) -> tuple[U8, U8]:
    """The 12 bytes of a K block as eight 6-bit scales and eight 6-bit minimums."""
    first, second, third = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    six, four = np.uint8(63), np.uint8(15)
    top_first = (first >> np.uint8(6)) << np.uint8(4)
    top_second = (second >> np.uint8(6)) << np.uint8(4)
    scales = np.concatenate((first & six, (third & four) | top_first), axis=-1)
    minimums = np.concatenate((second & six, (third >> np.uint8(4)) | top_second), axis=-1)
    return _rows(scales), _rows(minimums)


def _k_nibbles(packed: U8) -> U8:
    """128 bytes as 256 codes: each 32 bytes hold two runs of 32 columns, low nibbles first."""
    return _nibbles(packed.reshape(*packed.shape[:2], 4, 32)).reshape(*packed.shape[:2], 256)


def _q4_k(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 144)
    codes = _rows(_k_nibbles(raw[:, :, 16:]))
    return formats.pack_q4k(codes, *_small_scales(raw[:, :, 4:16]), _half(raw, 0), _half(raw, 2))


def _q5_k(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 176)
    run = np.arange(8, dtype=np.uint8)[:, None]
    high = ((raw[:, :, 16:48][:, :, None, :] >> run) & np.uint8(1)) << np.uint8(4)
    codes = _rows(_k_nibbles(raw[:, :, 48:]) | high.reshape(*raw.shape[:2], 256))
    return formats.pack_q5k(codes, *_small_scales(raw[:, :, 4:16]), _half(raw, 0), _half(raw, 2))


def _q6_k(rows: U8) -> U8:
    raw = rows.reshape(len(rows), -1, 210)
    shape = raw.shape[:2]
    low = _nibbles(raw[:, :, :128].reshape(*shape, 2, 64))
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    pairs = raw[:, :, 128:192].reshape(*shape, 2, 1, 32)
    high = ((pairs >> shift) & np.uint8(3)) << np.uint8(4)
    codes = _rows(low | high.reshape(*shape, 2, 128))
    scales = np.ascontiguousarray(raw[:, :, 192:208]).view(np.int8)
    return formats.pack_q6k(codes, scales.reshape(len(rows), -1), _half(raw, 208))


def _f32(rows: U8) -> U8:
    return formats.pack_f32(np.ascontiguousarray(rows).view("<f4"))


def _f16(rows: U8) -> U8:
    return formats.pack_f16(np.ascontiguousarray(rows).view("<f2"))


def _bf16(rows: U8) -> U8:
    return formats.pack_bf16(np.ascontiguousarray(rows).view(ml_dtypes.bfloat16))


GGUF_TYPES: dict[str, GgufType] = {
    t.name: t
    for t in (
        GgufType("F32", 1, 4, "f32", _f32),
        GgufType("F16", 1, 2, "f16", _f16),
        GgufType("BF16", 1, 2, "bf16", _bf16),
        GgufType("Q4_0", 32, 18, "q4", _q4_0),
        GgufType("Q4_1", 32, 20, "q4m", _q4_1),
        GgufType("Q5_0", 32, 22, "q5", _q5_0),
        GgufType("Q5_1", 32, 24, "q5m", _q5_1),
        GgufType("Q8_0", 32, 34, "q8", _q8_0),
        GgufType("Q4_K", 256, 144, "q4k", _q4_k),
        GgufType("Q5_K", 256, 176, "q5k", _q5_k),
        GgufType("Q6_K", 256, 210, "q6k", _q6_k),
    )
}
