"""What a commit consists of and the order in which it reaches the disk.

Invariant: blocks are durable before the tokens, tokens before the head that names both, and nothing
that either older head names is overwritten but the older head itself.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from . import head as heads
from .filelayer import CREATE, READ_WRITE, Files, allocate, write_all
from .geometry import BLOCK_TOKENS, n_blocks
from .guard import DoubtfulError, must
from .head import BlockEntry, Head
from .store_folder import Words, token_path


def blocks_of(
    head: Head, old: Words, new: Words, pending: Mapping[int, BlockEntry], n_kept: int
) -> tuple[BlockEntry, ...]:
    """Where the blocks of new tokens lie: those written since the last commit, and of its own
    first n_kept those whose tokens are the same. ValueError where one is missing."""
    n = min(new.size, old.size)
    differs = np.flatnonzero(new[:n] != old[:n])
    same = int(differs[0]) if differs.size else n
    blocks = []
    for block in range(n_blocks(new.size)):
        entry = pending.get(block)
        if entry is None:
            end = min((block + 1) * BLOCK_TOKENS, new.size)
            if end > same or block >= n_kept:
                raise ValueError(f"block {block} has changed and was not written")
            entry = head.blocks[block]
        blocks.append(entry)
    return tuple(blocks)


def token_file(head: Head, previous: Head | None, old: Words, new: Words) -> int:
    """The number of the last commit's file where tokens only join it, else that of a new one."""
    joins = new.size >= old.size and np.array_equal(new[: old.size], old)
    if previous is None:
        return head.token_file + (not joins)
    longer = previous.token_file == head.token_file and previous.n_tokens > old.size
    if joins and not longer:
        return head.token_file
    return max(head.token_file, previous.token_file) + 1


def write(
    folder: Path,
    files: Files,
    old: Head,
    new: Head,
    words: Words,
    sync_blocks: Callable[[], None],
) -> None:
    """Make a commit durable. Raises OSError with the old commit as
    it was, and DoubtfulError where the new one, or its blocks, may be on the disk or not."""
    data = heads.encode(new)
    fd = files.open(folder / heads.file_name(new.generation), READ_WRITE)
    try:
        # Room is had before anything is overwritten: a full disk changes nothing.
        allocate(files, fd, len(data))
        sync_blocks()
        _write_tokens(folder, files, old, new, words)
        try:
            write_all(files, fd, [memoryview(data)], 0)
            files.sync(fd)
        except OSError as error:
            raise DoubtfulError(error) from None
    finally:
        files.close(fd)


def _write_tokens(folder: Path, files: Files, old: Head, new: Head, words: Words) -> None:
    path = token_path(folder, new.token_file)
    data = memoryview(words.astype("<u4").tobytes())
    joins = new.token_file == old.token_file
    begin = 4 * old.n_tokens if joins else 0
    if joins and begin == len(data):
        return
    if not joins:
        with contextlib.suppress(FileNotFoundError):
            files.unlink(path)
    fd = files.open(path, READ_WRITE if joins else CREATE)
    try:
        allocate(files, fd, len(data))
        write_all(files, fd, [data[begin:]], begin)
        must(files.datasync, fd)
    finally:
        files.close(fd)
    if not joins:
        files.sync_folder(folder)
