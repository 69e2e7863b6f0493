"""Experts that lie on disk: which slots of memory hold them, and fetching more.

An expert's entry in the table is its slot, or 0. `plan_wave` gives the next experts of a layer
their slots, as many as the cache holds at a time, and asks the reader for those that are missing,
all at once; a kernel computes them as they land (`landing`). The slot to give away is that of the
lowest score: every use adds exp(time), so that scores compare as sums of uses that decay. Slots of
the waves at hand are never given away, those of earlier tokens of a prompt in this layer only if
there are no others. Which experts are resident changes no result.
"""

import math
from typing import Any

import numpy as np
from numba import carray, njit

from . import elementwise as ew
from .io_queue import kick, promote, push, withdraw
from .io_slots import BLOB, CLOCK, CLOCK_ID, HINT, MORE, get
from .io_worker import PENDING, READ, help_once
from .layer_mlp import matmul
from .params import EXPERTS
from .simd import load_scalar_i32, load_scalar_i64, store_scalar_i64
from .sync import as_pointer, atomic_load, yield_thread
from .system_calls import now_ns

JIT = {"nogil": True, "error_model": "numpy"}

# Counters of a layer: uses of an expert that was there, that a hint had asked for, that was read;
# hints pushed; uses foretold, uses that a guess was made about; hints dropped in time; foreseen
# ones that had been read by then.
HITS, FORESEEN, READS, HINTS, FORETOLD, GUESSED, WITHDRAWN, LANDED = range(8)
COUNTERS = 8
# Every table is read and written by thread 0 alone, but addresses, landings and ends.
_NONE = -1e300


@njit(**JIT)
def open_cache(layer: Any) -> Any:
    """The EXPERTS record of a layer whose experts lie on disk."""
    return carray(as_pointer(layer.cache), 1, EXPERTS)[0]


@njit(**JIT)
def _scores(r: Any) -> Any:
    """The scores by expert, float64; as long as an index asks for."""
    return carray(as_pointer(r.scores), 1, np.float64)


@njit(**JIT)
def count(r: Any, layer: Any, which: Any, amount: Any) -> None:
    """Add to a counter of a layer."""
    at = r.counters + 8 * (COUNTERS * layer.layer_number + which)
    store_scalar_i64(at, load_scalar_i64(at) + amount)


@njit(**JIT)
def _note_use(r: Any, expert: Any, n_tokens: Any) -> None:
    scores = _scores(r)
    old, new = scores[expert], r.time + math.log(r.weight * n_tokens)
    most = max(old, new)
    scores[expert] = most + math.log1p(math.exp(min(old, new) - most))


@njit(**JIT)
def _free_slot(r: Any) -> Any:
    """Empty the slot of the lowest score; -1 if all are in use or being read."""
    best, lowest = np.int64(-1), np.inf
    scores = _scores(r)
    for slot in range(r.n_slots):
        stamp, owner = load_scalar_i64(r.stamps + 8 * slot), load_scalar_i64(r.owners + 8 * slot)
        if owner < 0:
            return slot
        if stamp >= r.in_use or atomic_load(r.tickets + 8 * slot) == PENDING:
            continue
        score = scores[owner]
        if stamp >= r.kept:
            score += 1e200
        if score < lowest:
            best, lowest = np.int64(slot), score
    if best >= 0:
        store_scalar_i64(r.table + 8 * load_scalar_i64(r.owners + 8 * best), 0)
        store_scalar_i64(r.owners + 8 * best, -1)
    return best


@njit(**JIT)
def _ask(r: Any, queue: Any, layer: Any, expert: Any, slot: Any, flags: Any) -> Any:
    place = r.places + 16 * expert
    return push(
        queue,
        r.file,
        load_scalar_i64(place),
        (layer.blob_bytes + 4095) & ~4095,
        r.slots + r.slot_bytes * slot,
        r.tickets + 8 * slot,
        BLOB | MORE | flags,
        0,
        load_scalar_i64(place + 8),
        layer.blob_bytes,
    )


@njit(**JIT)
def _own(r: Any, expert: Any, slot: Any) -> None:
    store_scalar_i64(r.owners + 8 * slot, expert)
    store_scalar_i64(r.table + 8 * expert, slot + 1)
    store_scalar_i64(r.stamps + 8 * slot, r.wave)


@njit(**JIT)
def _is_active(c: Any, expert: Any) -> Any:
    return load_scalar_i32(c.starts + 4 * expert + 4) > load_scalar_i32(c.starts + 4 * expert)


@njit(**JIT)
def settle_hints(c: Any, layer: Any, r: Any, queue: Any) -> None:
    """Make hints that came true demands, and drop the others if nobody has begun to read them."""
    first = layer.layer_number * r.n_experts
    right = 0
    if r.n_expected > 0 and r.expected_layer == layer.layer_number:
        for i in range(r.n_expected):
            right += _is_active(c, np.int64(load_scalar_i32(r.expected + 4 * i)))
        count(r, layer, FORETOLD, right)
        count(r, layer, GUESSED, r.n_expected)
    for i in range(r.n_hinted):
        slot = load_scalar_i64(r.hinted + 8 * i)
        owner = load_scalar_i64(r.owners + 8 * slot)
        ticket = r.tickets + 8 * slot
        if first <= owner < first + r.n_experts and _is_active(c, owner - first):
            if atomic_load(ticket) == READ:
                count(r, layer, LANDED, 1)
            else:
                promote(queue, ticket)
            # Not a hit: it was read for this use.
            count(r, layer, FORESEEN, 1)
            count(r, layer, HITS, -1)
        elif withdraw(queue, ticket):
            store_scalar_i64(r.table + 8 * owner, 0)
            store_scalar_i64(r.owners + 8 * slot, -1)
            count(r, layer, WITHDRAWN, 1)
    r.n_hinted, r.n_expected = 0, 0


