"""A disk that loses power, fills up or fails at a chosen operation, under the store's file layer.

Nothing that was not synced survives `cut_power` for certain: of every sector of 512 bytes written
since the file's last sync either the old or the new contents are there, of its size either, and of
the names made, moved or removed since the folder's last sync a random number of the latest is gone.
"""

import contextlib
import errno
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hga.kvstore.filelayer import Files

SECTOR = 512


class PowerCut(BaseException):
    """The process ends here; no handler of the code under test knows this class."""


class FaultDisk(Files):
    """Operation number `at` (from 1) fails with `fault`: PowerCut, or an errno. `clumsy` cuts
    reads and writes short and interrupts them. Not thread-safe."""

    def __init__(
        self, root: Path, seed: int = 0, at: int = 0, fault: int | None = None, clumsy: bool = False
    ) -> None:
        self.random = random.Random(seed)
        self.at, self.fault, self.clumsy = at, fault, clumsy
        self.count = 0
        self.trail: list[str] = []
        self.free = 12345
        self._durable: dict[int, bytes] = {}
        self._handles: dict[int, int] = {}
        self._inodes: dict[int, int] = {}
        self._names: list[tuple[Path, Callable[[], None]]] = []
        self._grave = Path(tempfile.mkdtemp(prefix="grave-", dir=root))
        self._buried = 0

    def _point(self, what: str) -> None:
        self.count += 1
        self.trail.append(what)
        if self.count == self.at:
            if self.fault is None:
                raise PowerCut(what)
            raise OSError(self.fault, os.strerror(self.fault))
        if self.clumsy and self.random.random() < 0.2:
            self.count -= 1
            raise InterruptedError(errno.EINTR, "interrupted")

    def _note(self, path: Path, undo: Callable[[], None]) -> None:
        self._names.append((path.parent, undo))

    def _bury(self, path: Path) -> Path:
        self._buried += 1
        grave = self._grave / str(self._buried)
        os.rename(path, grave)
        return grave

    def open(self, path: Path, flags: int) -> int:
        new = bool(flags & os.O_CREAT)
        if new:
            with contextlib.suppress(InterruptedError):
                self._point(f"create {path.name}")
        fd = super().open(path, flags)
        inode = os.fstat(fd).st_ino
        self._inodes[fd] = inode
        if inode not in self._handles:
            self._handles[inode] = os.dup(fd)
            self._durable[inode] = b"" if new else path.read_bytes()
        if new:
            self._note(path, lambda: self._bury(path) and None)
        return fd

    def read(self, fd: int, view: memoryview, offset: int) -> int:
        if self.clumsy:
            if self.random.random() < 0.2:
                raise InterruptedError(errno.EINTR, "interrupted")
            view = view[: self.random.randint(1, len(view))]
        return super().read(fd, view, offset)

    def write(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        cut = self.fault is None and self.count + 1 == self.at
        if cut:
            # The call that does not return may have written all of it.
            super().write(fd, views, offset)
        self._point(f"write {sum(map(len, views))} at {offset}")
        if self.clumsy:
            views = [views[0][: self.random.randint(1, len(views[0]))]]
        return super().write(fd, views, offset)

    def allocate(self, fd: int, n_bytes: int) -> bool:
        self._point(f"allocate {n_bytes}")
        os.ftruncate(fd, max(n_bytes, os.fstat(fd).st_size))
        return True

    def datasync(self, fd: int) -> None:
        self.sync(fd)

    def sync(self, fd: int) -> None:
        with contextlib.suppress(InterruptedError):
            self._point("sync")
        size = os.fstat(fd).st_size
        self._durable[os.fstat(fd).st_ino] = os.pread(fd, size, 0)

    def sync_folder(self, folder: Path) -> None:
        with contextlib.suppress(InterruptedError):
            self._point(f"sync folder {folder.name}")
        self._names = [(at, undo) for at, undo in self._names if at != folder]

    def links(self, fd: int) -> int:
        inode = os.fstat(fd).st_ino
        buried = sum(p.stat().st_ino == inode for p in self._grave.rglob("*") if p.is_file())
        return super().links(fd) - buried

    def make_folder(self, folder: Path) -> None:
        with contextlib.suppress(InterruptedError):
            self._point(f"make folder {folder.name}")
        super().make_folder(folder)
        self._note(folder, lambda: self._bury(folder) and None)

    def rename(self, old: Path, new: Path) -> None:
        assert not new.exists(), "the store replaces nothing"
        with contextlib.suppress(InterruptedError):
            self._point(f"rename {old.name}")
        super().rename(old, new)
        self._note(new, lambda: os.rename(new, old))

    def link(self, old: Path, new: Path) -> None:
        with contextlib.suppress(InterruptedError):
            self._point(f"link {old.name}")
        super().link(old, new)
        self._note(new, lambda: self._bury(new) and None)

    def unlink(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        with contextlib.suppress(InterruptedError):
            self._point(f"unlink {path.name}")
        grave = self._bury(path)
        self._note(path, lambda: os.rename(grave, path))

    def free_bytes(self, folder: Path) -> int:
        return self.free

    def cut_power(self) -> None:
        """Leave on the disk what a loss of power may leave; the object is done with."""
        kept = self.random.randint(0, len(self._names))
        for _, undo in reversed(self._names[kept:]):
            undo()
        for inode, fd in self._handles.items():
            old, size = self._durable[inode], os.fstat(fd).st_size
            new = os.pread(fd, size, 0)
            if old != new:
                os.ftruncate(fd, 0)
                os.pwrite(fd, self._torn(old, new), 0)
        self.close_all()

    def _torn(self, old: bytes, new: bytes) -> bytes:
        size = self.random.choice((len(old), len(new)))
        share = self.random.choice((0.0, 0.5, 1.0))
        data = bytearray(size)
        for at in range(0, size, SECTOR):
            source = new if self.random.random() < share else old
            piece = source[at : min(at + SECTOR, size)]
            data[at : at + len(piece)] = piece
        return bytes(data)

    def close_all(self) -> None:
        """Close what this object holds open."""
        for fd in self._handles.values():
            os.close(fd)
        self._handles.clear()
        shutil.rmtree(self._grave)
