"""A prompt of a model whose keys and values, or experts, lie on disk: it passes layer by layer, so
that every layer reads its earlier pages and its experts once, however long the prompt is. A token's
arithmetic is that in memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from hga.kvstore.arena import RamArena
from hga.kvstore.disk_arena import DiskArena
from hga.kvstore.route import Units
from hga.kvstore.stage import Stage

from .experts import ExpertCache
from .forward import ForwardPass
from .marks import cuts
from .placement import SEGMENT_TOKENS

if TYPE_CHECKING:
    from .cuda_forward import CudaForward
    from .cuda_pages import Pages


class InMemory:
    """What a Stage is, for keys and values in memory: the arena's own tables."""

    def __init__(self, arena: RamArena, position: int, end: int) -> None:
        arena.reserve(end)
        self._arena, self._position = arena, position

    def layer(self, layer: int) -> NDArray[np.int64]:
        """A layer's table of cells, int64 [G, cells]."""
        return self._arena.cells[layer]

    def end_layer(self, layer: int) -> None:
        """Nothing: the cells are where they stay."""

    def finish(self) -> None:
        """Nothing: the positions are part of the arena."""

    def abandon(self) -> None:
        """Give back what was reserved."""
        self._arena.shrink(self._position)


def open_stage(arena: RamArena | DiskArena, position: int, end: int) -> Stage | InMemory:
    """What takes positions position..end of an arena through the layers."""
    if isinstance(arena, DiskArena):
        return Stage(arena, position, end)
    return InMemory(arena, position, end)


Residual = NDArray[np.float32]
"""A residual stream, float32 [T, hidden]: a tensor on the card where the forward pass is there."""


@contextmanager
def residual_memory(
    forward: ForwardPass, n_tokens: int, experts: ExpertCache | None = None
) -> Iterator[Residual]:
    """Memory for the residual stream of n_tokens or of a part of them, float32 [t, hidden]: of
    SEGMENT_TOKENS, or more where a cache of experts has slots to lend for it."""
    if forward.on_card:
        yield cast("CudaForward", forward).residual(n_tokens)
        return
    hidden, part = forward.hidden, min(n_tokens, SEGMENT_TOKENS)
    spare = experts.spare_bytes // (4 * hidden) if experts is not None else 0
    lent = min(n_tokens, spare)
    if experts is None or lent <= part:
        yield np.empty((part, hidden), np.float32)
        return
    with experts.lend(4 * lent * hidden) as memory:
        yield memory.view(np.float32).reshape(lent, hidden)


def parts_of(
    forward: ForwardPass, position: int, n_tokens: int, memory: Residual, rows: int = 0
) -> list[tuple[int, int]]:
    """Ranges of a prompt at position… whose residual stream fits into memory. Not a bit depends on
    them: on a card, where a token's depend on what shares its block, they end where blocks do;
    rows: tokens of a block, see `pass_layers`."""
    size = len(memory) or 1
    if forward.on_card and not rows:
        return cuts(position, n_tokens, size)
    if rows:
        size = max(rows, size // rows * rows)
    return [(first, min(first + size, n_tokens)) for first in range(0, n_tokens, size)]


def pass_layers(
    forward: ForwardPass,
    layers: NDArray[Any],
    ids: Sequence[int],
    position: int,
    stage: Stage | InMemory,
    units: Units,
    advance: Callable[[float], None],
    residual: Residual,
    rows: int = 0,
) -> None:
    """Take ids at positions position… through all layers.

    layers: LAYER records, of which a copy gets the stage's cells. advance hears the share done.
    residual: float32 [T, hidden], written: the residual stream behind the last layer. rows: tokens
    of a block (0: as many as the forward pass takes, cut as prompts are).
    """
    tokens = np.asarray(ids, np.int64)
    parts = cuts(position, len(ids), forward.block_tokens)
    if forward.on_card:
        if rows:
            parts = [(a, min(a + rows, len(ids))) for a in range(0, len(ids), rows)]
        card = cast("CudaForward", forward)
        pages, staged = cast("Pages", layers), cast(Stage, stage)
        card.pass_layers(pages, tokens, parts, position, staged, advance, cast(Any, residual))
        return
    layers = layers.copy()
    for a, b in parts:
        forward.embed(layers, tokens[a:b], residual[a:b])
    layers["residency"] = 0
    for i in range(len(layers)):
        cells = stage.layer(i)
        layers[i]["cells"], layers[i]["cell_row"] = cells.ctypes.data, cells.strides[0]
        for a, b in parts:
            forward.run_layer(layers, i, residual[a:b], position + a, units)
            advance((i + b / len(ids)) / len(layers))
        stage.end_layer(i)
