"""Files: the file operations of a session store, one method each, so that tests can put a disk
that fails, fills up or loses power in their place.

Methods raise OSError as the system does; `read_all` and `write_all` go on where a call was cut
short. Descriptors are not inherited by child processes.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from hga.kernels import system

from .errors import SessionError

Buffer = memoryview

READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0)
READ_WRITE = os.O_RDWR | getattr(os, "O_BINARY", 0)
CREATE = READ_WRITE | os.O_CREAT | os.O_EXCL

_ZEROS = bytes(1 << 20)
# A hard link is refused: another file system, one without links (ENOTSUP is another number on
# macOS, EINVAL what Windows says), too many of them, not allowed.
NO_LINKS = (
    *(errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOTSUP),
    *(errno.ENOSYS, errno.EACCES, errno.EINVAL),
)


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of a regular file of a session; SessionError for a pipe or a device, which may
    have no end, and for a link: a folder that came from elsewhere must not lead a save to another
    file. A new file is for its owner alone: what people ask a model is for nobody else to read."""
    # To open a pipe waits for its other side.
    careful = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        fd = os.open(path, flags | careful, 0o600)
    except OSError as error:
        # EISDIR, or what there is for a link: ELOOP, on some systems EMLINK or EFTYPE.
        if error.errno == errno.EISDIR or os.path.islink(path):
            raise SessionError(f"{path} is not a regular file: the session is damaged") from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SessionError(f"{path} is not a regular file: the session is damaged")
    return fd


class Files:
    """The system's own files."""

    def open(self, path: Path, flags: int) -> int:
        """A descriptor of a regular file; SessionError for anything else, see `open_regular`."""
        return open_regular(path, flags)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def read(self, fd: int, view: Buffer, offset: int) -> int:
        """Read into a view; the number of bytes, 0 at the end of the file."""
        return system.read_at(fd, view, offset)

    def write(self, fd: int, views: Sequence[Buffer], offset: int) -> int:
        """Write views one after another in one call; the number of bytes, perhaps not all."""
        return system.write_at(fd, views, offset)

    def allocate(self, fd: int, n_bytes: int) -> bool:
        """Give a file its size and its space on the disk; False where that is not offered."""
        return system.allocate(fd, n_bytes)

    def datasync(self, fd: int) -> None:
        """Make what was written to a file durable."""
        system.sync_data(fd)

    def forget(self, fd: int) -> None:
        """Let go of what the system keeps in memory of a file that was synced."""
        system.forget(fd)

    def sync(self, fd: int) -> None:
        """Make what was written to a file durable, and its size."""
        system.sync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Make names made, moved or removed in a folder durable, where that can be."""
        system.sync_folder(folder)

    def size(self, fd: int) -> int:
        """Bytes of an open file."""
        return os.fstat(fd).st_size

    def links(self, fd: int) -> int:
        """Names that an open file has."""
        return os.fstat(fd).st_nlink

    def names(self, folder: Path) -> list[str]:
        """The names in a folder."""
        return sorted(os.listdir(folder))

    def make_folder(self, folder: Path) -> None:
        """Make a folder for its owner alone."""
        os.mkdir(folder, 0o700)

    def remove_folder(self, folder: Path) -> None:
        """Remove an empty folder."""
        os.rmdir(folder)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name; a file of that name is replaced."""
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        """Give a file a second name."""
        os.link(old, new)

    def unlink(self, path: Path) -> None:
        """Take a name away."""
        os.unlink(path)

    def free_bytes(self, folder: Path) -> int:
        """What the file system of a folder has left for this user."""
        return shutil.disk_usage(folder).free


def read_all(files: Files, fd: int, view: Buffer, offset: int) -> int:
    """Fill a view as far as the file goes; the number of bytes."""
    done = 0
    while done < len(view):
        with contextlib.suppress(InterruptedError):
            count = files.read(fd, view[done:], offset + done)
            if count <= 0:
                break
            done += count
    return done


def write_all(files: Files, fd: int, views: Sequence[Buffer], offset: int) -> None:
    """Write views one after another, however many calls it takes."""
    left = [view for view in views if len(view)]
    while left:
        with contextlib.suppress(InterruptedError):
            count = files.write(fd, left, offset)
            if count <= 0:
                raise OSError(errno.EIO, "nothing could be written")
            offset += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]


def allocate(files: Files, fd: int, n_bytes: int) -> bool:
    """Make a file at least n_bytes long with space on the disk; False where zeros had to be
    written for it."""
    begin = files.size(fd)
    if begin >= n_bytes:
        return True
    while True:
        try:
            if files.allocate(fd, n_bytes):
                return True
            break
        except InterruptedError:
            continue
    for at in range(begin, n_bytes, len(_ZEROS)):
        write_all(files, fd, [memoryview(_ZEROS)[: n_bytes - at]], at)
    return False
