"""FolderLock: one process at a time has a session.

The lock is the system's (kernels/system.py) and ends with the process; the file tells who holds it.
"""

import errno
import os
import time
from pathlib import Path

from hga.kernels.system import lock

from .errors import StoreError
from .filelayer import READ_WRITE, open_regular

NAME = "lock"


class FolderLock:
    """Held from `take` until `release`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def take(cls, folder: Path, session: str | None = None) -> "FolderLock":
        """Lock a session folder; StoreError naming the process that has it."""
        name = session or folder.name
        fd = open_regular(folder / NAME, READ_WRITE | os.O_CREAT)
        try:
            lock(fd)
        except BlockingIOError:
            holder = _holder(os.read(fd, 200))
            os.close(fd)
            raise StoreError(
                errno.EWOULDBLOCK, f"session {name!r} is in use by {holder}: end that first"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        try:
            # Somebody may have removed the session between open and lock.
            if not os.path.samestat(os.fstat(fd), os.stat(folder / NAME)):
                raise FileNotFoundError
            text = f"{os.getpid()} {time.strftime('%Y-%m-%dT%H:%M:%S')}\n".encode()
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.write(fd, text)
        except FileNotFoundError:
            os.close(fd)
            raise StoreError(f"session {name!r} was removed just now") from None
        except OSError:
            # A full disk: the lock holds without its text.
            pass
        return cls(fd)

    def release(self) -> None:
        """Let others have the session; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _holder(text: bytes) -> str:
    pid, _, since = text.decode("ascii", "replace").strip().partition(" ")
    if not pid.isdecimal():
        return "another process"
    if int(pid) == os.getpid():
        return f"this process ({pid})"
    started = f" (since {since})" if since and since.isprintable() else ""
    return f"process {pid}{started}"
