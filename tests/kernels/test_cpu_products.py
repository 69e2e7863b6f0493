"""Products of every weight format against float64 numpy, and their independence of company."""

from types import ModuleType

import numpy as np
import pytest

from hga.kernels import cases
from hga.kernels.cases import PRODUCTS, TOLERANCE, ProductCase
from hga.kernels.formats import FORMATS
from hga.kernels.reference import rows

MATRIX_FORMATS = tuple(name for name, fmt in FORMATS.items() if fmt.step)


def dequantized(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float64 rows of int8 codes with a scale per 32."""
    return codes.astype(np.float64) * np.repeat(scales, 32, -1)


def test_every_format_has_cases() -> None:
    assert {case.format for case in PRODUCTS} == set(MATRIX_FORMATS)
    assert {case.tokens % 4 for case in PRODUCTS} == {0, 1, 2, 3}


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_product(cpu: ModuleType, case: ProductCase) -> None:
    fmt = FORMATS[case.format]
    packed = cases.matrix(case.format, case.rows, case.cols)
    weights = fmt.unpack(packed, case.rows, case.cols).astype(np.float64)
    x = cases.activations(case.activations, case.tokens, case.cols)
    quantized = rows.quantize(x)
    got = cpu.product(case.format, packed, case.rows, x, quantized)
    seen = dequantized(*quantized[:2]) if fmt.code > FORMATS["fp8"].code else x.astype(np.float64)
    assert cases.error(got[:, : case.rows], seen @ weights.T) <= TOLERANCE["product"]
    assert not got[:, case.rows :].any(), "rows beyond the matrix are zero"


@pytest.mark.parametrize("name", MATRIX_FORMATS)
def test_a_tokens_result_does_not_depend_on_its_company(cpu: ModuleType, name: str) -> None:
    n_rows, n_cols = 33, 3 * FORMATS[name].step
    packed = cases.matrix(name, n_rows, n_cols)
    x = cases.activations("normal", 19, n_cols)
    whole = cpu.product(name, packed, n_rows, x, rows.quantize(x))
    for n in (*range(1, 10), 12, 16):
        for first in (0, 19 - n):
            part = np.ascontiguousarray(x[first : first + n])
            got = cpu.product(name, packed, n_rows, part, rows.quantize(part))
            np.testing.assert_array_equal(got, whole[first : first + n])


@pytest.mark.parametrize("name", MATRIX_FORMATS)
def test_row_groups_can_be_computed_apart(cpu: ModuleType, name: str) -> None:
    n_rows, n_cols = 70, FORMATS[name].step
    packed = cases.matrix(name, n_rows, n_cols)
    x = cases.activations("normal", 5, n_cols)
    quantized = rows.quantize(x)
    whole = cpu.product(name, packed, n_rows, x, quantized)
    got = cpu.product(name, packed, n_rows, x, quantized, groups=(1, 3))
    np.testing.assert_array_equal(got[:, 16:48], whole[:, 16:48])
    assert (got[:, :16] == cpu.CANARY).all() and (got[:, 48:] == cpu.CANARY).all()
    empty = cpu.product(name, packed, n_rows, x, quantized, groups=(2, 2))
    assert (empty == cpu.CANARY).all()


def test_bytes_multiply_exactly_at_their_extremes(cpu: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        u = rng.choice(np.array([0, 1, 127, 128, 254, 255], np.uint8), 64)
        s = rng.choice(np.array([-128, -127, -1, 0, 1, 127], np.int8), 64)
        acc = rng.integers(-(1 << 30), 1 << 30, 16).astype(np.int32)
        products = (u.astype(np.int64) * s).reshape(16, 4).sum(1)
        np.testing.assert_array_equal(cpu.dot_u8i8(acc, u, s), acc + products)
        products = ((u & 127).astype(np.int64) * s).reshape(16, 4).sum(1)
        np.testing.assert_array_equal(cpu.dot_u7i8(acc, u & 127, s), acc + products)


def test_kernels_made_by_a_factory_have_names_of_their_own(cpu: ModuleType) -> None:
    """Or cached machine code of one format may be loaded for another's (kernels/cpu/naming.py)."""
    from hga.kernels.cpu import tiles, tiles_float, tiles_int

    names = []
    for name in MATRIX_FORMATS:
        module = tiles_int if FORMATS[name].code > FORMATS["fp8"].code else tiles_float
        functions = (*getattr(module, name, ())[:2], getattr(tiles, f"_rows_{name}"))
        names += [f"{f.py_func.__module__}.{f.py_func.__qualname__}" for f in functions]
    # Float8 is not made by a factory.
    assert len(names) == len(set(names)) == 34
