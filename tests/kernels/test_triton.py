"""The CUDA kernels against the numpy references, from the shared case list, in Triton's
interpreter: the same source, run by numpy on the CPU. TRITON_INTERPRET=0 runs them on a card.
"""

import os

# Read when a kernel is defined; nothing else in this process compiles Triton kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make setup-oracle)")
pytest.importorskip("triton", reason="triton is not installed (Linux alone has it)")

from hga.kernels import cases  # noqa: E402
from hga.kernels.formats import FORMATS  # noqa: E402
from hga.kernels.reference import attention as ref_attention  # noqa: E402
from hga.kernels.reference import rows as ref_rows  # noqa: E402
from hga.kernels.reference import sketch as ref_sketch  # noqa: E402
from hga.kernels.triton import (  # noqa: E402
    attention,
    experts,
    heads,
    layouts,
    places,
    products,
    routing,
)
from hga.kernels.triton import sketches as sketch_store  # noqa: E402

DEVICE = "cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu"
# Activations of products are float32, sums too; a prompt's are bfloat16, queries float16.
TOLERANCE = {
    "product": 2e-5,
    "widened": 2e-5 if DEVICE == "cpu" else 1e-2,
    "attend": 2e-3,
    "masses": 3e-2,
    "rows": 1e-5,
}
WIDE = torch.float32 if DEVICE == "cpu" else torch.bfloat16
# The interpreter is slow: one shape of every format, and those that a format's edges need.
PRODUCTS = [c for c in cases.PRODUCTS if c.tokens <= 9 and c.activations in ("normal", "spiky")]
if DEVICE == "cpu":
    PRODUCTS = [c for c in PRODUCTS if c.rows <= 64]


