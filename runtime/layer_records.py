"""LAYER records of a session: the weights' records with its cells and sketches."""

from typing import Any

from numpy.typing import NDArray

from hga.kvstore.arena import RamArena
from hga.kvstore.disk_arena import DiskArena


def with_cells(layers: NDArray[Any], arena: RamArena | DiskArena) -> NDArray[Any]:
    """A copy of a model's LAYER records that points into an arena, which must outlive it."""
    layers = layers.copy()
    for i, sketches in enumerate(arena.sketches):
        record, cells = layers[i], arena.cells[i]
        record["cells"], record["cell_row"] = cells.ctypes.data, cells.strides[0]
        scales = arena.scales[i]
        if scales is not None:
            record["scales"], record["scale_row"] = scales.ctypes.data, scales.strides[0]
        if sketches is None:
            continue
        record["sketches"], record["head_bytes"] = sketches.ctypes.data, sketches.strides[0]
        if isinstance(arena, DiskArena):
            record["residency"] = arena.frames.records[i : i + 1].ctypes.data
    return layers
