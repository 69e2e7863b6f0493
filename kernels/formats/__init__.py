"""Weight formats: tile layout, sizes, exact packing and float32 unpacking of each.

`FORMATS` (by name) and `BY_CODE` (by the number that kernels and the packed file use) are the
registry; a new format is one constant in a module here and one entry in it.
"""

from .blocks import Q4, Q4M, Q5, Q5M, Q8, pack_q4, pack_q4m, pack_q5, pack_q5m, pack_q8
from .floats import BF16_TILES, F16_TILES, F32_TILES, VEC, pack_bf16, pack_f16, pack_f32
from .fp8 import FP8, pack_fp8
from .layout import COLS, ROWS, Format, FormatError, n_groups
from .superblocks import Q4K, Q5K, Q6K, pack_q4k, pack_q5k, pack_q6k

_ALL = (VEC, F32_TILES, F16_TILES, BF16_TILES, FP8, Q8, Q4, Q4M, Q5, Q5M, Q4K, Q5K, Q6K)

FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in _ALL}
BY_CODE: dict[int, Format] = {fmt.code: fmt for fmt in _ALL}

__all__ = [
    "BY_CODE",
    "COLS",
    "FORMATS",
    "ROWS",
    "Format",
    "FormatError",
    "n_groups",
    "pack_bf16",
    "pack_f16",
    "pack_f32",
    "pack_fp8",
    "pack_q4",
    "pack_q4k",
    "pack_q4m",
    "pack_q5",
    "pack_q5k",
    "pack_q5m",
    "pack_q6k",
    "pack_q8",
]
