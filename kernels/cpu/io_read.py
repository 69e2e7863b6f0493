"""Reads of a run of requests: one preadv, what can go wrong with it, and the sums of its cells."""

import errno
from typing import Any

import numpy as np
from numba import njit

from .blob_sum import blob_sum
from .checksum import cell_sum
from .io_slots import (
    BLOB,
    BUFFERED,
    BUSY_NS,
    CLOCK,
    CLOCK_ID,
    DEST,
    DIRECT,
    DIRECT_REFUSED,
    ERRNO,
    FLAGS,
    MAX_RUN,
    MEMORY_ALIGN,
    OFFSET,
    OFFSET_ALIGN,
    PREADV,
    READS,
    SEED,
    SIZE,
    STATUS,
    SUM,
    VERIFY,
    WRONG_SUMS,
    file_of,
    get,
    put,
)
from .sync import atomic_add, yield_thread
from .system_calls import JIT, call_errno, call_preadv, now_ns, stack

# What a ticket says besides -errno.
WRONG_SUM, SHORT_FILE = -10001, -10002

_EINTR, _EAGAIN, _EINVAL, _EIO = errno.EINTR, errno.EAGAIN, errno.EINVAL, errno.EIO
_ENOTSUP = errno.ENOTSUP
_MOST_RETRIES = 1000

_vectors = stack(16 * MAX_RUN)


@njit(**JIT)
def direct_descriptor(run: int, n: int, file: int) -> Any:
    """The file's descriptor with O_DIRECT, or -1 where it has none or a request is not aligned."""
    direct = get(file + DIRECT)
    if direct < 0:
        return -1
    offset_mask, memory_mask = get(file + OFFSET_ALIGN) - 1, get(file + MEMORY_ALIGN) - 1
    bits = get(get(run) + OFFSET) & offset_mask
    for i in range(n):
        slot = get(run + 8 * i)
        bits |= get(slot + SIZE) & (offset_mask | memory_mask)
        bits |= get(slot + DEST) & memory_mask
    return direct if bits == 0 else -1


@njit(**JIT)
def _fill_vectors(run: int, n: int, position: int, vectors: int) -> int:
    """Write the iovecs of what a run still lacks after `position` bytes; returns how many."""
    n_vectors, start = 0, 0
    for i in range(n):
        slot = get(run + 8 * i)
        end = start + get(slot + SIZE)
        if end > position:
            skip = max(position - start, 0)
            put(vectors + 16 * n_vectors, get(slot + DEST) + skip)
            put(vectors + 16 * n_vectors + 8, end - start - skip)
            n_vectors += 1
        start = end
    return n_vectors


@njit(**JIT)
def _transfer(queue: int, run: int, n: int) -> tuple[int, int]:
    """Read a run; returns the bytes that came and 0, SHORT_FILE or -errno."""
    file, offset = file_of(queue, get(run)), get(get(run) + OFFSET)
    total, position, retries = 0, 0, 0
    for i in range(n):
        total += get(get(run + 8 * i) + SIZE)
    direct = direct_descriptor(run, n, file)
    vectors = _vectors()
    while position < total:
        fd = direct if direct >= 0 else get(file + BUFFERED)
        n_vectors = _fill_vectors(run, n, position, vectors)
        atomic_add(queue + READS, 1)
        got = call_preadv(get(queue + PREADV), fd, vectors, n_vectors, offset + position)
        if got > total - position:
            return position, -_EIO
        if got > 0:
            position += got
            # What is left begins anywhere: O_DIRECT would refuse it.
            direct = -1
            continue
        if got == 0:
            return position, SHORT_FILE
        code = call_errno(get(queue + ERRNO))
        if direct >= 0 and code in (_EINVAL, _ENOTSUP):
            # Some file systems take O_DIRECT when a file is opened and refuse it here.
            atomic_add(queue + DIRECT_REFUSED, 1)
            put(file + DIRECT, -1)
            direct = -1
        elif code == _EINTR:
            continue
        elif code == _EAGAIN and retries < _MOST_RETRIES:
            retries += 1
            yield_thread()
        else:
            return position, -code
    return position, 0


@njit(**JIT)
def read_run(queue: int, run: int, n: int) -> None:
    """Read n neighbouring requests; every one's outcome goes to its STATUS."""
    clock, clock_id = get(queue + CLOCK), get(queue + CLOCK_ID)
    start = now_ns(clock, clock_id)
    position, code = _transfer(queue, run, n)
    end = 0
    for i in range(n):
        slot = get(run + 8 * i)
        end += get(slot + SIZE)
        status = 0
        if end > position:
            # A bad sector in one request is no error of its neighbours.
            status = code if n == 1 else _transfer(queue, run + 8 * i, 1)[1]
        put(slot + STATUS, status)
    atomic_add(queue + BUSY_NS, now_ns(clock, clock_id) - start)


@njit(**JIT)
def verify_run(queue: int, run: int, n: int) -> None:
    """Compare the sums of what was read with the expected ones."""
    for i in range(n):
        slot = get(run + 8 * i)
        flags, same = get(slot + FLAGS), True
        if get(slot + STATUS) != 0:
            continue
        if flags & VERIFY:
            found = cell_sum(get(slot + DEST), get(slot + SIZE), get(slot + SEED))
            same = found == get(slot + SUM) & 0xFFFFFFFF
        elif flags & BLOB:
            same = np.int64(blob_sum(get(slot + DEST), get(slot + SEED))) == get(slot + SUM)
        if not same:
            put(slot + STATUS, WRONG_SUM)
            atomic_add(queue + WRONG_SUMS, 1)
