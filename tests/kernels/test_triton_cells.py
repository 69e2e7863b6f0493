"""Keys and values in cells found by address, and sketches as they lie on disk, in Triton's
interpreter; TRITON_INTERPRET=0 runs them on a card."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make setup-oracle)")
pytest.importorskip("triton", reason="triton is not installed (Linux alone has it)")

from hga.kernels import cases  # noqa: E402
from hga.kernels.reference import sketch as ref_sketch  # noqa: E402
from hga.kernels.triton import attention, heads, places, sketches  # noqa: E402

DEVICE = "cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu"


def on(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def back(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def state(position: int, number: int = 0) -> torch.Tensor:
    words = [0, position, 0, 0, 0, 0, 0, number]
    return torch.tensor(words, dtype=torch.int32, device=DEVICE)


def rows_with(k: np.ndarray, v: np.ndarray) -> places.Rows:
    """Keys and values k, v [S, G, D]; what lies beyond them is NaN."""
    made = []
    for x in (k, v):
        wide = np.full((x.shape[1], 128, x.shape[2]), np.nan, np.float16)
        wide[:, : len(x)] = x.transpose(1, 0, 2)
        made.append(on(wide))
    return places.Rows(*made)


def cells_of(rows: places.Rows) -> tuple[places.Cells, list[torch.Tensor]]:
    """The same keys and values in cells as docs/format.md describes them, each in memory of its
    own; what to keep."""
    keys, values = back(rows.keys).astype(np.float16), back(rows.values).astype(np.float16)
    n_kv, capacity, d = keys.shape
    table, keep = np.zeros((n_kv, capacity // 16), np.int64), []
    for h, c in np.ndindex(table.shape):
        cell = np.zeros((2, 16 * d), np.float16)
        for r in range(2):
            at = slice(16 * c + 8 * r, 16 * c + 8 * r + 8)
            cell[r] = np.concatenate([keys[h, at].T.ravel(), values[h, at].ravel()])
        keep.append(on(cell))
        table[h, c] = keep[-1].data_ptr()
    return places.Cells(on(table), d), keep


@pytest.mark.parametrize("window", [0, 20])
def test_attention_over_cells(window: int) -> None:
    """To the bit what it is over rows, over groups and over a range."""
    case = cases.RouteCase(4, 2, 32, 100, 20)
    rows = rows_with(*cases.keys_and_values(case))
    cells, keep = cells_of(rows)
    q = on(cases.queries(case, 1)).to(torch.float16)
    groups = on(np.tile(np.array([0, 2, 5, 12], np.int32), (2, 1)))
    lists = (None, None) if window else (groups, on(np.full(2, 4, np.int32)))
    found = []
    for at in (rows, cells):
        out, splits = torch.empty((4, 32), device=DEVICE), attention.SplitBuffers(4, 2, 32, DEVICE)
        attention.attend(q, at, state(99), splits, out, 32, window, *lists)
        found.append(back(out))
    assert np.isfinite(found[0]).all() and np.array_equal(*found) and keep


def test_pages_and_cells_hold_what_rows_hold() -> None:
    """Pages made of rows, a token's heads put into rows and cells: the same bytes."""
    n_kv, d, position = 2, 32, 141
    rng = np.random.default_rng(1)
    filled = rng.standard_normal((2, n_kv, 256, d)).astype(np.float16)
    rows = places.Rows(on(filled[0].copy()), on(filled[1].copy()))
    cells, keep = cells_of(rows)
    qkv = rng.standard_normal((1, (2 + 2 * n_kv) * d)).astype(np.float32)
    angle = rng.standard_normal((1, d // 2)).astype(np.float32)
    turn, q = heads.turn_matrix(d, DEVICE), torch.zeros((1, 2, d), device=DEVICE).half()
    for to in (rows, cells):
        heads.prepare(
            on(qkv), None, on(np.cos(angle)), on(np.sin(angle)), state(position), turn, q, None,
            to, None, d, 1.0, 1e-6, 1,
        )  # fmt: skip
    assert not np.array_equal(back(rows.keys)[:, position], filled[0, :, position])
    pages = places.pages_of(rows, 0, 2)
    # A page: KV heads, cells; a block of two of them.
    order = torch.stack(keep).view(n_kv, 2, 2, 8, 16 * d).permute(1, 2, 0, 3, 4)
    assert torch.equal(pages.view(2, 2, n_kv, 8, 16 * d), order)
    again = places.Rows(torch.zeros_like(rows.keys), torch.zeros_like(rows.values))
    places.rows_of(pages[1:], 1, again)
    places.rows_of(pages[:1], 0, again)
    assert torch.equal(again.keys, rows.keys) and torch.equal(again.values, rows.values)


def test_what_is_missing_is_found() -> None:
    """Cells that are nowhere, each once, with more groups than a program takes at a time."""
    rng = np.random.default_rng(2)
    n_cells, row = 1200, 2400
    table = np.where(rng.random((2, n_cells)) < 0.5, 0, 64).astype(np.int64)
    lists = [np.sort(rng.choice(row, n, replace=False)) for n in (1500, 3)]
    groups = np.zeros((2, row), np.int32)
    for h, chosen in enumerate(lists):
        groups[h, : len(chosen)] = chosen
    used = on(np.zeros((2, n_cells), np.int32))
    found = on(np.zeros((2, 2 + n_cells), np.int32))
    counts = on(np.array([1500, 3], np.int32))
    places.find_missing(on(groups), counts, state(0, 9), places.Cells(on(table), 32), used, found)
    for h, chosen in enumerate(lists):
        cells = np.unique(chosen // 2)
        missing = cells[table[h, cells] == 0]
        got = found[h].cpu().numpy()
        assert got[:2].tolist() == [len(missing), len(cells)]
        assert got[2 : 2 + len(missing)].tolist() == missing.tolist()
        assert np.flatnonzero(used[h].cpu().numpy() == 9).tolist() == cells.tolist()


@pytest.mark.parametrize("head_dim", [32, 96])
def test_sketches_on_disk(head_dim: int) -> None:
    """As docs/format.md describes them, and back."""
    k = np.random.default_rng(head_dim).standard_normal((128, 2, head_dim)).astype(np.float32)
    k[5] = 0
    codes, sizes = ref_sketch.sketch_keys(k)
    width = heads.padded_width(head_dim)
    wide = np.full((2, 128, 4, width // 4), 2)
    wide.reshape(2, 128, width)[..., :head_dim] = codes.transpose(1, 0, 2)
    packed = sum(wide[:, :, s] << 2 * s for s in range(4)).astype(np.uint8)
    here = on(packed), on(sizes.T.astype(np.float16))
    found = sketches.to_disk(*here, head_dim)
    data = found.cpu().numpy()
    words = data[:, : 32 * head_dim].copy().view(np.uint32).reshape(2, 8, head_dim // 16, 16)
    for h, t, dim in np.ndindex(2, 128, head_dim):
        word = int(words[h, t % 8, dim // 16, t // 8])
        assert word >> (8 * (dim % 4) + 2 * (dim % 16 // 4)) & 3 == codes[t, h, dim]
    for h, t in np.ndindex(2, 128):
        code = int(data[h, 32 * head_dim + 16 * (t % 8) + t // 8])
        value = (1 + code % 16 / 16) * 2.0 ** (code // 16 - 8) if code else 0
        assert value == sizes[t, h]
    assert data.shape[1] == sketches.disk_bytes(head_dim)
    for mine, theirs in zip(sketches.from_disk(found, head_dim), here):
        assert torch.equal(mine, theirs)
