"""GGUF blocks keep every value in their exact home; the `gguf` dequantiser is the oracle."""

import gguf
import numpy as np
import pytest

from hga.kernels.formats import FORMATS, FormatError
from hga.tools.gguf_blocks import GGUF_TYPES

# Byte offsets of the float16 fields of a block: random bytes there would be NaN or infinite.
HALF_FIELDS = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_rows(name: str, n_rows: int, n_cols: int, seed: int) -> np.ndarray:
    """Random raw rows of a GGUF type, every code and small scale possible, half scales finite."""
    kind = GGUF_TYPES[name]
    rng = np.random.default_rng(seed)
    if name in ("F32", "F16", "BF16"):
        values = rng.standard_normal((n_rows, n_cols)).astype(np.float32)
        if name == "BF16":
            return np.ascontiguousarray((values.view(np.uint32) >> 16).astype("<u2")).view(np.uint8)
        return values.astype("<f4" if name == "F32" else "<f2").view(np.uint8)
    shape = (n_rows, n_cols // kind.block, kind.block_bytes)
    raw = rng.integers(0, 256, shape, dtype=np.uint8)
    for start in HALF_FIELDS[name]:
        half = (rng.standard_normal(shape[:2]) * 0.01).astype("<f2")
        raw[:, :, start : start + 2] = half[:, :, None].view(np.uint8)
    return raw.reshape(n_rows, -1)


@pytest.mark.parametrize("name", GGUF_TYPES)
@pytest.mark.parametrize("n_rows", [1, 16, 37])
def test_home_is_exact(name: str, n_rows: int) -> None:
    kind = GGUF_TYPES[name]
    home = FORMATS[kind.home]
    raw = random_rows(name, n_rows, 768, seed=n_rows)
    packed = kind.pack(raw)
    assert packed.shape == (-(-n_rows // 16), home.group_bytes(768))
    expected = gguf.dequantize(raw.copy(), gguf.GGMLQuantizationType[name])
    got = home.unpack(packed, n_rows, 768)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", HALF_FIELDS)
def test_a_scale_that_is_not_finite_is_refused(name: str) -> None:
    raw = random_rows(name, 16, 256, seed=1)
    start = HALF_FIELDS[name][-1]
    raw[3, start : start + 2] = (0x00, 0x7C)
    with pytest.raises(FormatError, match="not finite"):
        GGUF_TYPES[name].pack(raw)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_a_weight_that_is_not_finite_is_refused(name: str) -> None:
    raw = random_rows(name, 16, 64, seed=1)
    raw[5, :4] = 0xFF
    with pytest.raises(FormatError, match="not finite"):
        GGUF_TYPES[name].pack(raw)
