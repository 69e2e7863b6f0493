"""Cells in memory: addresses that do not overlap, growth by slabs, memory given back."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.kvstore.arena import SLAB_BLOCKS, SLAB_TOKENS, RamArena
from hga.kvstore.errors import StoreError
from hga.kvstore.geometry import Geometry, LayerShape

GEOMETRY = Geometry(
    (LayerShape(2, 32, routed=True), LayerShape(1, 64, routed=False), LayerShape(3, 32, True))
)


def test_it_starts_empty() -> None:
    arena = RamArena(GEOMETRY, 5000)
    assert arena.capacity == arena.allocated_bytes == 0
    assert not any(cells.any() for cells in arena.cells)
    assert [len(cells) for cells in arena.cells] == [2, 1, 3]
    assert [s is not None for s in arena.sketches] == [True, False, True]
    for layer, sketches in enumerate(arena.sketches):
        if sketches is not None:
            shape = GEOMETRY.layers[layer]
            assert sketches.shape == (shape.n_kv_heads, GEOMETRY.sketch_head_bytes(layer, 5000))


def test_cells_do_not_overlap() -> None:
    arena = RamArena(GEOMETRY, 5000)
    arena.reserve(3000)
    spans = sorted(
        (int(address), int(address) + GEOMETRY.cell_bytes(layer))
        for layer, cells in enumerate(arena.cells)
        for address in cells.flat
        if address
    )
    assert len(spans) == (2 + 1 + 3) * 3 * SLAB_BLOCKS * 8
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    slabs = [(s.ctypes.data, s.ctypes.data + s.nbytes) for s in arena._slabs]
    for start, end in spans:
        assert any(low <= start and end <= high for low, high in slabs)


def test_a_record_is_a_view_of_its_cell() -> None:
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
                cell = int(arena.cells[layer][head, group // 2])
                assert record.ctypes.data == cell + group % 2 * record.nbytes
                seen.add(record.ctypes.data)
    assert len(seen) == 6 * 6


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 9000)), max_size=12))
def test_against_a_plain_model(steps: list[tuple[bool, int]]) -> None:
    """reserve and shrink in any order; a slab that stays keeps its address."""
    arena, slabs = RamArena(GEOMETRY, 9000), 0
    for grow, n_tokens in steps:
        before = [cells.copy() for cells in arena.cells]
        wanted = -(-n_tokens // SLAB_TOKENS)
        if grow:
            arena.reserve(n_tokens)
            slabs = max(slabs, wanted)
        else:
            arena.shrink(n_tokens)
            kept, slabs = slabs, min(slabs, wanted)
            for cells in before:
                cells[:, slabs * SLAB_BLOCKS * 8 : kept * SLAB_BLOCKS * 8] = 0
        assert arena.capacity == slabs * SLAB_TOKENS
        assert arena.allocated_bytes == slabs * SLAB_BLOCKS * GEOMETRY.block_kv_bytes
        for cells, old in zip(arena.cells, before):
            used = cells != 0
            assert used[:, : slabs * SLAB_BLOCKS * 8].all()
            assert not used[:, slabs * SLAB_BLOCKS * 8 :].any()
            np.testing.assert_array_equal(cells[old != 0], old[old != 0])
    arena.close()
    assert arena.allocated_bytes == 0 and not any(cells.any() for cells in arena.cells)


@pytest.mark.parametrize("ctx", [1, 64, 1000, SLAB_TOKENS, SLAB_TOKENS + 1])
def test_the_whole_context_fits_the_table(ctx: int) -> None:
    arena = RamArena(GEOMETRY, ctx)
    arena.reserve(ctx)
    assert all(cells[:, : -(-ctx // 16)].all() for cells in arena.cells)
    with pytest.raises(StoreError, match=f"{ctx + 1} tokens do not fit in a context of {ctx}"):
        arena.reserve(ctx + 1)


def test_fresh_pages_are_zero() -> None:
    arena = RamArena(GEOMETRY, 1000)
    arena.reserve(1000)
    assert not any(slab.any() for slab in arena._slabs)


def test_exhausted_memory_is_a_store_error() -> None:
    arena = RamArena(Geometry((LayerShape(1, 1 << 42, routed=False),)), 100)
    with pytest.raises(StoreError, match=r"no memory for \d+ more bytes .* at 0 tokens .*--ctx"):
        arena.reserve(1)
    assert arena.capacity == 0 and isinstance(StoreError(), OSError)


def test_an_index_comes_back_as_it_was() -> None:
    arena, other = RamArena(GEOMETRY, 5000), RamArena(GEOMETRY, 5000)
    rng = np.random.default_rng(0)
    for sketches in arena.sketches:
        if sketches is not None:
            sketches[...] = rng.integers(0, 256, sketches.shape)
    for block in range(40):
        index = arena.block_index(block)
        assert len(index) == GEOMETRY.block_index_bytes
        other.load_index(block, index)
    for a, b in zip(arena.sketches, other.sketches):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b)


def test_a_block_is_a_view_of_its_cells() -> None:
    arena = RamArena(GEOMETRY, 5000)
    arena.reserve(3000)
    for block in (0, 7, 8, 22):
        kv = arena.block_kv(block)
        assert len(kv) == GEOMETRY.block_kv_bytes
        for layer in range(3):
            addresses = arena.cells[layer][:, 8 * block : 8 * block + 8]
            np.testing.assert_array_equal(addresses, kv.ctypes.data + GEOMETRY.cell_offsets(layer))
