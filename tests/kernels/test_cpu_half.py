"""Small floats: every code of float16, bfloat16 and e4m3, and rounding to float16."""

from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

ALL16 = np.arange(1 << 16, dtype=np.uint16)


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the sign of zero."""
    assert got.dtype == expected.dtype
    kind = {2: np.uint16, 4: np.uint32}[got.dtype.itemsize]
    np.testing.assert_array_equal(got.view(kind), expected.view(kind))


def test_every_finite_float16_widens_exactly(cpu: ModuleType) -> None:
    halves = ALL16.view(np.float16)
    halves = np.resize(halves[np.isfinite(halves)], 1 << 16)
    for got in cpu.load_f16(halves):
        assert_same_bits(got, halves.astype(np.float32))


def narrowed(values: np.ndarray) -> np.ndarray:
    """numpy rounds to nearest even too; what float16 cannot hold is held to its end."""
    return np.clip(values, -65504, 65504).astype(np.float16)


def test_every_float16_survives_a_round_trip(cpu: ModuleType) -> None:
    halves = ALL16.view(np.float16)
    halves = np.resize(halves[np.isfinite(halves)], 1 << 16)
    for got in cpu.store_f16(halves.astype(np.float32)):
        assert_same_bits(got, halves)


def test_halfway_cases_round_to_even(cpu: ModuleType) -> None:
    low = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float64)
    high = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middle = ((low + high) / 2).astype(np.float32)
    beside = (np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9)))
    for values in (middle, -middle, *beside):
        values = np.resize(values, 1 << 15)
        for got in cpu.store_f16(values):
            assert_same_bits(got, narrowed(values))


@pytest.mark.parametrize("scale", [1e-40, 1e-9, 1e-7, 6e-5, 1.0, 1e4])
def test_random_values_round_like_numpy(cpu: ModuleType, scale: float) -> None:
    values = (np.random.default_rng(0).standard_normal(1 << 14) * scale).astype(np.float32)
    for got in cpu.store_f16(values):
        assert_same_bits(got, narrowed(values))


def test_the_ends_are_held(cpu: ModuleType) -> None:
    ends = [65504, 65519.9, 65520, 65536, 1e9, 3.4e38, np.inf, 0.0, 2.0**-24, 2.0**-25, 2.0**-26]
    values = np.resize(np.array([*ends, *(-e for e in ends)], np.float32), 32)
    for got in cpu.store_f16(values):
        assert_same_bits(got, narrowed(values))
        assert np.isfinite(got).all()


def test_bfloat16_widens_exactly(cpu: ModuleType) -> None:
    words = ALL16.view(ml_dtypes.bfloat16)
    expected = words.astype(np.float32)
    low, high, scalar = cpu.load_bf16(words)
    for got, wanted in ((low, expected[::2]), (high, expected[1::2]), (scalar, expected)):
        numbers = ~np.isnan(wanted)
        assert np.isnan(got[~numbers]).all()
        assert_same_bits(got[numbers], wanted[numbers])


def test_every_e4m3_code(cpu: ModuleType) -> None:
    codes = np.arange(256, dtype=np.uint8)
    got = cpu.load_e4m3(codes)
    expected = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    numbers = ~np.isnan(expected)
    assert_same_bits(got[numbers], expected[numbers])
    assert got[0x7F] == 480 and got[0xFF] == -480, "packing refuses the NaN codes"
