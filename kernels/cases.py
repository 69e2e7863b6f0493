"""Seeded inputs, shapes and tolerances of the CPU operations: one list for tests and benchmarks.

A tolerance bounds `error`: the largest difference from the reference over the largest magnitude of
the reference. They are about four times what was measured on any instruction set, and are set by
float32 rounding alone: both sides see the same quantised inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import formats
from .formats import FORMATS

F32 = NDArray[np.float32]

# Relative to the largest result, see the module docstring.
TOLERANCE = {
    "product": 2e-6,
    "rms_norm": 1e-6,
    "gated": 2e-6,
    "rope": 1e-6,
    "exp": 4e-7,
    "top_experts": 1e-6,
    "embedding_row": 1e-6,
    "attend": 2e-6,
    "merge": 1e-6,
    "log": 2e-7,
    "rotate": 1e-6,
    "shares": 2e-6,
}


def error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the largest expected magnitude; infinite where got is not finite."""
    assert got.shape == expected.shape
    if not np.isfinite(got).all():
        return float("inf")
    top = float(np.abs(expected).max())
    return float(np.abs(got.astype(np.float64) - expected).max()) / (top or 1.0)


@dataclass(frozen=True, slots=True)
class ProductCase:
    """A matrix [rows, cols] of a format with `tokens` rows of activations of a kind."""

    format: str
    rows: int
    cols: int
    tokens: int
    activations: str = "normal"

    def __str__(self) -> str:
        return f"{self.format}-{self.rows}x{self.cols}-{self.tokens}-{self.activations}"


# (rows, columns, tokens): rows that leave a group unfilled, one tile, odd numbers of tiles, blocks
# of 128 columns cut short; the second row is for the formats that need 256 columns.
_SHAPES = {
    32: ((16, 32, 1), (5, 64, 3), (33, 160, 9), (150, 96, 4), (64, 416, 6)),
    256: ((16, 256, 1), (5, 512, 3), (150, 768, 9), (33, 1280, 6)),
}


def _product_cases() -> Iterator[ProductCase]:
    for name, fmt in FORMATS.items():
        if fmt.step == 0:
            continue
        for rows, cols, tokens in _SHAPES[fmt.step]:
            yield ProductCase(name, rows, cols, tokens)
        for kind in ("spiky", "ones", "zeros"):
            yield ProductCase(name, 48, 3 * fmt.step, 5, kind)
        # More tokens than pass a row group at a time.
        yield ProductCase(name, 16, fmt.step, 131)


PRODUCTS = tuple(_product_cases())


