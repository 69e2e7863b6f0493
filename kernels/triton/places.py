"""Where the keys and values of a layer lie: in rows by position, or in cells found by address.

Cells are those of a session on disk (docs/format.md): 16 tokens of a KV head, two groups of eight,
of each keys [D][8] and then values [8][D], float16. Their addresses are a table in host memory that
the host alone writes, while no kernel runs; kernels read it, and the cells, over the bus.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

CELL_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """keys, values: float16 [G, capacity, D]."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def n_kv_heads(self) -> int:
        """KV heads."""
        return int(self.keys.shape[0])

    @property
    def head_dim(self) -> int:
        """Stored dimensions."""
        return int(self.keys.shape[2])


@dataclass(frozen=True, slots=True)
class Cells:
    """table: int64 [G, cells], 0 where a cell is nowhere."""

    table: torch.Tensor
    head_dim: int

    @property
    def n_kv_heads(self) -> int:
        """KV heads."""
        return int(self.table.shape[0])


Place = Rows | Cells


@triton.jit
def group_at(table, group, D: tl.constexpr):
    """Address of a group of eight tokens; table: of a KV head. For tensors of groups."""
    return tl.load(table + group // 2) + group % 2 * (32 * D)


@triton.jit
def _find(
    groups,
    counts,
    state,
    cells,
    used,
    found,
    row,
    n_cells,
    found_row,
    N: tl.constexpr,
):
    h = tl.program_id(0)
    count, now = tl.load(counts + h), tl.load(state + 7)
    table, out = cells + h * n_cells, found + h * found_row
    n_missing = 0
    n_here = 0
    for first in range(0, count, N):
        place = first + tl.arange(0, N)
        inside = place < count
        at = groups + h * row + place
        cell = tl.load(at, mask=inside, other=0) // 2
        before = tl.load(at - 1, mask=inside & (place > 0), other=-2) // 2
        new = inside & ((cell != before) | (place == 0))
        missing = new & (tl.load(table + cell, mask=new, other=1) == 0)
        tl.store(used + h * n_cells + cell, now, mask=new)
        order = tl.cumsum(missing.to(tl.int32), 0)
        tl.store(out + 1 + n_missing + order, cell, mask=missing)
        n_missing += tl.sum(missing.to(tl.int32), 0)
        n_here += tl.sum(new.to(tl.int32), 0)
    tl.store(out, n_missing)
    tl.store(out + 1, n_here)


def find_missing(
    groups: torch.Tensor,
    counts: torch.Tensor,
    params: torch.Tensor,
    cells: Cells,
    used: torch.Tensor,
    found: torch.Tensor,
) -> None:
    """Note which cells of the groups listed (int32 [G, row], ascending, of which counts [G] count)
    are nowhere.

    used: int32 [G, cells] in host memory, where cells of the groups get the number of the token,
    params[7]. found: int32 [G, 2 + cells] in host memory: how many cells are nowhere, how many
    there are, and those that are nowhere.
    """
    n_kv, n_cells = cells.table.shape
    _find[(n_kv,)](
        groups, counts, params, cells.table, used, found, groups.stride(0), n_cells,
        found.stride(0), N=1024, num_warps=8,
    )  # fmt: skip


def rows_of(pages: torch.Tensor, first: int, rows: Rows) -> None:
    """Put pages of whole blocks, float16 [blocks, 2, G, 8, 2, 8 D], into rows from block `first`
    on."""
    n, n_kv, d = len(pages), rows.n_kv_heads, rows.head_dim
    part = slice(128 * first, 128 * (first + n))
    keys = pages[..., 0, :].view(n, 2, n_kv, 8, d, 8).permute(2, 0, 1, 3, 5, 4)
    values = pages[..., 1, :].view(n, 2, n_kv, 8, 8, d).permute(2, 0, 1, 3, 4, 5)
    rows.keys[:, part].view(n_kv, n, 2, 8, 8, d).copy_(keys)
    rows.values[:, part].view(n_kv, n, 2, 8, 8, d).copy_(values)


def pages_of(rows: Rows, first: int, end: int) -> torch.Tensor:
    """Pages of whole blocks first..end: what `rows_of` takes."""
    n, n_kv, d = end - first, rows.n_kv_heads, rows.head_dim
    part = slice(128 * first, 128 * end)
    pages = torch.empty((n, 2, n_kv, 8, 2, 8 * d), dtype=torch.float16, device=rows.keys.device)
    keys = rows.keys[:, part].view(n_kv, n, 2, 8, 8, d).permute(1, 2, 0, 3, 5, 4)
    values = rows.values[:, part].view(n_kv, n, 2, 8, 8, d).permute(1, 2, 0, 3, 4, 5)
    pages[..., 0, :].view(n, 2, n_kv, 8, d, 8).copy_(keys)
    pages[..., 1, :].view(n, 2, n_kv, 8, 8, d).copy_(values)
    return pages
