"""BatchReads: many reads past the page cache by two system calls, from Python.

Linux takes a list of reads (io_submit(2)) and gives what has ended (io_getevents(2)), in structures
of <linux/aio_abi.h>. With O_DIRECT the list is handed over at once, and the interpreter is free
meanwhile. A read costs 3 us of a processor, 45 by threads of Python, which take turns.
"""

import ctypes
import errno
import os
import threading

import numpy as np
from numpy.typing import NDArray

from hga.kernels.system import batch_read_numbers

I64 = NDArray[np.int64]

# Reads under way at a time.
DEPTH = 256
_READV = 7
_IOCB = np.dtype(
    [
        ("data", np.uint64),
        ("key", np.uint32),
        ("rw_flags", np.uint32),
        ("opcode", np.uint16),
        ("priority", np.int16),
        ("file", np.uint32),
        ("buffer", np.uint64),
        ("n_bytes", np.uint64),
        ("offset", np.int64),
        ("reserved", np.uint64),
        ("flags", np.uint32),
        ("event_file", np.uint32),
    ]
)
_EVENT = np.dtype(
    [("data", np.uint64), ("iocb", np.uint64), ("result", np.int64), ("more", np.int64)]
)


class BatchReads:
    """A context of the kernel; `close` ends it. OSError where the system has none to give."""

    def __init__(self) -> None:
        numbers = batch_read_numbers()
        if numbers is None:
            raise OSError(errno.ENOSYS, "the system takes no lists of reads")
        self._setup, self._destroy, self._submit, self._events = numbers
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._context = self._made()
        # One list at a time; who finds it taken reads another way.
        self.busy = threading.Lock()

    def _invoke(self, number: int, *arguments: object) -> int:
        done = int(self._call(ctypes.c_long(number), *arguments))
        if done < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return done

    def _made(self) -> ctypes.c_ulong:
        context = ctypes.c_ulong(0)
        self._invoke(self._setup, ctypes.c_long(DEPTH), ctypes.byref(context))
        return context

    def close(self) -> None:
        """Wait for what is under way, and end."""
        if self._context.value:
            context, self._context = self._context, ctypes.c_ulong(0)
            self._invoke(self._destroy, context)

    def read(self, fds: I64, offsets: I64, vectors: NDArray[np.uint64], counts: I64) -> I64:
        """Read n runs, each `counts` [n] rows of vectors, uint64 [sum of counts, 2] addresses and
        lengths, one after another from an offset [n] of a file descriptor [n].

        Returns int64 [n]: bytes read, or -errno. OSError where the system refuses. Whatever is
        raised, no read is under way any more. The caller holds `busy`.
        """
        n = len(fds)
        control = np.zeros(n, _IOCB)
        control["data"] = np.arange(n)
        control["opcode"], control["file"], control["offset"] = _READV, fds, offsets
        control["buffer"] = vectors.ctypes.data + 16 * (np.cumsum(counts) - counts)
        control["n_bytes"] = counts
        pointers = control.ctypes.data + _IOCB.itemsize * np.arange(n, dtype=np.uint64)
        results, events = np.zeros(n, np.int64), np.zeros(DEPTH, _EVENT)
        sent = ended = 0
        try:
            while ended < n:
                if sent < n and sent - ended < DEPTH:
                    sent += self._send(pointers[sent : ended + DEPTH], sent > ended)
                # The rest, or half of it: while the next are handed over the drive has the others.
                under_way = sent - ended
                ended += self._take(under_way if sent == n else -(-under_way // 2), events, results)
        except BaseException:
            # How many were handed over is not certain here. The end of a context waits for them.
            self.close()
            self._context = self._made()
            raise
        return results

    def _send(self, pointers: NDArray[np.uint64], others: bool) -> int:
        """Hand over reads; how many were taken."""
        where = ctypes.c_void_p(pointers.ctypes.data)
        try:
            return self._invoke(self._submit, self._context, ctypes.c_long(len(pointers)), where)
        except BlockingIOError:
            # No room just now.
            if not others:
                raise
            return 0

    def _take(self, least: int, events: NDArray[np.void], results: I64) -> int:
        """Wait for `least` reads to end; how many have."""
        room, where = ctypes.c_long(len(events)), ctypes.c_void_p(events.ctypes.data)
        wanted = ctypes.c_long(least)
        try:
            n = self._invoke(self._events, self._context, wanted, room, where, None)
        except InterruptedError:
            return 0
        results[events["data"][:n].astype(np.int64)] = events["result"][:n]
        return n