def matrix(name: str, rows: int, cols: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random tiles of a format in which every code, and scales of both signs, occur."""
    rng = np.random.default_rng((seed, rows, cols))
    tiles, spans = cols // 32, cols // 256

    def codes(limit: int) -> NDArray[np.uint8]:
        return rng.integers(0, limit, (rows, cols), dtype=np.uint8)

    def halves(columns: int, size: float) -> NDArray[np.float16]:
        return (rng.standard_normal((rows, columns)) * size).astype(np.float16)

    def small() -> NDArray[np.uint8]:
        return rng.integers(0, 256, (rows, tiles), dtype=np.uint8)

    if name == "fp8":
        blocks = (-(-rows // 128), -(-cols // 128))
        codes8 = codes(256)
        codes8[codes8 & 0x7F == 0x7F] = 0
        return formats.pack_fp8(codes8, rng.uniform(1e-4, 1e-3, blocks).astype(np.float32))
    if name == "q8":
        return formats.pack_q8(codes(256), halves(tiles, 1e-3))
    if name == "q4":
        return formats.pack_q4(codes(16), halves(tiles, 1e-2))
    if name == "q4m":
        return formats.pack_q4m(codes(16), halves(tiles, 1e-2), halves(tiles, 0.1))
    if name == "q5":
        return formats.pack_q5(codes(32), halves(tiles, 1e-2))
    if name == "q5m":
        return formats.pack_q5m(codes(32), halves(tiles, 1e-2), halves(tiles, 0.1))
    if name == "q4k":
        d, low = halves(spans, 1e-4), halves(spans, 1e-3)
        return formats.pack_q4k(codes(16), small(), small(), d, low)
    if name == "q5k":
        d, low = halves(spans, 1e-4), halves(spans, 1e-3)
        return formats.pack_q5k(codes(32), small(), small(), d, low)
    if name == "q6k":
        signed = rng.integers(-128, 128, (rows, 2 * tiles), dtype=np.int8)
        return formats.pack_q6k(codes(64), signed, halves(spans, 1e-4))
    return FORMATS[name].pack((rng.standard_normal((rows, cols)) * 0.05).astype(np.float32))


def activations(kind: str, tokens: int, cols: int, seed: int = 0) -> F32:
    """float32 [tokens, cols]: "normal", "spiky" (outliers and zero blocks), "ones" or "zeros"."""
    rng = np.random.default_rng((seed, tokens, cols))
    if kind in ("ones", "zeros"):
        return np.full((tokens, cols), kind == "ones", np.float32)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    if kind == "spiky":
        x[:, ::37] *= 1000
        x[:, :32] = 0
        x[:, -1] = 1e-30
    return x


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """`tokens` query tokens that end a context of `context` tokens; window 0 sees everything."""

    heads: int
    kv_heads: int
    head_dim: int
    context: int
    tokens: int = 1
    window: int = 0

    def __str__(self) -> str:
        shape = f"{self.heads}/{self.kv_heads}x{self.head_dim}"
        return f"{shape}-{self.context}-{self.tokens}-{self.window}"


# Every ratio of query to KV heads, every head size, and contexts that end on and beside the
# borders of a group (8), a chunk (64) and a span (256).
ATTENTION = (
    *(AttentionCase(r * g, g, 32, 100) for r, g in ((1, 3), (2, 2), (3, 1), (4, 2), (8, 1))),
    *(AttentionCase(3, 1, d, 70) for d in (32, 64, 96, 128, 160, 256)),
    *(AttentionCase(2, 1, 32, n) for n in (1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 255, 256, 257, 600)),
    *(AttentionCase(2, 1, 32, n, window=w) for n in (40, 300) for w in (1, 16, 31, 256, 1000)),
    *(AttentionCase(4, 2, 64, n, t) for n, t in ((5, 5), (80, 7), (272, 40), (530, 17))),
    *(AttentionCase(4, 2, 32, 300, 33, w) for w in (1, 20, 64, 270)),
)


@dataclass(frozen=True, slots=True)
class RouteCase:
    """One token of a context: groups selected, sink groups and window groups."""

    heads: int
    kv_heads: int
    head_dim: int
    context: int
    select: int
    sinks: int = 4
    window: int = 16

    def __str__(self) -> str:
        shape = f"{self.heads}/{self.kv_heads}x{self.head_dim}"
        return f"{shape}-{self.context}-{self.select}-{self.sinks}-{self.window}"


ROUTES = (
    RouteCase(2, 2, 32, 600, 3),
    RouteCase(4, 1, 64, 2000, 20),
    RouteCase(6, 2, 96, 1537, 1),
    RouteCase(8, 1, 128, 1024, 43),
    RouteCase(9, 3, 32, 4096, 100, 1, 2),
    RouteCase(5, 1, 32, 1000, 10, 0, 1),
)


def keys_and_values(case: AttentionCase | RouteCase, seed: int = 0) -> tuple[F32, F32]:
    """Rotated keys and values [context, G, D], already rounded to the float16 they are kept in."""
    rng = np.random.default_rng((seed, case.context, case.head_dim))
    shape = (2, case.context, case.kv_heads, case.head_dim)
    k, v = rng.standard_normal(shape).astype(np.float16).astype(np.float32)
    return k, v


def queries(case: AttentionCase | RouteCase, tokens: int, seed: int = 1) -> F32:
    """Scaled queries [tokens, H, D]."""
    rng = np.random.default_rng((seed, case.context, case.head_dim))
    q = rng.standard_normal((tokens, case.heads, case.head_dim)) * 2 * case.head_dim**-0.5
    return np.asarray(q, np.float32)
