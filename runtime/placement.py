"""Placement: where keys and values lie, memory or disk, and what that takes of the budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from hga.kvstore.disk_arena import recent_blocks
from hga.kvstore.geometry import (
    CELL_TOKENS,
    CELLS_PER_BLOCK,
    GROUP_TOKENS,
    Geometry,
    n_blocks,
)
from hga.kvstore.route import AUTO_MOST, Router

from .budget import BillLine, total

# Tokens of a prompt that pass a layer together, where keys and values go to disk: the residual
# stream takes memory, and every further segment reads the earlier pages again.
SEGMENT_TOKENS = 8192
# Threads and compiled kernels of the reader, buffers of the store: measured with the demo model.
_READER_BYTES = 24 << 20
# Frames beyond this share of all cells would hold what is hardly ever read again.
_MOST_FRAMES_SHARE = 1 / 2
# Frames for what so many tokens read hold nine tenths of what the next one does.
_WANTED_TOKENS = 2
# Without --mem, of the memory that is free when the engine opens.
SHARE_OF_FREE = 0.8


@dataclass(frozen=True, slots=True)
class Placement:
    """Where keys and values lie, the memory of the frames for cells on disk, the most cells that a
    KV head of a layer reads for one token, the bill of all, and memory of frames: the least, and
    with which a token finds most of what it reads."""

    on_disk: bool
    frame_bytes: int
    overflow_cells: int
    bill: tuple[BillLine, ...]
    least_frame_bytes: int = 0
    wanted_frame_bytes: int = 0


def _overflow_cells(router: Router, ctx: int) -> int:
    """Cells that hold the groups of one token at most."""
    limits = router.limits(ctx)
    groups = limits.sinks + limits.window + limits.most + 1
    # A context that is read whole has two groups a cell.
    return min(max(groups, router.least_tokens(ctx) // CELL_TOKENS + 1), -(-ctx // CELL_TOKENS))


def _usual_groups(router: Router, ctx: int) -> int:
    """Groups that a token reads, about, in a context of this size: `auto` seldom takes its most."""
    limits = router.limits(ctx)
    groups = limits.sinks + limits.window + limits.most
    return min(groups, max(AUTO_MOST // GROUP_TOKENS, limits.sinks + limits.window + limits.least))


def _disk_lines(
    geometry: Geometry, windows: Sequence[int], ctx: int, hidden: int, overflow_cells: int
) -> list[BillLine]:
    """What keys and values on disk take in memory besides the frames."""
    layers, blocks = range(len(geometry.layers)), n_blocks(ctx)
    pages = [geometry.layer_bytes(i) for i in layers]
    recent = sum(recent_blocks(windows[i]) * pages[i] for i in layers)
    heads = sum(shape.n_kv_heads for shape in geometry.layers)
    prompt = [BillLine("a part of a prompt", min(SEGMENT_TOKENS, ctx) * hidden * 4)]
    tables = blocks * (heads * CELLS_PER_BLOCK * 12 + 24 * len(geometry.layers))
    cells = (geometry.cell_bytes(i) * geometry.layers[i].n_kv_heads for i in layers)
    return [
        BillLine("reader of the disk", _READER_BYTES),
        BillLine("last keys and values", recent),
        BillLine("tables of cells", tables, True),
        BillLine("cells of one token", max(cells) * overflow_cells, True),
        BillLine("a layer of a prompt, twice", 2 * max(pages) * blocks, True),
        *(prompt if hidden else []),
    ]


def place(
    geometry: Geometry,
    windows: Sequence[int],
    ctx: int,
    hidden: int,
    router: Router,
    fixed: Sequence[BillLine],
    kv: str,
    mem: int | None,
    free: int,
    has_index: bool = True,
) -> Placement:
    """Choose by `kv` (ram, disk, or auto: memory if it holds all), the budget `mem` in bytes and
    the free memory.

    windows: tokens that each layer sees, 0 for all; hidden: of the residual stream, 0 where that
    lies elsewhere; fixed: lines that every placement has; has_index: whether key sketches lie here
    too. A budget that holds neither is left to `budget.check`.
    """
    index = [BillLine("key sketches", geometry.sketch_bytes(ctx), True)] if has_index else []
    if geometry.int8:
        index.append(BillLine("scales of keys and values", geometry.scale_bytes(ctx), True))
    in_ram = [*fixed, BillLine("keys and values", geometry.kv_bytes(ctx), True), *index]
    limit = mem if mem is not None else int(SHARE_OF_FREE * free)
    if kv == "ram" or (kv == "auto" and total(in_ram) <= limit):
        return Placement(False, 0, 0, tuple(in_ram))
    overflow = _overflow_cells(router, ctx)
    lines = [*fixed, *_disk_lines(geometry, windows, ctx, hidden, overflow), *index]
    routed = sum(
        shape.n_kv_heads * geometry.cell_bytes(i)
        for i, shape in enumerate(geometry.layers)
        if shape.routed
    )
    most = int(_MOST_FRAMES_SHARE * -(-ctx // CELL_TOKENS)) * routed
    # What one token of the smallest budget reads; with fewer frames every token reads anew.
    least = router.least_tokens(ctx) // GROUP_TOKENS * routed
    least = min(least, most)
    wanted = min(_WANTED_TOKENS * _usual_groups(router, ctx) * routed, most)
    frames = min(max(limit - total(lines), least), most)
    lines.append(BillLine("frames for keys and values", frames))
    if kv == "auto" and total(lines) >= total(in_ram):
        return Placement(False, 0, 0, tuple(in_ram))
    return Placement(True, frames, overflow, tuple(lines), least, wanted)
