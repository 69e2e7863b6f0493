"""Files that one process writes and that survive a crash: an exclusive open, a durable rename."""

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO


def open_locked(path: Path) -> BinaryIO:
    """Open or create a file for reading and writing anywhere in it, unbuffered, for this process
    alone while it is open. Raises BlockingIOError where another process has it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        file = open(fd, "r+b", buffering=0)  # noqa: SIM115
        try:
            _lock(fd)
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


def _lock(fd: int) -> None:
    # Advisory and only where there is flock: elsewhere two packs of one file are the user's care.
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_folder(folder: Path) -> None:
    """Make a rename durable, where folders can be opened."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