@njit(**JIT)
def _point(c: Any, layer: Any, r: Any, expert: Any, slot: Any) -> None:
    """Tell the other threads where an expert of the layer is."""
    at, base = r.addresses + 24 * expert, r.slots + r.slot_bytes * slot
    store_scalar_i64(at, base + layer.gate_at)
    store_scalar_i64(at + 8, base + layer.up_at)
    store_scalar_i64(at + 16, base + layer.down_at)
    store_scalar_i64(r.landings + 8 * expert, r.tickets + 8 * slot)


@njit(**JIT)
def plan_wave(c: Any, layer: Any, r: Any, queue: Any, first: Any) -> Any:
    """Give slots to the chosen experts from `first` on and read what is missing; where this wave
    ends, n_experts if it takes them all."""
    r.wave += 1
    base, n_experts = layer.layer_number * r.n_experts, layer.n_experts
    if first == 0:
        settle_hints(c, layer, r, queue)
        if r.last_layer != layer.layer_number:
            r.kept = r.wave
        r.last_layer = layer.layer_number
    n_active = 0
    for e in range(first, n_experts):
        n_active += _is_active(c, e)
    # Two waves at a time, one computed and one read; a single one where it has room.
    most, r.in_use = max(1, r.n_slots // 2), r.wave
    if first > 0 and r.n_slots > 1:
        r.in_use = r.wave - 1
    elif first == 0 and n_active <= r.n_slots:
        most = n_active
    taken, end = 0, first
    for e in range(first, n_experts):
        if _is_active(c, e):
            if taken == most:
                break
            taken += 1
            n_tokens = load_scalar_i32(c.starts + 4 * e + 4) - load_scalar_i32(c.starts + 4 * e)
            _note_use(r, base + e, n_tokens)
            held = load_scalar_i64(r.table + 8 * (base + e))
            if held != 0:
                store_scalar_i64(r.stamps + 8 * (held - 1), r.wave)
        end = e + 1
    for e in range(first, end):
        if _is_active(c, e):
            _place(c, layer, r, queue, base, e)
    kick(queue)
    return end


@njit(**JIT)
def _place(c: Any, layer: Any, r: Any, queue: Any, base: Any, e: Any) -> None:
    """Find an expert of a wave its slot, and read it if it is not there."""
    slot = load_scalar_i64(r.table + 8 * (base + e)) - 1
    if slot >= 0:
        count(r, layer, HITS, 1)
        # A hint whose read failed is asked for again.
        if atomic_load(r.tickets + 8 * slot) < 0:
            _ask(r, queue, layer, base + e, slot, 0)
    else:
        slot = _free_slot(r)
        while slot < 0:
            # All others are hints that are being read: few, and soon there.
            if not help_once(queue, 0, 1):
                yield_thread()
            slot = _free_slot(r)
        _own(r, base + e, slot)
        _ask(r, queue, layer, base + e, slot, 0)
        count(r, layer, READS, 1)
    _point(c, layer, r, e, slot)


@njit(**JIT)
def landing(r: Any, expert: Any) -> Any:
    """Address of the ticket of an expert of the wave."""
    return load_scalar_i64(r.landings + 8 * expert)


@njit(**JIT)
def clock_ns(queue: Any) -> Any:
    """Nanoseconds of the queue's clock."""
    return now_ns(get(queue + CLOCK), get(queue + CLOCK_ID))


@njit(**JIT)
def note_failures(c: Any, r: Any, first: Any, end: Any) -> None:
    """Keep what a read of experts first..end of the layer failed by, if one did."""
    for e in range(first, end):
        if _is_active(c, e):
            ticket = atomic_load(landing(r, e))
            if ticket != READ:
                r.problem = ticket


@njit(**JIT)
def guess_next(c: Any, layer: Any, following: Any, r: Any, queue: Any) -> None:
    """Ask for the experts that the next layer's router would choose for the state of this one's
    MLP, as hints."""
    x, k = r.guess, c.hidden
    ew.rms_norm(c.residual, following.mlp_norm, k, c.eps, x.values)
    ew.quantize(x.values, k, x.codes, x.scales, x.sums)
    # One token, one thread; no literals, for which Numba would compile every product once more.
    one, thread = np.int64(1), np.int64(0)
    matmul(following.router, x, one, r.guess_logits, thread, one)
    n_used = following.n_used
    ew.top_experts(r.guess_logits, following.n_experts, n_used, 0, r.expected, r.guess_weights)
    r.n_expected, r.expected_layer = n_used, following.layer_number
    base, asked = following.layer_number * r.n_experts, 0
    for i in range(min(n_used, r.hints)):
        expert = base + load_scalar_i32(r.expected + 4 * i)
        if load_scalar_i64(r.table + 8 * expert) != 0:
            continue
        slot = _free_slot(r)
        if slot < 0 or not _ask(r, queue, following, expert, slot, HINT):
            break
        _own(r, expert, slot)
        store_scalar_i64(r.hinted + 8 * asked, slot)
        asked += 1
    r.n_hinted = asked
    count(r, following, HINTS, asked)
    if asked > 0:
        kick(queue)
