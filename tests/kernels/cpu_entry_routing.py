"""The kernels that route, called from Python as those of cpu_entry.py are; same fixture."""

import numpy as np
from cpu_entry import CANARY, fill, run
from numba import njit

from hga.kernels.cpu import routing, simd, sketch, target

BYTE_TABLES = target.has_byte_tables()


def rotate(x):
    return fill(sketch.rotate, len(x), np.ascontiguousarray(x), len(x))


def sketch_keys(k, bits=2):
    """uint8 [G, blocks, block bytes] of keys [S, G, D], 0xFF where nothing was written."""
    n_tokens, n_heads, d = k.shape
    blocks = np.full((n_heads, -(-n_tokens // 128), 16 * d * bits + 128), 255, np.uint8)
    for head in range(n_heads):
        for token in range(n_tokens):
            block, y = blocks[head, token // 128], rotate(k[token, head])
            run(sketch.write_key, block, token % 128, y, d, bits)
    return blocks


def sketch_queries(q, bits=2):
    """uint8 [H, query_bytes + 64] of queries [H, D]; a cache line beyond stays as it was."""
    size = sketch.query_bytes(q.shape[1])
    out = np.full((len(q), size + 64), 255, np.uint8)
    for row, x in zip(out, q, strict=True):
        run(sketch.write_query, rotate(x), len(x), bits, row)
    assert (out[:, size:] == 255).all(), "written past the query"
    return out


def log_masses(blocks, n_tokens, queries, bits=2):
    """float32 [rows, groups] of the blocks [blocks, bytes] of one KV head and its queries."""
    n_rows, d = len(queries), (queries.shape[1] - 128) // 8
    out = np.full((n_rows + 1, 16 * len(blocks)), CANARY, np.float32)
    spare = np.full(1025, CANARY, np.float32)
    for b, block in enumerate(blocks):
        head = (block, n_tokens - 128 * b, d, bits, queries, queries.strides[0], n_rows)
        run(sketch.score_block, *head, out[:, 16 * b :].ctypes.data, out.strides[0], spare)
    assert (out[-1] == CANARY).all() and spare[-1] == CANARY, "written past the end"
    return out[:-1]


@njit
def _estimates(block, bits, d, queries, step, n_rows, out):
    row = sketch.row_bytes(d, bits)
    for r in range(n_rows):
        q = queries + step * r
        for i in range(8):
            sketch.estimate4(block, i, row, bits, (q, q, q, q), out + 64 * i)
        unit = simd.load_scalar_f32(q)
        for i in range(0, 512, 64):
            x = simd.mul(simd.load_f32(out + i), simd.splat_f32(unit))
            simd.store_f32(out + i, x)
        out += 512


def estimates(block, queries, bits=2):
    """Estimated products float32 [rows, 128] of a block's keys with queries."""
    n_rows, d = len(queries), (queries.shape[1] - 128) // 8
    out = np.empty((n_rows + 4, 8, 16), np.float32)
    run(_estimates, block, bits, d, queries, queries.strides[0], n_rows, out)
    return out[:n_rows].transpose(0, 2, 1).reshape(n_rows, 128)


@njit
def _masses(estimates, unit, near, out):
    if near:
        simd.store_f32(out, sketch.log_mass_near(estimates, unit))
    else:
        simd.store_f32(out, sketch.log_mass(estimates, unit))


def log_mass(estimates, unit):
    """float32 [16] of estimates [8, 16] in units."""
    return fill(_masses, 16, estimates, np.float32(unit), False)


def log_mass_near(estimates, unit):
    """The same, of estimates that are near."""
    return fill(_masses, 16, estimates, np.float32(unit), True)


def pool_shares(masses, n_groups):
    """Largest shares float32 [groups] of log masses [rows, groups rounded up to 16]."""
    head = (masses.copy(), masses.strides[0], len(masses), n_groups)
    return fill(routing.pool_shares, masses.shape[1], *head)[:n_groups]


def _padded(shares):
    out = np.full(-(-len(shares) // 16) * 16 + 16, CANARY, np.float32)
    out[: len(shares)] = shares
    return out


def select_groups(shares, first, last, least, most, limit=1.0):
    """The groups read, of shares [groups]."""
    padded, out = _padded(shares), np.full(len(shares) + 1, -1, np.int32)
    where = (first, last, len(shares), least, most, np.float32(limit))
    count = run(routing.select_groups, padded, *where, out)
    assert (out[count:] == -1).all(), "written past the count"
    assert (padded[-16:] == CANARY).all(), "written past the groups"
    return tuple(int(g) for g in out[:count])