def on(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def back(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def matrix(name: str, rows: int, cols: int) -> tuple[layouts.Matrix, np.ndarray]:
    """A device matrix of random tiles, and its values."""
    data, fmt = cases.matrix(name, rows, cols), FORMATS[name]
    packed = on(data.reshape(-1, fmt.group_bytes(cols)))
    return layouts.repack(fmt, packed, rows, cols), fmt.unpack(data.reshape(-1), rows, cols)


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_products(case: cases.ProductCase) -> None:
    m, values = matrix(case.format, case.rows, case.cols)
    if m.kind == layouts.F16 and case.format != "f16":
        values = values.astype(np.float16).astype(np.float32)
    x = cases.activations(case.activations, case.tokens, case.cols)
    out = torch.empty(case.rows, device=DEVICE)
    products.matvec(m, on(x[0]), out)
    assert cases.error(back(out), values @ x[0]) <= TOLERANCE["product"]
    widened = torch.empty((case.rows, case.cols), device=DEVICE)
    products.widen(m, 0, case.rows, widened)
    assert np.array_equal(back(widened), values)
    scratch = torch.empty(16 * case.cols, dtype=WIDE, device=DEVICE)
    got = products.matmul(m, on(x).to(WIDE), scratch)
    near = on(values).to(WIDE).float().cpu().numpy()
    rounded = on(x).to(WIDE).float().cpu().numpy()
    assert cases.error(back(got), rounded @ near.T) <= TOLERANCE["widened"]


def test_product_with_norm_bias_and_sum() -> None:
    m, values = matrix("f32", 40, 96)
    x = cases.activations("normal", 1, 96)[0]
    norm, bias = np.linspace(0.5, 2, 96, dtype=np.float32), np.arange(40, dtype=np.float32)
    out = on(np.ones(40, np.float32))
    products.matvec(m, on(x), out, norm=on(norm), eps=1e-6, bias=on(bias), add=True)
    expected = values @ ref_rows.rms_norm(x, norm, 1e-6) + bias + 1
    assert cases.error(back(out), expected) <= TOLERANCE["product"]


def test_rows() -> None:
    m, values = matrix("q8", 48, 64)
    tokens = np.array([3, 0, 47], np.int32)
    out = torch.empty((3, 64), device=DEVICE)
    products.embed(m, on(tokens), 2.0, out)
    assert cases.error(back(out), 2 * values[tokens]) <= TOLERANCE["rows"]
    x, norm = cases.activations("normal", 1, 96)[0], np.linspace(0.5, 2, 96, dtype=np.float32)
    total = on(np.ones(96, np.float32))
    products.add_normed(on(x), on(norm), total, 1e-6)
    assert cases.error(back(total), 1 + ref_rows.rms_norm(x, norm, 1e-6)) <= TOLERANCE["rows"]


def test_stacked_matrices() -> None:
    for name in ("f32", "q8", "q4", "bf16", "fp8"):
        rows = 128 if name == "fp8" else 48
        parts = [matrix(name, n, 64) for n in (rows, rows, 16)]
        assert layouts.can_stack([m for m, _ in parts])
        joined = layouts.stack([m for m, _ in parts])
        out = torch.empty((joined.rows, 64), device=DEVICE)
        products.widen(joined, 0, joined.rows, out)
        assert np.array_equal(back(out), np.concatenate([v for _, v in parts]))


@pytest.mark.parametrize("kinds", [("q4", "q4", "q4"), ("fp8", "q8", "bf16")])
@pytest.mark.parametrize("gelu", [False, True])
def test_experts(kinds: tuple[str, str, str], gelu: bool) -> None:
    n, used, hidden, width, tokens = 5, 2, 64, 96, 7
    shapes = ((width, hidden), (width, hidden), (hidden, width))
    blob, at, offsets = [], 0, []
    for _ in range(n):
        parts = []
        for name, shape in zip(kinds, shapes):
            m, values = matrix(name, *shape)
            parts.append((m, values * 1.0))
        blob.append(parts)
    for m, _ in blob[0]:
        offsets.append(at)
        at += m.codes.numel()
        offsets.append(at)
        at += max(16, m.scales.numel())
    data = torch.zeros((n, at), dtype=torch.uint8, device=DEVICE)
    for e in range(n):
        for i, (m, _) in enumerate(blob[e]):
            data[e, offsets[2 * i] : offsets[2 * i] + m.codes.numel()] = m.codes
            data[e, offsets[2 * i + 1] : offsets[2 * i + 1] + m.scales.numel()] = m.scales
    layout = experts.Blob(tuple(offsets), tuple(m.kind for m, _ in blob[0]), at)
    table = torch.tensor([data[e].data_ptr() for e in range(n)], device=DEVICE)
    mlp = experts.Mlp(table, layout, n, used, hidden, width, gelu, True, (data,))
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((tokens, n)).astype(np.float32)
    chosen = torch.empty((tokens, used), dtype=torch.int32, device=DEVICE)
    weights = torch.empty((tokens, used), device=DEVICE)
    experts.choose(on(logits), mlp, chosen, weights, tokens)
    expected, shares = ref_rows.top_experts(logits, used, True)
    assert np.array_equal(chosen.cpu().numpy(), expected)
    assert cases.error(back(weights), shares) <= 1e-6
    x, norm = cases.activations("normal", tokens, hidden), np.ones(hidden, np.float32)
    y = ref_rows.rms_norm(x, norm, 1e-6)
    act = ref_rows.gelu_tanh if gelu else ref_rows.silu
    truth = np.zeros((tokens, hidden), np.float32)
    for t in range(tokens):
        for e, w in zip(expected[t], shares[t]):
            gate, up, down = (values for _, values in blob[e])
            truth[t] += (act(gate @ y[t]) * (up @ y[t])) @ down.T * np.float32(w)
    scratch = torch.empty((used, width), device=DEVICE)
    for t in range(2):
        out = on(np.ones(hidden, np.float32))
        args = (chosen[t], weights[t], on(x[t]), on(norm), 1e-6, scratch)
        experts.run(mlp, *args, out, True)
        assert cases.error(back(out), truth[t] + 1) <= TOLERANCE["product"]
    room = torch.empty(2 * 3 * hidden * width, dtype=WIDE, device=DEVICE)
    got = experts.run_tokens(mlp, chosen, weights, on(y).to(WIDE), room)
    assert cases.error(back(got), truth) <= TOLERANCE["widened"]


@pytest.mark.parametrize("true_dim", [32, 48, 64, 96])
def test_heads(true_dim: int) -> None:
    n_heads, n_kv, tokens, position = 3, 1, 2, 5
    stored, half = -(-true_dim // 32) * 32, true_dim // 2
    rng = np.random.default_rng(true_dim)
    qkv = rng.standard_normal((tokens, (n_heads + 2 * n_kv) * true_dim)).astype(np.float32)
    angles = rng.standard_normal((tokens, stored // 2)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    norms = (np.linspace(0.5, 1, true_dim), np.linspace(1, 2, true_dim))
    norms = tuple(n.astype(np.float32) for n in norms)
    params = torch.tensor([0, position, 0, 0, 0, 0, 0, 0], dtype=torch.int32, device=DEVICE)
    half_type, width = torch.float16, heads.padded_width(stored)
    q = torch.zeros((tokens, n_heads, stored), dtype=half_type, device=DEVICE)
    keys, values = (torch.zeros((n_kv, 64, stored), dtype=half_type, device=DEVICE) for _ in "kv")
    codes = torch.zeros((n_kv, 64, width // 4), dtype=torch.uint8, device=DEVICE)
    scales = torch.zeros((n_kv, 64), dtype=half_type, device=DEVICE)
    turned = torch.zeros((n_heads, width), dtype=half_type, device=DEVICE)
    turn = heads.turn_matrix(stored, DEVICE)
    for n, out in ((tokens, None), (1, turned)):
        heads.prepare(
            on(qkv), tuple(map(on, norms)), on(cos), on(sin), params, turn, q, out,
            places.Rows(keys, values), (codes, scales), true_dim, 0.25, 1e-6, n,
        )  # fmt: skip
    rows = qkv.reshape(tokens, -1, true_dim)
    trig = (cos[:, None, :half], sin[:, None, :half])

    def spread(x: np.ndarray) -> np.ndarray:
        wide = np.zeros((*x.shape[:-1], stored), np.float32)
        wide[..., :half], wide[..., stored // 2 : stored // 2 + half] = x[..., :half], x[..., half:]
        return wide

    want_q = 0.25 * ref_rows.rope(ref_rows.rms_norm(rows[:, :n_heads], norms[0], 1e-6), *trig)
    want_k = ref_rows.rope(
        ref_rows.rms_norm(rows[:, n_heads : n_heads + n_kv], norms[1], 1e-6), *trig
    )
    assert cases.error(back(q), spread(want_q)) <= 1e-3
    got_k = back(keys)[:, position : position + tokens].transpose(1, 0, 2)
    assert cases.error(got_k, spread(want_k)) <= 1e-3
    got_v = back(values)[0, position : position + tokens, :true_dim]
    assert cases.error(got_v, rows[:, -1]) <= 1e-3
    assert cases.error(back(turned)[:, :stored], ref_sketch.rotate(spread(want_q[0]))) <= 1e-3
    want_codes, want_scales = ref_sketch.sketch_keys(spread(want_k)[:, 0])
    packed = codes[0, position : position + tokens].cpu().numpy()
    unpacked = np.concatenate([packed >> 2 * s & 3 for s in range(4)], 1)[:, :stored]
    assert np.array_equal(back(scales)[0, position : position + tokens], want_scales)
    assert np.mean(unpacked != want_codes) <= 0.02


def bank(k: np.ndarray, v: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """keys, values [G, capacity, D] of k, v [S, G, D]; what lies beyond them is NaN."""
    capacity = -(-len(k) // 64) * 64
    made = []
    for x in (k, v):
        wide = np.full((x.shape[1], capacity, x.shape[2]), np.nan, np.float16)
        wide[:, : len(x)] = x.transpose(1, 0, 2)
        made.append(on(wide))
    return made[0], made[1]


def limits(position: int, *counts: int) -> torch.Tensor:
    return torch.tensor([0, position, *counts, 0, 0, 0, 0, 0][:8], dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("case", cases.ATTENTION, ids=str)
def test_attention(case: cases.AttentionCase) -> None:
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, case.tokens)
    position = case.context - case.tokens
    visible = ref_attention.causal(position, case.tokens, case.window)
    expected = ref_attention.attend(q, k, v, visible)
    stored = bank(k, v)
    half = on(q).to(torch.float16)
    if case.tokens == 1:
        splits = attention.SplitBuffers(case.heads, case.kv_heads, case.head_dim, DEVICE)
        out = torch.empty((case.heads, case.head_dim), device=DEVICE)
        attention.attend(
            half, places.Rows(*stored), limits(position), splits, out, case.head_dim, case.window
        )
        assert cases.error(back(out)[None], expected) <= TOLERANCE["attend"]
    out = torch.empty((case.tokens, case.heads, case.head_dim), device=DEVICE)
    attention.attend_prompt(half, *stored, out, position, case.window)
    assert cases.error(back(out), expected) <= TOLERANCE["attend"]


def sketches(k: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The device layout of the reference's sketches of k [S, G, D]."""
    codes, scales = ref_sketch.sketch_keys(k)
    width = heads.padded_width(k.shape[2])
    wide = np.full((*codes.shape[:2], width), 2)
    wide[..., : codes.shape[2]] = codes
    parts = wide.reshape(*codes.shape[:2], 4, width // 4)
    packed = sum(parts[:, :, s] << 2 * s for s in range(4)).astype(np.uint8)
    return on(packed.transpose(1, 0, 2)), on(scales.T.astype(np.float16))


def overlap(got: tuple[int, ...], expected: tuple[int, ...]) -> float:
    return len(set(got) & set(expected)) / max(1, len(expected))


@pytest.mark.parametrize("share", [None, 0.0005, 0.003])
@pytest.mark.parametrize("case", cases.ROUTES, ids=str)
def test_routes(case: cases.RouteCase, share: float | None) -> None:
    """Groups by the reference's shares. Queries are float16 here and tables there: a group at the
    border may fall to either side."""
    k, _ = cases.keys_and_values(case)
    q = cases.queries(case, 1)[0]
    n_groups = -(-case.context // 8)
    part = ref_sketch.shares(ref_sketch.log_masses(q, k, 8, tables=False), case.kv_heads)
    least, bits = case.select, 0x7F000000
    if share is not None:
        least, bits = 1, int(np.float32(share).view(np.int32))
    expected = ref_sketch.select(
        part, case.sinks, case.window, least, case.select, 1.0 if share is None else share
    )
    turned = np.zeros((case.heads, heads.padded_width(case.head_dim)), np.float16)
    turned[:, : case.head_dim] = ref_sketch.rotate(q)
    buffers = routing.RouteBuffers(case.heads, case.kv_heads, case.context + 64, DEVICE)
    counts = torch.zeros(case.kv_heads, dtype=torch.int32, device=DEVICE)
    params = limits(case.context - 1, case.sinks, case.window, least, case.select, bits)
    routing.route(on(turned), sketches(k), params, buffers, counts, case.heads, n_groups)
    masses = back(buffers.masses)[:, :n_groups] * np.log(2)
    truth = ref_sketch.log_masses(q, k, 8, tables=False)
    assert cases.error(masses, truth) <= TOLERANCE["masses"]
    steps = back(buffers.pooled)[:, :n_groups].astype(np.int32)
    pooled = ((steps + 0x3F80 - routing.STEPS + 1) << 16).view(np.float32)
    assert cases.error(pooled, part.max(1)) <= TOLERANCE["masses"]
    for h in range(case.kv_heads):
        got = tuple(buffers.groups[h, : int(counts[h])].tolist())
        assert list(got) == sorted(set(got))
        assert set(range(case.sinks)) <= set(got)
        assert set(range(n_groups - case.window, n_groups)) <= set(got)
        assert overlap(got, expected[h]) >= 0.95
        if share is None:
            assert len(got) == len(expected[h])


@pytest.mark.parametrize("size", [16, 128])
def test_choice_is_exact_for_given_shares(size: int) -> None:
    """Ties, counts and limits as the reference has them, across tiles of the choice."""
    rng = np.random.default_rng(0)
    n, row = 77, 90
    shares = (rng.integers(1, 12, (2, n)) / 256).astype(np.float32)
    codes = (shares.view(np.int32) >> 16) - 0x3F80 + routing.STEPS - 1
    pooled = torch.zeros((2, row), dtype=torch.int16, device=DEVICE)
    pooled[:, :n] = on(codes.astype(np.int16))
    steps = np.stack([np.bincount(x[2 : n - 3], minlength=routing.STEPS) for x in codes])
    for least, most, share in ((9, 9, 9.0), (3, 40, 0.02), (30, 50, 0.045), (1, 7, 0.001)):
        groups = torch.zeros((2, row), dtype=torch.int32, device=DEVICE)
        counts = torch.zeros(2, dtype=torch.int32, device=DEVICE)
        bits = int(np.float32(share).view(np.int32))
        params = limits(8 * n - 1, 2, 3, least, most, bits)
        counted = on(steps.astype(np.int32))
        routing._choose[(2, -(-row // size))](
            pooled, counted, params, groups, counts, row, N=size, B=routing.STEPS
        )
        expected = ref_sketch.select(shares[:, None].astype(np.float64), 2, 3, least, most, share)
        got = tuple(tuple(groups[h, : int(counts[h])].tolist()) for h in range(2))
        assert got == expected


def test_attention_over_groups() -> None:
    case = cases.RouteCase(8, 2, 64, 700, 20)
    k, v = cases.keys_and_values(case)
    q = cases.queries(case, 1)
    rng = np.random.default_rng(3)
    lists = [[*np.sort(rng.choice(87, n, replace=False)).tolist(), 87] for n in (3, 41)]
    groups = np.zeros((2, 90), np.int32)
    visible = np.zeros((1, 8, 700), bool)
    for h, chosen in enumerate(lists):
        groups[h, : len(chosen)] = chosen
        for g in chosen:
            visible[:, 4 * h : 4 * h + 4, 8 * g : 8 * g + 8] = True
    expected = ref_attention.attend(q, k, v, visible)
    out = torch.empty((8, 64), device=DEVICE)
    counts = on(np.array([len(x) for x in lists], np.int32))
    attention.attend(
        on(q).to(torch.float16), places.Rows(*bank(k, v)), limits(699),
        attention.SplitBuffers(8, 2, 64, DEVICE), out, 64, 0, on(groups), counts,
    )  # fmt: skip
    assert cases.error(back(out)[None], expected) <= TOLERANCE["attend"]


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
    rows = places.Rows(*bank(*cases.keys_and_values(case)))
    cells, keep = cells_of(rows)
    q = on(cases.queries(case, 1)).to(torch.float16)
    groups = on(np.tile(np.array([0, 2, 5, 12], np.int32), (2, 1)))
    lists = (None, None) if window else (groups, on(np.full(2, 4, np.int32)))
    found = []
    for at in (rows, cells):
        out, splits = torch.empty((4, 32), device=DEVICE), attention.SplitBuffers(4, 2, 32, DEVICE)
        attention.attend(q, at, limits(99), splits, out, 32, window, *lists)
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
            on(qkv), None, on(np.cos(angle)), on(np.sin(angle)), limits(position), turn, q, None,
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
    params = torch.tensor([0, 0, 0, 0, 0, 0, 0, 9], dtype=torch.int32, device=DEVICE)
    counts = on(np.array([1500, 3], np.int32))
    places.find_missing(on(groups), counts, params, places.Cells(on(table), 32), used, found)
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
    here = sketches(k)
    found = sketch_store.to_disk(*here, head_dim)
    data = found.cpu().numpy()
    words = data[:, : 32 * head_dim].copy().view(np.uint32).reshape(2, 8, head_dim // 16, 16)
    for h, t, dim in np.ndindex(2, 128, head_dim):
        word = int(words[h, t % 8, dim // 16, t // 8])
        assert word >> (8 * (dim % 4) + 2 * (dim % 16 // 4)) & 3 == codes[t, h, dim]
    for h, t in np.ndindex(2, 128):
        code = int(data[h, 32 * head_dim + 16 * (t % 8) + t // 8])
        value = (1 + code % 16 / 16) * 2.0 ** (code // 16 - 8) if code else 0
        assert value == sizes[t, h]
    assert data.shape[1] == sketch_store.disk_bytes(head_dim)
    for mine, theirs in zip(sketch_store.from_disk(found, head_dim), here):
        assert torch.equal(mine, theirs)
