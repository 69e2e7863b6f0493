"""What Python asks the reader for, the memory it goes to, and what went wrong."""

import errno
import os
from dataclasses import dataclass

from .errors import StoreError

# What a ticket says of a read that failed, besides -errno: mirrors of kernel constants
# (kernels/cpu/io_read.py, io_queue.py), checked by a test, since a reader may do without kernels.
WRONG_SUM, SHORT_FILE = -10001, -10002
_DROPPED = 0


@dataclass(frozen=True, slots=True)
class Request:
    """n_bytes at an offset of a file (index), to go to the address dest.

    With a sum (uint32) they are one cell, a multiple of 256 bytes, verified with seed (uint64).
    """

    file: int
    offset: int
    n_bytes: int
    dest: int
    sum: int | None = None
    seed: int = 0


def read_error(ticket: int, name: str, offset: int, n_bytes: int) -> StoreError:
    """The error of a read of a file that ended with a ticket."""
    code = errno.EIO
    if ticket == WRONG_SUM:
        reason = "the checksum is wrong"
    elif ticket == SHORT_FILE:
        reason = "the file ends before that"
    elif ticket == _DROPPED:
        reason, code = "the request was dropped", errno.ECANCELED
    else:
        reason, code = os.strerror(-ticket), -ticket
    error = StoreError(f"{name}: {n_bytes} bytes at offset {offset} not read: {reason}")
    error.errno = code
    return error
