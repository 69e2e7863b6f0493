"""Constants that two modules hold, because one must not import the other before a kernel target is
chosen: they agree."""

from pathlib import Path

import numpy as np
import pytest

from hga.kernels import ops
from hga.kernels.formats import FORMATS
from hga.kvstore import frames, geometry, route
from hga.runtime import experts, forward, weights


@pytest.fixture(scope="module", autouse=True)
def kernels(kernel_cache: Path) -> None:
    """Kernel modules may only be imported once their target is chosen."""
    ops.open_cpu(kernel_cache / "kernels", 1).close()


def test_forward_pass() -> None:
    from hga.kernels.cpu import layer_experts, scratch, simd_tile, sketch

    assert forward._GATHER_TOKENS == layer_experts.GATHER_TOKENS
    assert simd_tile.BLOCK_ROWS <= scratch.MAX_BLOCK_ROWS
    assert scratch.MAX_HEAD_DIM == sketch.MAX_HEAD_DIM


def test_geometry() -> None:
    from hga.kernels.cpu import layer_route, published, records, sketch

    assert geometry.CHUNK_TOKENS == records.CHUNK_TOKENS
    assert geometry.GROUP_TOKENS == records.GROUP_TOKENS
    assert sketch.GROUP_TOKENS == records.GROUP_TOKENS
    assert sketch.query_bytes(96) == 8 * 96 + forward._LINE
    assert geometry.SCALE_BYTES == records.SCALE_BYTES
    assert geometry.GROUPS_PER_BLOCK == sketch.BLOCK_GROUPS
    assert geometry.VECTORS_PER_CHUNK == published.VECTORS
    assert geometry.BLOCK_TOKENS == sketch.BLOCK_TOKENS
    shape = geometry.Geometry((geometry.LayerShape(1, 96, routed=True),))
    assert shape.sketch_head_bytes(0, 1) == sketch.block_bytes(96, 2)
    lean = geometry.Geometry(shape.layers, 1)
    assert lean.sketch_head_bytes(0, 1) == sketch.block_bytes(96, 1)
    rules = {"hga": layer_route.SKETCHED, "hga-paper": layer_route.PUBLISHED,
             "oracle": layer_route.ORACLE}  # fmt: skip
    assert {name: route.RULES.index(name) for name in rules} == rules


def test_weights() -> None:
    from hga.kernels.cpu import elementwise, sketch, tiles

    assert weights._MAX_HEAD_DIM == sketch.MAX_HEAD_DIM == len(sketch.SIGNS)
    assert weights._ACTIVATIONS == {"silu": elementwise.SILU, "gelu_tanh": elementwise.GELU_TANH}
    for name, fmt in FORMATS.items():
        if fmt.step:
            assert getattr(tiles, name.upper()) == fmt.code
    assert weights._FP8 == tiles.FP8


def test_experts() -> None:
    from hga.kernels.cpu import blob_sum, expert_cache, io_read

    assert experts.COUNTERS == expert_cache.COUNTERS
    assert experts._DAMAGED == (io_read.WRONG_SUM, io_read.SHORT_FILE)
    assert experts._SHORT_BYTES == blob_sum.SHORT_BYTES


def test_frames() -> None:
    from hga.kernels.cpu import residency

    assert frames.COUNTERS == residency.COUNTERS


def test_parameter_blocks_are_words() -> None:
    from hga.kernels.cpu import params

    def words(kind: np.dtype) -> int:
        if kind.fields is None:
            assert kind.itemsize == 8
            return 1
        return sum(words(field[0]) for field in kind.fields.values())

    blocks = (params.CALL, params.EXPERTS, params.LAYER, params.MATRIX)
    for block in (*blocks, params.RESIDENCY, params.ROWS):
        assert block.itemsize == 8 * words(block), "no padding between fields"
