"""Byte sizes and offsets: records tile a cell, cells tile a block."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hga.kvstore.geometry import Geometry, LayerShape, n_chunks

SHAPES = st.lists(
    st.builds(
        LayerShape,
        n_kv_heads=st.integers(1, 8),
        head_dim=st.sampled_from([32, 64, 96, 128, 256]),
        routed=st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def test_sizes_of_a_known_model() -> None:
    """Qwen3-30B-A3B: 4 KV heads of 128."""
    geometry = Geometry((LayerShape(4, 128, routed=True),) * 48)
    assert geometry.record_bytes(0) == 4 << 10
    assert geometry.page_bytes(0) == 4 * 8 * 4 << 10
    assert geometry.block_kv_bytes == 2 * 48 * 128 << 10
    assert geometry.kv_bytes(65536) == 48 * 4 * 65536 * 512
    # 6.25 MiB of pages and sketches for 64 tokens.
    assert geometry.block_index_bytes == 48 * 4 * 128 * 33
    # Two bits a dimension and a byte of scale: 33 bytes per key and KV head, 6.4 % of 512.
    assert geometry.sketch_bytes(65536) == 48 * 4 * 65536 * 33
    assert geometry.summary_bytes(65536) == 48 * 4 * 1024 * 5 * 128 * 4


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_sketches_take_less_than_a_fourteenth_of_keys_and_values(head_dim: int) -> None:
    geometry = Geometry((LayerShape(1, head_dim, routed=True),))
    assert geometry.sketch_bytes(1 << 16) <= 0.07 * 4 * head_dim * (1 << 16)
    lean = Geometry(geometry.layers, sketch_bits=1)
    assert lean.sketch_bytes(1 << 16) <= 0.04 * 4 * head_dim * (1 << 16)


@given(shapes=SHAPES)
def test_cells_tile_the_block(shapes: list[LayerShape]) -> None:
    """Layer after layer, chunk after chunk, KV head after KV head, cell after cell."""
    geometry = Geometry(tuple(shapes))
    end = 0
    for layer, shape in enumerate(shapes):
        assert geometry.layer_offset(layer) == end
        offsets, size = geometry.cell_offsets(layer), geometry.cell_bytes(layer)
        assert size == 2 * geometry.record_bytes(layer)
        assert offsets.shape == (shape.n_kv_heads, 8)
        for chunk in range(2):
            for head in range(shape.n_kv_heads):
                for cell in range(4):
                    assert offsets[head, 4 * chunk + cell] == end, "in order, without gaps"
                    end += size
    assert end == geometry.block_kv_bytes
    assert end % 4096 == 0


@given(shapes=SHAPES, n_tokens=st.integers(1, 5000))
def test_sketches_come_in_whole_blocks(shapes: list[LayerShape], n_tokens: int) -> None:
    geometry = Geometry(tuple(shapes))
    for layer, shape in enumerate(shapes):
        per_key = shape.head_dim // 4 + 1
        size = geometry.sketch_head_bytes(layer, n_tokens)
        assert size % (128 * per_key) == 0
        assert n_tokens * per_key <= size < (n_tokens + 128) * per_key
    routed = [i for i, shape in enumerate(shapes) if shape.routed]
    expected = sum(shapes[i].n_kv_heads * geometry.sketch_head_bytes(i, n_tokens) for i in routed)
    assert geometry.sketch_bytes(n_tokens) == expected


@pytest.mark.parametrize(("tokens", "chunks"), [(0, 0), (1, 1), (64, 1), (65, 2), (1 << 20, 16384)])
def test_chunks(tokens: int, chunks: int) -> None:
    assert n_chunks(tokens) == chunks
