"""Files that one process writes, and the names of those that fail."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hga.kernels.system import lock


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Put a file's name to an error of the system that has none: reads and writes of an open file
    say only what went wrong."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror is not None:
            error.filename = str(path)
        raise


def open_locked(path: Path) -> BinaryIO:
    """Open or create a file for reading and writing anywhere in it, unbuffered, for this process
    alone while it is open. Raises BlockingIOError where another process has it, OSError where it
    is a link or no regular file: what is written must not end up elsewhere."""
    flags = os.O_RDWR | os.O_CREAT
    for name in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW"):
        flags |= getattr(os, name, 0)
    while True:
        if path.is_symlink() or (path.exists() and not path.is_file() and not path.is_dir()):
            raise OSError(errno.EINVAL, "is not a regular file: remove it first", str(path))
        fd = os.open(path, flags, 0o666)
        file = open(fd, "r+b", buffering=0)  # noqa: SIM115
        try:
            lock(fd)
            # Between open and lock, another process may have finished and renamed the file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return file
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                errno.EWOULDBLOCK, "another process is writing this file", str(path)
            ) from None
        except BaseException:
            file.close()
            raise
        file.close()
