"""CPU kernels called from Python: arrays in, arrays out. Reached through the fixture `cpu`.

Kernels take addresses and are inlined into the forward kernel; each one under test gets a compiled
entry point of its own here, kept in the cache folder of kernels.
"""

import numpy as np
from numba import carray, cfunc, njit, types

from hga.kernels.cpu import attention as att
from hga.kernels.cpu import elementwise as ew
from hga.kernels.cpu import routing, simd, simd_bytes, simd_half, sketch, tiles
from hga.kernels.cpu.sync import as_pointer, atomic_add, atomic_load, atomic_store, barrier
from hga.kernels.formats import FORMATS

JIT = {"nogil": True, "error_model": "numpy", "cache": True}
CANARY = np.float32(12345.0)


def at(array):
    """Address of the first element; the caller keeps the array alive."""
    assert array.flags.c_contiguous
    return array.ctypes.data


# --- products ------------------------------------------------------------------------------------


@njit(**JIT)
def _product(code, w, step, n_cols, xf, xq, xs, xsum, n, g0, g1, out, out_row):
    tiles.product(code, w, step, n_cols, xf, xq, xs, xsum, n, g0, g1, out, out_row)


def product(name, packed, n_rows, x, quantized, groups=None):
    """float32 [T, rows rounded up to 16] of a packed matrix; `groups` limits the row groups.

    quantized: codes, scales and sums of x. Groups that were not asked for hold CANARY.
    """
    n_groups, (n_tokens, n_cols) = -(-n_rows // 16), x.shape
    first, last = groups or (0, n_groups)
    out = np.full((n_tokens + 1, 16 * n_groups), CANARY, np.float32)
    _product(
        FORMATS[name].code,
        at(packed),
        FORMATS[name].group_bytes(n_cols),
        n_cols,
        at(x),
        *map(at, quantized),
        n_tokens,
        first,
        last,
        at(out),
        64 * n_groups,
    )
    assert (out[-1] == CANARY).all(), "written past the last token"
    return out[:-1]


@njit(**JIT)
def _dot_u8i8(acc, u, s, out):
    simd.store_i32(out, simd_bytes.dot_u8i8(simd.load_i32(acc), simd.load_u8(u), simd.load_i32(s)))


def dot_u8i8(acc, u, s):
    """int32 [16] of int32 [16], uint8 [64] and int8 [64]."""
    out = np.zeros(16, np.int32)
    _dot_u8i8(at(acc), at(u), at(s), at(out))
    return out


# --- rows ----------------------------------------------------------------------------------------


@njit(**JIT)
def _rms_norm(x, weight, n, eps, out):
    ew.rms_norm(x, weight, n, eps, out)


def rms_norm(x, weight, eps):
    out = np.full_like(x, CANARY)
    _rms_norm(at(x), at(weight), len(x), eps, at(out))
    return out


@njit(**JIT)
def _add_into(x, y, n):
    ew.add_into(x, y, n)


def add_into(x, y):
    out = np.append(x, np.full(16, CANARY))
    _add_into(at(out), at(y), len(x))
    assert (out[len(x) :] == CANARY).all(), "written past the end"
    return out[: len(x)]


@njit(**JIT)
def _add_scaled(x, y, factor, n):
    ew.add_scaled(x, y, factor, n)


def add_scaled(x, y, factor):
    out = x.copy()
    _add_scaled(at(out), at(y), np.float32(factor), len(x))
    return out


@njit(**JIT)
def _gated(gate, up, activation, n, out):
    ew.gated(gate, up, activation, n, out)


def gated(gate, up, activation):
    out = np.full_like(gate, CANARY)
    _gated(
        at(gate), at(up), {"silu": ew.SILU, "gelu_tanh": ew.GELU_TANH}[activation], len(up), at(out)
    )
    return out


@njit(**JIT)
def _quantize(x, n, xq, xs, xsum):
    ew.quantize(x, n, xq, xs, xsum)


def quantize(x):
    """Codes int8 [n], scales float32 [n / 32], sums int32 [n / 16]."""
    n = len(x)
    codes, scales, sums = (
        np.zeros(n, np.int8),
        np.zeros(n // 32, np.float32),
        np.zeros(n // 16, np.int32),
    )
    _quantize(at(x), n, at(codes), at(scales), at(sums))
    return codes, scales, sums


@njit(**JIT)
def _rope(x, cos, sin, head_dim, scale):
    ew.rope(x, cos, sin, head_dim, scale)


def rope(x, cos, sin, scale):
    out = np.append(x, np.full(16, CANARY))
    _rope(at(out), at(cos), at(sin), len(x), float(scale))
    assert (out[len(x) :] == CANARY).all(), "written past the head"
    return out[: len(x)]


@njit(**JIT)
def _spread_head(x, weight, n, eps, head_dim, out):
    ew.spread_head(x, weight, n, eps, head_dim, out)


def spread_head(x, weight, eps, head_dim):
    out = np.full(head_dim + 16, CANARY, np.float32)
    _spread_head(at(x), 0 if weight is None else at(weight), len(x), eps, head_dim, at(out))
    assert (out[head_dim:] == CANARY).all(), "written past the head"
    return out[:head_dim]


@njit(**JIT)
def _widen_head(x, n, head_dim, out):
    ew.widen_head(x, n, head_dim, out)


def widen_head(x, head_dim):
    out = np.full(head_dim + 16, CANARY, np.float32)
    _widen_head(at(x), len(x), head_dim, at(out))
    assert (out[head_dim:] == CANARY).all(), "written past the head"
    return out[:head_dim]


@njit(**JIT)
def _top_experts(logits, n_experts, n_used, norm_topk, chosen, weights):
    ew.top_experts(logits, n_experts, n_used, norm_topk, chosen, weights)


def top_experts(logits, n_used, norm_topk):
    chosen, weights = np.zeros(n_used, np.int32), np.zeros(n_used, np.float32)
    logits = logits.copy()
    _top_experts(at(logits), len(logits), n_used, int(norm_topk), at(chosen), at(weights))
    return chosen, weights


@njit(**JIT)
def _embedding_row(code, w, step, n_cols, row, scale, out):
    ew.embedding_row(code, w, step, n_cols, row, scale, out)


def embedding_row(name, packed, n_cols, row, scale):
    out = np.full(n_cols + 16, CANARY, np.float32)
    step = FORMATS[name].group_bytes(n_cols)
    _embedding_row(FORMATS[name].code, at(packed), step, n_cols, row, float(scale), at(out))
    assert (out[n_cols:] == CANARY).all(), "written past the row"
    return out[:n_cols]


# --- conversions ---------------------------------------------------------------------------------


@njit(**JIT)
def _load_f16(source, n, out, scalar):
    for i in range(0, n, 16):
        simd.store_f32(out + 4 * i, simd_half.load_f16(source + 2 * i))
    for i in range(n):
        simd.store_scalar_f32(scalar + 4 * i, simd_half.load_scalar_f16(source + 2 * i))


def load_f16(halves):
    """float32 by the vector load and by the scalar load."""
    out = np.zeros((2, len(halves)), np.float32)
    _load_f16(at(halves), len(halves), at(out[0]), at(out[1]))
    return out[0], out[1]


@njit(**JIT)
def _store_f16(source, n, out, scalar):
    for i in range(0, n, 16):
        simd_half.store_f16(out + 2 * i, simd.load_f32(source + 4 * i))
    for i in range(n):
        simd_half.store_scalar_f16(scalar + 2 * i, simd.load_scalar_f32(source + 4 * i))


def store_f16(values):
    """float16 by the vector store and by the scalar store."""
    out = np.zeros((2, len(values)), np.float16)
    _store_f16(at(values), len(values), at(out[0]), at(out[1]))
    return out[0], out[1]


@njit(**JIT)
def _load_bf16(source, n, low, high, scalar):
    for i in range(0, n // 2, 16):
        pairs = simd.load_i32(source + 4 * i)
        simd.store_f32(low + 4 * i, simd_half.low_bf16(pairs))
        simd.store_f32(high + 4 * i, simd_half.high_bf16(pairs))
    for i in range(n):
        simd.store_scalar_f32(scalar + 4 * i, simd_half.load_scalar_bf16(source + 2 * i))


def load_bf16(words):
    """float32 [n / 2] of the even and of the odd elements, and float32 [n] by the scalar load."""
    out = np.zeros((2, len(words) // 2), np.float32)
    scalar = np.zeros(len(words), np.float32)
    _load_bf16(at(words), len(words), at(out[0]), at(out[1]), at(scalar))
    return out[0], out[1], scalar


@njit(**JIT)
def _load_e4m3(source, n, out):
    unit = simd.splat_f32(np.float32(simd_half.E4M3_UNIT))
    for i in range(0, n, 16):
        simd.store_f32(out + 4 * i, simd.mul(simd_half.load_e4m3(source + i), unit))


def load_e4m3(codes):
    out = np.zeros(len(codes), np.float32)
    _load_e4m3(at(codes), len(codes), at(out))
    return out


@njit(**JIT)
def _exp(x, n, out):
    for i in range(0, n, 16):
        simd.store_f32(out + 4 * i, simd.exp(simd.load_f32(x + 4 * i)))


def exp(x):
    out = np.zeros_like(x)
    _exp(at(x), len(x), at(out))
    return out


# --- attention ------------------------------------------------------------------------------------


@njit(**JIT)
def _append(pages, position, head, head_dim, k, v):
    att.append(pages, position, head, head_dim, k, v)


class Pages:
    """The pages of one layer in memory that starts as NaN; k, v float32 [S, G, D]."""

    def __init__(self, k, v, extra_chunks=1):
        self.n_tokens, self.kv_heads, self.head_dim = k.shape
        n_chunks = -(-self.n_tokens // 64) + extra_chunks
        halves = self.kv_heads * 4 * 32 * self.head_dim
        self.memory = np.full((n_chunks, halves), np.nan, np.float16)
        # In no order that addresses would reveal.
        order = np.random.default_rng(0).permutation(n_chunks)
        self.memory_of = self.memory[order]
        self.table = self.memory.ctypes.data + order.astype(np.int64) * self.memory.strides[0]
        for position in range(self.n_tokens):
            for head in range(self.kv_heads):
                self.append(position, head, k[position, head], v[position, head])

    @property
    def address(self):
        return at(self.table)

    def append(self, position, head, k, v):
        k, v = np.ascontiguousarray(k), np.ascontiguousarray(v)
        _append(self.address, position, head, self.head_dim, at(k), at(v))

    def record(self, group, head):
        """Keys [D, 16] and values [16, D] of a group, read where docs/format.md puts them."""
        page = self.memory[(self.table[group // 4] - at(self.memory)) // self.memory.strides[0]]
        record = page.reshape(self.kv_heads, 4, 2, -1)[head, group % 4]
        return record[0].reshape(self.head_dim, 16), record[1].reshape(16, self.head_dim)


@njit(**JIT)
def _attend_span(pages, groups, first, n, head, d, q, low, high, scores, partial, row):
    att.attend_span(
        pages, groups, first, n, head, d,
        q[0], q[1], q[2], q[3],
        low[0], low[1], low[2], low[3],
        high[0], high[1], high[2], high[3],
        scores, partial, row,
    )  # fmt: skip


def attend_span(pages, head, q, low, high, first, n_groups, groups=None):
    """Partials float32 [4, 16 + D] of four rows q [4, D] over groups first..first + n_groups."""
    d = pages.head_dim
    scores = np.full((4, att.SPAN_TOKENS), np.nan, np.float32)
    partial = np.full((4, att.PARTIAL_HEAD + d), np.nan, np.float32)
    rows = tuple(at(row) for row in q)
    picked = 0 if groups is None else at(groups)
    limits = tuple(int(i) for i in low), tuple(int(i) for i in high)
    _attend_span(
        pages.address, picked, first, n_groups, head, d, rows, *limits,
        at(scores), at(partial), partial.strides[0],
    )  # fmt: skip
    return partial


@njit(**JIT)
def _merge(total, partial, head_dim):
    att.merge(total, partial, head_dim)


@njit(**JIT)
def _clear_partial(total, head_dim):
    att.clear_partial(total, head_dim)


@njit(**JIT)
def _finish(total, head_dim, out):
    att.finish(total, head_dim, out)


def neutral(head_dim):
    total = np.zeros(att.PARTIAL_HEAD + head_dim, np.float32)
    _clear_partial(at(total), head_dim)
    return total


def merge(partials):
    """One partial of several, folded in the order given into the neutral element."""
    head_dim = len(partials[0]) - att.PARTIAL_HEAD
    total = neutral(head_dim)
    for partial in partials:
        _merge(at(total), at(partial), head_dim)
    return total


def finish(total):
    head_dim = len(total) - att.PARTIAL_HEAD
    out = np.zeros(head_dim, np.float32)
    _finish(at(total), head_dim, at(out))
    return out


# --- sketches and routing -------------------------------------------------------------------------


@njit(**JIT)
def _log(x, n, out):
    for i in range(0, n, 16):
        simd.store_f32(out + 4 * i, simd.log(simd.load_f32(x + 4 * i)))


def log(x):
    out = np.zeros_like(x)
    _log(at(x), len(x), at(out))
    return out


@njit(**JIT)
def _rotate(x, head_dim, out):
    sketch.rotate(x, head_dim, out)


def rotate(x):
    out = np.full(len(x) + 16, CANARY, np.float32)
    _rotate(at(x), len(x), at(out))
    assert (out[len(x) :] == CANARY).all(), "written past the head"
    return out[: len(x)]


@njit(**JIT)
def _write_key(block, token, y, head_dim):
    sketch.write_key(block, token, y, head_dim)


def sketch_bytes(head_dim):
    return 4 * head_dim + 32


def sketch_keys(k):
    """uint8 [G, groups, block bytes] of keys [S, G, D], 0xFF where nothing was written; groups
    are rounded up to 16."""
    n_tokens, n_heads, d = k.shape
    blocks = np.full((n_heads, -(-n_tokens // 256) * 16, sketch_bytes(d)), 255, np.uint8)
    for head in range(n_heads):
        for token in range(n_tokens):
            y = rotate(np.ascontiguousarray(k[token, head]))
            _write_key(at(blocks[head, token // 16]), token % 16, at(y), d)
    return blocks


@njit(**JIT)
def _write_query(y, head_dim, out):
    sketch.write_query(y, head_dim, out)


def sketch_queries(q):
    """uint8 [H, D + 64] of queries [H, D]: codes, then scale and 1.5 times the sum of codes."""
    out = np.full((len(q), q.shape[1] + 64), 255, np.uint8)
    for row, x in zip(out, q, strict=True):
        y = rotate(np.ascontiguousarray(x))
        _write_query(at(y), len(y), at(row))
    assert (out[:, q.shape[1] + 8 :] == 255).all(), "written past the query"
    return out


@njit(**JIT)
def _score_groups(blocks, first, n_tokens, d, q, q_step, n_rows, out, out_row, spare):
    sketch.score_groups(blocks, first, n_tokens, d, q, q_step, n_rows, out, out_row, spare)


def log_masses(blocks, n_tokens, queries):
    """float32 [rows, groups] of the blocks [groups, bytes] of one KV head and its queries."""
    n_rows, d = len(queries), queries.shape[1] - 64
    out = np.full((n_rows + 1, len(blocks)), CANARY, np.float32)
    spare = np.full(129, CANARY, np.float32)
    for first in range(0, len(blocks), 16):
        _score_groups(
            at(blocks), first, n_tokens, d, at(queries), queries.strides[0], n_rows,
            at(out), out.strides[0], at(spare),
        )  # fmt: skip
    assert (out[-1] == CANARY).all() and spare[-1] == CANARY, "written past the end"
    return out[:-1]


@njit(**JIT)
def _pool_shares(scores, row_bytes, n_rows, n_groups, pooled):
    routing.pool_shares(scores, row_bytes, n_rows, n_groups, pooled)


def pool_shares(masses, n_groups):
    """float32 [groups] of log masses [rows, groups rounded up to 16]."""
    scores, pooled = masses.copy(), np.full(masses.shape[1] + 1, CANARY, np.float32)
    _pool_shares(at(scores), scores.strides[0], len(scores), n_groups, at(pooled))
    assert pooled[-1] == CANARY, "written past the end"
    return pooled[:n_groups]


@njit(**JIT)
def _select_groups(pooled, spare, first, last, n_select, n_groups, out):
    return routing.select_groups(pooled, spare, first, last, n_select, n_groups, out)


def select_groups(pooled, first, last, n_select):
    """The groups read, of shares [groups]."""
    n_groups = len(pooled)
    out = np.full(n_groups + 1, -1, np.int32)
    spare = np.zeros_like(pooled)
    count = _select_groups(pooled, spare, first, last, n_select, n_groups, at(out))
    assert (out[count:] == -1).all(), "written past the count"
    return tuple(int(g) for g in out[:count])


# --- threads -------------------------------------------------------------------------------------


@cfunc(types.void(types.int64, types.int64, types.int64), cache=True)
def meet(thread, n, params):
    """Two barriers: every thread writes its slot, then checks everybody's.

    params: int64 [barrier counter, value, kernels done, errors, slots…].
    """
    p = carray(as_pointer(params), 4, np.int64)
    phase = barrier(params, n, 1)
    atomic_store(params + 32 + 8 * thread, p[1])
    phase = barrier(params, n, phase)
    for i in range(n):
        if atomic_load(params + 32 + 8 * i) != p[1]:
            atomic_add(params + 24, 1)
    if thread == 0:
        atomic_add(params + 16, 1)
    barrier(params, n, phase)
