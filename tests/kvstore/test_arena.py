"""Pages in memory: addresses that do not overlap, growth by slabs, memory given back."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.kvstore.arena import SLAB_CHUNKS, RamArena
from hga.kvstore.errors import StoreError
from hga.kvstore.geometry import Geometry, LayerShape

GEOMETRY = Geometry(
    (LayerShape(2, 32, routed=True), LayerShape(1, 64, routed=False), LayerShape(3, 32, True))
)
SLAB_TOKENS = SLAB_CHUNKS * 64


def test_it_starts_empty() -> None:
    arena = RamArena(GEOMETRY, 5000)
    assert arena.capacity == arena.allocated_bytes == 0
    assert not arena.pages.any() and len(arena.pages) == 3
    assert [s is not None for s in arena.sketches] == [True, False, True]
    for layer, sketches in enumerate(arena.sketches):
        if sketches is not None:
            shape = GEOMETRY.layers[layer]
            assert sketches.shape == (shape.n_kv_heads, GEOMETRY.sketch_head_bytes(layer, 5000))


def test_pages_do_not_overlap() -> None:
    arena = RamArena(GEOMETRY, 5000)
    arena.reserve(3000)
    spans = sorted(
        (int(address), int(address) + GEOMETRY.page_bytes(layer))
        for layer, row in enumerate(arena.pages)
        for address in row
        if address
    )
    assert len(spans) == 3 * 3 * SLAB_CHUNKS
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    slabs = [(s.ctypes.data, s.ctypes.data + s.nbytes) for s in arena._slabs]
    for start, end in spans:
        assert any(low <= start and end <= high for low, high in slabs)


def test_a_record_is_a_view_of_its_page() -> None:
    arena = RamArena(GEOMETRY, 3000)
    arena.reserve(2000)
    for i, slab in enumerate(arena._slabs):
        slab[...] = i
    seen = set()
    for layer, shape in enumerate(GEOMETRY.layers):
        for head in range(shape.n_kv_heads):
            for group in (0, 7, 8, 127, 128, 249):
                record = arena.record(layer, head, group)
                assert record.nbytes == GEOMETRY.record_bytes(layer)
                page = int(arena.pages[layer, group // 8])
                inside = GEOMETRY.record_offset(layer, head, group % 8)
                assert record.ctypes.data == page + inside
                seen.add(record.ctypes.data)
    assert len(seen) == 6 * 6


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 9000)), max_size=12))
def test_against_a_plain_model(steps: list[tuple[bool, int]]) -> None:
    """reserve and shrink in any order; a slab that stays keeps its address."""
    arena, slabs = RamArena(GEOMETRY, 9000), 0
    for grow, n_tokens in steps:
        before = arena.pages.copy()
        wanted = -(-n_tokens // SLAB_TOKENS)
        if grow:
            arena.reserve(n_tokens)
            slabs = max(slabs, wanted)
        else:
            arena.shrink(n_tokens)
            kept, slabs = slabs, min(slabs, wanted)
            before[:, slabs * SLAB_CHUNKS : kept * SLAB_CHUNKS] = 0
        assert arena.capacity == slabs * SLAB_TOKENS
        assert arena.allocated_bytes == slabs * SLAB_CHUNKS * GEOMETRY.chunk_bytes
        used = arena.pages != 0
        assert used[:, : slabs * SLAB_CHUNKS].all() and not used[:, slabs * SLAB_CHUNKS :].any()
        same = before != 0
        np.testing.assert_array_equal(arena.pages[same], before[same])
    arena.close()
    assert arena.allocated_bytes == 0 and not arena.pages.any()


@pytest.mark.parametrize("ctx", [1, 64, 1000, SLAB_TOKENS, SLAB_TOKENS + 1])
def test_the_whole_context_fits_the_table(ctx: int) -> None:
    arena = RamArena(GEOMETRY, ctx)
    arena.reserve(ctx)
    assert arena.pages[:, : -(-ctx // 64)].all()
    with pytest.raises(StoreError, match=f"{ctx + 1} tokens do not fit in a context of {ctx}"):
        arena.reserve(ctx + 1)


def test_fresh_pages_are_zero() -> None:
    arena = RamArena(GEOMETRY, 1000)
    arena.reserve(1000)
    assert not any(slab.any() for slab in arena._slabs)


def test_exhausted_memory_is_a_store_error() -> None:
    arena = RamArena(Geometry((LayerShape(1 << 40, 1 << 10, routed=False),)), 100)
    with pytest.raises(StoreError, match=r"no memory for \d+ more bytes .* at 0 tokens .*--ctx"):
        arena.reserve(1)
    assert arena.capacity == 0 and isinstance(StoreError(), OSError)
