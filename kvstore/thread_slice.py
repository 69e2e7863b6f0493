"""A short time slice for threads that read.

Such a thread computes next to nothing and must run as soon as a read ends, or the disk idles. With
the usual slice it waits for a thread that computes on its processor: up to 3 ms a read, half of the
disk's bandwidth (docs/log.md). Linux 6.12 and later let any thread ask for a slice of 0.1 ms, whose
wake-ups go first (sched_setattr(2), sched_runtime of SCHED_OTHER); elsewhere nothing changes.
"""

import ctypes
import os
import sys

from hga.kernels.system import sched_setattr_number

_SLICE_NS = 100_000


class _Attributes(ctypes.Structure):
    """struct sched_attr."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def shorten_slice() -> bool:
    """Ask for a short slice for the calling thread, its policy and niceness as they are; whether
    the system took it."""
    number = sched_setattr_number()
    if sys.platform != "linux" or number == 0:
        return False
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _Attributes(ctypes.sizeof(_Attributes), os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, ctypes.byref(wanted), 0) == 0)
