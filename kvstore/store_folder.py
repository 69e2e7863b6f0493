"""A session folder as a whole: which commit it holds, making one, removing one.

A new folder is filled under a name that begins with a dot and then renamed: there is never half a
session.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hga.kernels import system

from . import head as heads
from .errors import SessionError, StoreError
from .filelayer import CREATE, NO_LINKS, READ_ONLY, Files, allocate, read_all, write_all
from .guard import NO_SPACE, no_room
from .head import Head
from .lock import NAME as LOCK_NAME
from .lock import FolderLock
from .segments import FILE_NAME, NEW

Words = NDArray[np.uint32]
HEADS = (heads.file_name(0), heads.file_name(1))
TOKEN_FILE = re.compile(r"tokens-(\d{6,10})")


def token_path(folder: Path, number: int) -> Path:
    """A file of token ids."""
    return folder / f"tokens-{number:06d}"


def is_session(folder: Path) -> bool:
    """Whether a folder has the files of a session, damaged or not."""
    return folder.is_dir() and any((folder / name).is_file() for name in HEADS)


def _read_head(files: Files, path: Path) -> bytes:
    """A head file as far as its header says; SessionError if it is larger than any."""
    fd = files.open(path, READ_ONLY)
    try:
        size = files.size(fd)
        if size > heads.MOST_HEAD:
            raise SessionError(f"{path} has {size} bytes, at most {heads.MOST_HEAD} are expected")
        header = bytearray(min(size, heads.HEADER_BYTES))
        read_all(files, fd, memoryview(header), 0)
        data = bytearray(min(size, heads.stated_bytes(bytes(header))))
        return bytes(data[: read_all(files, fd, memoryview(data), 0)])
    finally:
        files.close(fd)


def read_heads(folder: Path, files: Files) -> tuple[list[Head], bool]:
    """The whole commits of a folder, the newest first, and whether one was cut short."""
    found: list[Head] = []
    torn = False
    for name in HEADS:
        try:
            data = _read_head(files, folder / name)
        except FileNotFoundError:
            continue
        head = heads.decode(data, str(folder / name))
        if head is not None:
            found.append(head)
        else:
            torn = torn or bool(data)
    if not found:
        if not folder.is_dir():
            raise FileNotFoundError(
                errno.ENOENT, f"no session {folder.name!r} in {folder.parent or Path('.')}"
            )
        raise SessionError(f"{folder}: neither {HEADS[0]} nor {HEADS[1]} is whole: no session")
    found.sort(key=lambda head: -head.generation)
    if len(found) == 2 and found[0].generation != found[1].generation + 1:
        raise SessionError(
            f"{folder}: saves {found[0].generation} and {found[1].generation} do not follow one"
            " another: the files are not of one session"
        )
    return found, torn


def peek(folder: Path) -> Head:
    """The newest commit, without lock and without a look at keys and values."""
    return read_heads(folder, Files())[0][0]


def read_tokens(folder: Path, head: Head, files: Files) -> Words:
    """The tokens of a commit, held by its digest."""
    path = token_path(folder, head.token_file)
    try:
        fd = files.open(path, READ_ONLY)
    except FileNotFoundError:
        raise SessionError(f"{path} is missing: the tokens are lost") from None
    try:
        size = files.size(fd)
        if size < 4 * head.n_tokens:
            raise SessionError(f"{path} has {size} bytes, {head.n_tokens} tokens need four each")
        words = np.empty(head.n_tokens, "<u4")
        read_all(files, fd, words.view(np.uint8).data, 0)
    finally:
        files.close(fd)
    if heads.digest_128(words.tobytes()) != head.token_digest:
        raise SessionError(f"{path}: the tokens do not match their digest: they are damaged")
    return words.astype(np.uint32)


def _write_new(files: Files, path: Path, data: bytes) -> None:
    """A file that was not there, durable but for its name."""
    fd = files.open(path, CREATE)
    try:
        allocate(files, fd, len(data))
        write_all(files, fd, [memoryview(data)], 0)
        files.sync(fd)
    finally:
        files.close(fd)


def make(
    folder: Path,
    files: Files,
    head: Head,
    tokens: bytes = b"",
    fill: Callable[[Path], None] = lambda new: None,
) -> FolderLock:
    """Make a session of one commit, durable and locked when this returns. `fill` puts the
    segments that it names into the folder. StoreError: there is no such session."""
    if os.path.lexists(folder):
        raise StoreError(errno.EEXIST, f"session {folder.name!r} exists already in {folder.parent}")
    data = heads.encode(head)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}{NEW}")
    made, lock = new, None
    try:
        if not new.is_dir():
            files.make_folder(new)
        lock = FolderLock.take(new, folder.name)
        # What a process that was killed left.
        _clear(new, files)
        fill(new)
        _write_new(files, token_path(new, head.token_file), tokens)
        _write_new(files, new / heads.file_name(head.generation + 1), b"")
        _write_new(files, new / heads.file_name(head.generation), data)
        files.sync_folder(new)
        lock = _give_name(new, folder, lock, files)
        made = folder
        files.sync_folder(folder.parent)
    except BaseException as error:
        if lock is not None:
            if isinstance(error, OSError):
                with contextlib.suppress(OSError):
                    _remove(made, files, lock)
            lock.release()
        if isinstance(error, StoreError) or not isinstance(error, OSError):
            raise
        what = f"a new session {folder.name!r}"
        if error.errno in NO_SPACE:
            needed = len(data) + len(tokens)
            needed += sum(segment.file_bytes(head.shape) for segment in head.segments.values())
            raise no_room(error, folder.parent, what, needed, files) from None
        raise StoreError(
            error.errno, f"{what} cannot be made in {folder.parent}: {error.strerror}"
        ) from None
    return lock


def _give_name(new: Path, folder: Path, lock: FolderLock, files: Files) -> FolderLock:
    """Rename a new session's folder; its lock, which is let go meanwhile where the system moves no
    folder with an open file in it."""
    if system.renames_open_files():
        files.rename(new, folder)
        return lock
    lock.release()
    files.rename(new, folder)
    return FolderLock.take(folder)


def remove(folder: Path) -> None:
    """Remove a session, damaged or not, or what a removal that was cut short has left of one;
    segments that others share stay with them, and of a link only the link goes."""
    files = Files()
    if folder.is_symlink():
        files.unlink(folder)
        return
    if not is_session(folder) and not _is_bare(folder):
        raise FileNotFoundError(errno.ENOENT, f"no session {folder.name!r} in {folder.parent}")
    lock = FolderLock.take(folder)
    try:
        _remove(folder, files, lock)
    finally:
        lock.release()


def _remove(folder: Path, files: Files, lock: FolderLock) -> None:
    _clear(folder, files)
    left = [name for name in files.names(folder) if name != LOCK_NAME]
    if left:
        raise StoreError(
            errno.ENOTEMPTY, f"{folder} is not removed: {left[0]!r} is not a session's file"
        )
    if not system.renames_open_files():
        lock.release()
    files.unlink(folder / LOCK_NAME)
    files.remove_folder(folder)


def _is_bare(folder: Path) -> bool:
    """Whether a folder holds nothing but, perhaps, a lock."""
    return folder.is_dir() and set(os.listdir(folder)) <= {LOCK_NAME}


def _clear(folder: Path, files: Files) -> None:
    # Heads go last: without one a folder is no session any more, and nothing would remove the rest.
    for name in sorted(files.names(folder), key=lambda name: name in HEADS):
        plain = name.removesuffix(NEW)
        if name in HEADS or TOKEN_FILE.fullmatch(name) or FILE_NAME.fullmatch(plain):
            files.unlink(folder / name)


def share_file(files: Files, old: Path, folder: Path) -> str | None:
    """Give a segment a second name in another folder, or copy it where that is refused, and say
    so."""
    try:
        files.link(old, folder / old.name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _copy_file(files, old, folder / old.name)
        return f"{old.name} was copied, not shared: links are refused ({error.strerror})"
    return None


def _copy_file(files: Files, old: Path, new: Path) -> None:
    """A copy, durable but for its name."""
    source = files.open(old, READ_ONLY)
    try:
        target = files.open(new, CREATE)
        try:
            size = files.size(source)
            allocate(files, target, size)
            piece = bytearray(4 << 20)
            for at in range(0, size, len(piece)):
                n_read = read_all(files, source, memoryview(piece), at)
                write_all(files, target, [memoryview(piece)[:n_read]], at)
            files.sync(target)
        finally:
            files.close(target)
    finally:
        files.close(source)
