"""Weight formats: round trips, the byte layout the kernels rely on, and refusals."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.kernels import formats
from hga.kernels.formats import BY_CODE, FORMATS, FormatError
from hga.kernels.formats.fp8 import quantize_fp8

FLOAT_FORMATS = ("f32", "f16", "bf16", "fp8", "q8", "q4", "q4m")
MATRIX_FORMATS = tuple(name for name in FORMATS if name != "vec")

# Relative RMS error of Gaussian weights; a tenth above what each format reaches.
GAUSSIAN_ERROR = {"f32": 0, "f16": 2.3e-4, "bf16": 1.9e-3, "fp8": 2.9e-2, "q8": 6.5e-3}
GAUSSIAN_ERROR |= {"q4": 9.5e-2, "q4m": 8.5e-2}


def weights(n_rows: int, n_cols: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n_rows, n_cols)) * 0.02).astype(np.float32)


def test_registry_is_consistent() -> None:
    assert [BY_CODE[c].name for c in range(13)] == [
        *("vec", "f32", "f16", "bf16", "fp8", "q8", "q4", "q4m", "q5", "q5m", "q4k", "q5k", "q6k")
    ]
    assert all(FORMATS[fmt.name] is fmt for fmt in BY_CODE.values())


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("f32", 32, 2048),
        ("f16", 32, 1024),
        ("bf16", 32, 1024),
        ("fp8", 32, 576),
        ("fp8", 384, 6144 + 64),
        ("q8", 32, 544),
        ("q4", 32, 288),
        ("q4m", 32, 320),
        ("q5", 32, 352),
        ("q5m", 32, 384),
        ("q4k", 256, 2368),
        ("q5k", 256, 2880),
        ("q6k", 256, 3360),
    ],
)
def test_sizes(name: str, columns: int, expected: int) -> None:
    fmt = FORMATS[name]
    assert fmt.group_bytes(columns) == expected
    assert fmt.nbytes(17, columns) == 2 * expected
    wide = 16 * 256 * fmt.bits_per_weight / 8
    assert wide <= fmt.group_bytes(256) < wide + 64


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(FLOAT_FORMATS),
    n_rows=st.integers(1, 150),
    tiles=st.integers(1, 9),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
)
def test_packing_twice_changes_nothing(
    name: str, n_rows: int, tiles: int, seed: int, scale: float
) -> None:
    values = weights(n_rows, 32 * tiles, seed) * np.float32(scale)
    fmt = FORMATS[name]
    packed = fmt.pack(values)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-n_rows // 16), fmt.group_bytes(32 * tiles))
    once = fmt.unpack(packed, n_rows, 32 * tiles)
    assert once.shape == values.shape
    assert np.isfinite(once).all()
    if name in ("f32", "f16", "bf16"):
        np.testing.assert_array_equal(fmt.unpack(fmt.pack(once), n_rows, 32 * tiles), once)
    step = np.abs(values).max()
    assert np.abs(once - values).max() <= max(step / 7, 1e-6)


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_error_on_gaussian_weights(name: str) -> None:
    values = weights(256, 512)
    got = FORMATS[name].unpack(FORMATS[name].pack(values), 256, 512)
    error = np.sqrt(np.square(got - values).mean() / np.square(values).mean())
    assert error <= GAUSSIAN_ERROR[name]


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_streaming_by_rows_gives_the_same_bytes(name: str) -> None:
    values = weights(300, 160)
    whole = FORMATS[name].pack(values)
    parts = [FORMATS[name].pack(values[r : r + 128]) for r in range(0, 300, 128)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", FLOAT_FORMATS)
def test_zeros_stay_zero(name: str) -> None:
    zeros = np.zeros((5, 64), np.float32)
    assert not FORMATS[name].unpack(FORMATS[name].pack(zeros), 5, 64).any()


def column(tile: np.ndarray, row: int, col: int, name: str) -> float:
    """The value at (row, col) of one 16x32 tile read byte by byte, straight from docs/format.md."""
    raw = tile.tobytes()

    def half(start: int) -> np.float32:
        return np.frombuffer(raw, "<f2", 1, start)[0].astype(np.float32)

    j, c = col // 4, col % 4
    if name == "f32":
        return np.frombuffer(raw, "<f4", 1, 4 * (col * 16 + row))[0]
    if name == "f16":
        return half(2 * (col * 16 + row))
    if name == "bf16":
        at = 2 * ((col // 2 * 16 + row) * 2 + col % 2)
        return np.frombuffer(raw, ml_dtypes.bfloat16, 1, at)[0].astype(np.float32)
    if name == "fp8":
        code = np.frombuffer(raw, ml_dtypes.float8_e4m3fn, 1, col * 16 + row)[0]
        return code.astype(np.float32) * np.frombuffer(raw, "<f4", 1, 512)[0]
    if name == "q8":
        return (np.float32(raw[(j * 16 + row) * 4 + c]) - 128) * half(512 + 2 * row)
    low = raw[(j % 4 * 16 + row) * 4 + c] >> (4 * (j // 4)) & 15
    if name == "q4":
        return (np.float32(low) - 8) * half(256 + 2 * row)
    if name == "q4m":
        return np.float32(low) * half(256 + 2 * row) + half(288 + 2 * row)
    if name in ("q5", "q5m"):
        word = int(np.frombuffer(raw, "<u8", 1, 256 + 8 * j)[0])
        code = np.float32(low + 16 * (word >> (row * 4 + c) & 1))
        if name == "q5":
            return (code - 16) * half(320 + 2 * row)
        return code * half(320 + 2 * row) + half(352 + 2 * row)
    raise AssertionError(name)


@pytest.mark.parametrize("name", [n for n in MATRIX_FORMATS if not n.endswith("k")])
def test_tile_bytes_are_where_the_document_says(name: str) -> None:
    rng = np.random.default_rng(3)
    scale = rng.standard_normal((16, 1)).astype(np.float16)
    minimum = rng.standard_normal((16, 1)).astype(np.float16)
    codes = rng.integers(0, 32, (16, 32), dtype=np.uint8)
    if name == "q5":
        packed = formats.pack_q5(codes, scale)
    elif name == "q5m":
        packed = formats.pack_q5m(codes, scale, minimum)
    else:
        packed = FORMATS[name].pack(weights(16, 32))
    values = FORMATS[name].unpack(packed, 16, 32)
    for row in range(16):
        for col in range(32):
            assert values[row, col] == column(packed[0], row, col, name)


@pytest.mark.parametrize(("name", "tile_bytes"), [("q4k", 288), ("q5k", 352), ("q6k", 416)])
def test_super_tile_bytes_are_where_the_document_says(name: str, tile_bytes: int) -> None:
    rng = np.random.default_rng(4)
    fmt = FORMATS[name]
    packed = rng.integers(0, 256, (1, fmt.group_bytes(512)), dtype=np.uint8)
    span_bytes = fmt.group_bytes(256)
    wide = rng.standard_normal((2, 2, 16)).astype("<f2")
    for span in range(2):
        tail = wide[span].view(np.uint8).reshape(-1)[: span_bytes - 8 * tile_bytes]
        end = (span + 1) * span_bytes
        packed[0, end - len(tail) : end] = tail
    values = fmt.unpack(packed, 16, 512)
    for row in range(16):
        for col in range(0, 512, 7):
            span, local = divmod(col, 256)
            start = span * span_bytes + local // 32 * tile_bytes
            raw = packed[0, start : start + tile_bytes].tobytes()
            at = local % 32
            j, c = at // 4, at % 4
            code = raw[(j % 4 * 16 + row) * 4 + c] >> (4 * (j // 4)) & 15
            d, dmin = wide[span, :, row].astype(np.float32)
            if name == "q6k":
                code += 16 * (raw[256 + (j // 4 * 16 + row) * 4 + c] >> (2 * (j % 4)) & 3)
                sc = np.frombuffer(raw, np.int8, 1, 384 + at // 16 * 16 + row)[0]
                expected = (np.float32(code) - 32) * (d * np.float32(sc))
            else:
                scales = 256
                if name == "q5k":
                    word = int(np.frombuffer(raw, "<u8", 1, 256 + 8 * j)[0])
                    code += 16 * (word >> (row * 4 + c) & 1)
                    scales = 320
                sc, mn = np.float32(raw[scales + row]), np.float32(raw[scales + 16 + row])
                expected = np.float32(code) * (d * sc) - dmin * mn
            assert values[row, col] == expected


def test_fp8_parts_are_exact_with_ragged_blocks() -> None:
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 0x7F, (200, 160), dtype=np.uint8)
    scales = rng.random((2, 2)).astype(np.float32)
    got = FORMATS["fp8"].unpack(formats.pack_fp8(codes, scales), 200, 160)
    per_weight = np.repeat(np.repeat(scales, 128, 0), 128, 1)[:200, :160]
    decoded = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(got, decoded * per_weight)


def test_fp8_quantiser_uses_the_whole_range() -> None:
    codes, scales = quantize_fp8(weights(130, 96))
    assert scales.shape == (2, 1)
    assert (np.abs(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)).max()) == 448


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_fp8_nan_code_is_refused(code: int) -> None:
    codes = np.zeros((16, 32), np.uint8)
    codes[7, 9] = code
    with pytest.raises(FormatError, match="NaN"):
        formats.pack_fp8(codes, np.ones((1, 1), np.float32))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_fp8_bad_scale_is_refused(scale: float) -> None:
    with pytest.raises(FormatError, match="not negative"):
        formats.pack_fp8(np.zeros((16, 32), np.uint8), np.full((1, 1), scale, np.float32))


def test_fp8_zero_scale_is_allowed() -> None:
    packed = formats.pack_fp8(np.full((16, 32), 9, np.uint8), np.zeros((1, 1), np.float32))
    assert not FORMATS["fp8"].unpack(packed, 16, 32).any()


@pytest.mark.parametrize("name", MATRIX_FORMATS)
def test_wrong_shapes_are_refused(name: str) -> None:
    fmt = FORMATS[name]
    for n_rows, n_cols in [(0, 256), (16, 0), (16, -32), (16, fmt.step - 1), (16, fmt.step + 8)]:
        with pytest.raises(FormatError):
            fmt.nbytes(n_rows, n_cols)
    with pytest.raises(FormatError, match="bytes"):
        fmt.unpack(np.zeros(fmt.nbytes(16, 256) - 1, np.uint8), 16, 256)


@pytest.mark.parametrize("name", FLOAT_FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    values = weights(16, 32)
    values[2, 3] = value
    with pytest.raises(FormatError, match="not finite"):
        FORMATS[name].pack(values)


@pytest.mark.parametrize("name", ["q5", "q5m", "q4k", "q5k", "q6k", "vec"])
def test_formats_without_a_float_quantiser_say_so(name: str) -> None:
    with pytest.raises(FormatError, match="from its parts"):
        FORMATS[name].pack(weights(16, 256))


@pytest.mark.parametrize("name", ["f16", "q8", "q4", "q4m"])
def test_values_beyond_float16_are_refused(name: str) -> None:
    with pytest.raises(FormatError):
        FORMATS[name].pack(weights(16, 32) + np.float32(1e8) * np.eye(16, 32, dtype=np.float32))


def test_parts_of_the_wrong_shape_are_refused() -> None:
    codes = np.zeros((16, 64), np.uint8)
    with pytest.raises(FormatError, match="scales need shape"):
        formats.pack_q4(codes, np.zeros((16, 1), np.float16))
    with pytest.raises(FormatError, match="below 16"):
        formats.pack_q4(codes + np.uint8(16), np.zeros((16, 2), np.float16))
    with pytest.raises(FormatError, match="multiple of 256"):
        small = np.zeros((16, 2), np.uint8)
        half = np.zeros((16, 1), np.float16)
        formats.pack_q4k(codes, small, small, half, half)


def test_vectors_have_no_tiles() -> None:
    vec = FORMATS["vec"]
    assert vec.nbytes(5, 1) == 20
    raw = np.arange(5, dtype="<f4").view(np.uint8)
    np.testing.assert_array_equal(vec.unpack(raw, 5, 1)[:, 0], np.arange(5))
    with pytest.raises(FormatError, match="vectors"):
        vec.group_bytes(32)
    with pytest.raises(FormatError, match="vectors"):
        vec.nbytes(5, 32)
