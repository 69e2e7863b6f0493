"""SessionStore: the durable state of one session, a folder (docs/format.md, decision 0007).

Invariant: what `commit` returned from survives a crash at any later moment, and until it returns
the commit before it does. Blocks and tokens that either head file names are never overwritten.
After an I/O error every call refuses until the session is opened again; a full disk leaves the
store at its last commit and usable.
"""

import contextlib
import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Self

import numpy as np

from . import commit, store_folder
from . import head as heads
from .cellsums import Bytes, SumCells, Sums, cell_sums
from .errors import PagesError
from .filelayer import Files
from .geometry import n_blocks
from .guard import Guard
from .head import BlockEntry, Fingerprint, Head
from .lock import FolderLock
from .segments import Location, Segments
from .slots import Place
from .store_folder import Words
from .store_layout import BlockShape

_NO_TOKENS = heads.digest_128(b"")


class SessionStore:
    """Made by `create`, `open` or `fork`; locked until `close`. Not for several threads."""

    def __init__(
        self,
        folder: Path,
        lock: FolderLock,
        files: Files,
        salvage: bool = False,
        sum_cells: SumCells = cell_sums,
    ) -> None:
        self.folder = folder
        self.notices: list[str] = []
        self._lock = lock
        self._files = files
        self._io = Guard(folder, files, lambda: self._head.n_tokens)
        try:
            found, torn = store_folder.read_heads(folder, files)
            self._head = found[0]
            self._previous = found[1] if len(found) > 1 else None
            if torn:
                self.notices.append(
                    f"session {self.name!r}: a save was cut short; it is as the one before it left"
                    f" it, with {self._head.n_tokens} tokens"
                )
            self._words = store_folder.read_tokens(folder, self._head, files)
            shape = self._head.shape
            self._segments = Segments(folder, shape, files, self.notices, sum_cells)
            # Segments of no use that the last commit names; the next one removes them.
            self._lost: list[int] = []
            self._open_segments(salvage)
        except BaseException:
            lock.release()
            raise
        self._pending: dict[int, BlockEntry] = {}
        # Blocks that are written layer by layer: place, sums so far.
        self._begun: dict[int, tuple[Place, Sums]] = {}
        self._n_kept = 0
        self._sums: dict[BlockEntry, Sums] = {}
        self.roll_back()

    def _open_segments(self, salvage: bool) -> None:
        try:
            for number, entry in self._head.segments.items():
                try:
                    self._segments.open(entry, number)
                except PagesError as error:
                    if not salvage:
                        raise
                    self._lost.append(number)
                    self._segments.skip(number)
                    self.notices.append(str(error))
            self._segments.adopt_unused()
        except BaseException:
            self._segments.close()
            raise

    @classmethod
    def create(
        cls,
        folder: Path,
        shape: BlockShape,
        fingerprint: Fingerprint,
        meta: str = "",
        files: Files | None = None,
        sum_cells: SumCells = cell_sums,
    ) -> Self:
        """A new session without tokens. sum_cells: how its checksums are computed. StoreError
        where the folder exists or the disk is full."""
        files = files or Files()
        head = Head(1, fingerprint, shape, {}, (), 0, 0, _NO_TOKENS, meta)
        shape.check(str(folder))
        lock = store_folder.make(folder, files, head)
        return cls(folder, lock, files, sum_cells=sum_cells)

    @classmethod
    def open(
        cls,
        folder: Path,
        fingerprint: Fingerprint | None = None,
        files: Files | None = None,
        salvage: bool = False,
        sum_cells: SumCells = cell_sums,
    ) -> Self:
        """The last committed state of a session, for this process alone.

        fingerprint: what the caller would store; SessionError tells what differs. salvage: open it
        without segments that are damaged or gone, for `n_whole`, `truncate` and `commit`.
        sum_cells: how checksums are computed. Raises
        FileNotFoundError, StoreError where another process has the session, and SessionError
        where it is damaged; keys and values are verified when they are read.
        """
        if not store_folder.is_session(folder):
            there = f": {folder} holds something else" if folder.exists() else ""
            raise FileNotFoundError(
                errno.ENOENT, f"no session {folder.name!r} in {folder.parent}{there}"
            )
        store = cls(folder, FolderLock.take(folder), files or Files(), salvage, sum_cells)
        try:
            heads.require_match(store.name, store.fingerprint, fingerprint)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def shape(self) -> BlockShape:
        """What a block takes."""
        return self._head.shape

    @property
    def fingerprint(self) -> Fingerprint:
        """What shaped the stored values, as the last commit states it."""
        return self._head.fingerprint

    @property
    def generation(self) -> int:
        """Commits so far."""
        return self._head.generation

    @property
    def n_tokens(self) -> int:
        """Tokens of the last commit."""
        return self._head.n_tokens

    @property
    def tokens(self) -> Words:
        """uint32 [n_tokens]: the words of the last commit (a copy)."""
        return self._words.copy()

    @property
    def meta(self) -> str:
        """The text of the last commit."""
        return self._head.meta

    @property
    def disk_bytes(self) -> int:
        """Bytes of the segments, shared ones included."""
        return sum(e.file_bytes(self.shape) for e in self._segments.entries.values())

    def write_block(self, block: int, kv: Bytes | Sequence[Bytes], index: Bytes) -> None:
        """Write a block to a free slot; it takes effect with the next commit.

        kv: uint8 arrays that make up its keys and values, one of all or one per layer; index:
        uint8 [index_bytes]. StoreError: the block is not written; others are as they were.
        """
        parts = [kv] if isinstance(kv, np.ndarray) else list(kv)
        with self._io(f"block {block}", self._segments.next_file_bytes()):
            place = self._take_place(block)
            entry, sums = self._segments.write(place, block, self.generation + 1, parts, index)
            self._pending[block], self._sums[entry] = entry, sums

    def is_pending(self, block: int) -> bool:
        """Whether a block was written since the last commit."""
        return block in self._pending

    def _take_place(self, block: int) -> Place:
        # A block that no commit names may be written over: it is nowhere until it is whole.
        at = self._pending.pop(block, None)
        place = at.place if at else self._segments.find_free(self._taken)
        if place is None:
            place = self._segments.add()
        self._taken.setdefault(place[0], set()).add(place[1])
        return place

    def begin_block(self, block: int) -> None:
        """Give a block a slot, for `write_layer`, layer by layer, and `seal_block`. Where one of
        them fails, the other blocks that wait for a commit stay."""
        with self._io(f"block {block}", self._segments.next_file_bytes()):
            self._begun[block] = self._take_place(block), np.zeros(self.shape.n_cells, np.uint32)

    def write_layer(self, block: int, layer: int, pages: Bytes) -> None:
        """Write a layer's keys and values of a block that was begun."""
        place, sums = self._begun[block]
        with self._io(f"block {block}"):
            self._segments.write_layer(place, layer, pages, sums)

    def seal_block(self, block: int, index: Bytes) -> None:
        """End a block, all of whose layers are written; it takes effect with the next commit."""
        place, sums = self._begun.pop(block)
        with self._io(f"block {block}"):
            entry = self._segments.write_tail(place, block, self.generation + 1, sums, index)
            self._pending[block], self._sums[entry] = entry, sums

    def _count_taken(self) -> None:
        """Slots that are not free: those of both commits and of what will be one."""
        self._taken: dict[int, set[int]] = {}
        commits = [head.blocks for head in (self._head, self._previous) if head is not None]
        for segment, slot, _ in chain(*commits, self._pending.values()):
            self._taken.setdefault(segment, set()).add(slot)

    def truncate(self, n_tokens: int) -> None:
        """Give up the blocks after those of the first n_tokens; takes effect with `commit`."""
        keep = n_blocks(n_tokens)
        self._n_kept = min(self._n_kept, keep)
        self._pending = {i: entry for i, entry in self._pending.items() if i < keep}
        self._begun.clear()
        self._count_taken()

    def commit(
        self, words: Words | Sequence[int], meta: str, fingerprint: Fingerprint | None = None
    ) -> None:
        """Make tokens, blocks and text durable, all or nothing.

        words: all tokens of the session, uint32. Every block with a token that differs from the
        last commit must have been written since. StoreError: nothing is saved; what was written
        since the last commit waits for another try, or for `roll_back`.
        """
        words = np.array(words, dtype=np.uint32)
        with self._io(f"save {self.generation + 1}", 4 * words.size):
            head = self._next_head(words, meta, fingerprint)
            commit.write(self.folder, self._files, self._head, head, words, self._segments.sync)
        self._previous, self._head, self._words = self._head, head, words
        self.roll_back()
        self._sums = {entry: self._sums[entry] for entry in head.blocks if entry in self._sums}
        self._prune()

    def _next_head(self, words: Words, meta: str, fingerprint: Fingerprint | None) -> Head:
        blocks = commit.blocks_of(self._head, self._words, words, self._pending, self._n_kept)
        return replace(
            self._head,
            generation=self.generation + 1,
            fingerprint=self.fingerprint if fingerprint is None else dict(fingerprint),
            segments={n: self._segments.entries[n] for n in sorted({b.segment for b in blocks})},
            blocks=blocks,
            token_file=commit.token_file(self._head, self._previous, self._words, words),
            n_tokens=words.size,
            token_digest=heads.digest_128(words.astype("<u4").tobytes()),
            meta=meta,
        )

    def roll_back(self) -> None:
        """Give up what was written since the last commit."""
        self._pending, self._n_kept = {}, len(self._head.blocks)
        self._count_taken()

    def _prune(self) -> None:
        """Remove files that no commit names; what cannot be removed costs only space."""
        alive = [head for head in (self._head, self._previous) if head is not None]
        segments = {number for head in alive for number in head.segments}
        tokens = {store_folder.token_path(self.folder, head.token_file).name for head in alive}
        with contextlib.suppress(OSError):
            for number in [n for n in self._segments.entries if n not in segments]:
                self._segments.drop(number)
            for name in self._files.names(self.folder):
                if store_folder.TOKEN_FILE.fullmatch(name) and name not in tokens:
                    self._files.unlink(self.folder / name)
            while self._lost:
                path = self._segments.path(self._lost.pop())
                if path.name in self._files.names(self.folder):
                    self._files.unlink(path)

    def entry(self, block: int) -> BlockEntry:
        """Where a block lies now, committed or not."""
        if block in self._pending:
            return self._pending[block]
        if not 0 <= block < self._n_kept:
            raise IndexError(f"block {block} of {self._n_kept}")
        return self._head.blocks[block]

    def locate(self, block: int) -> Location:
        """Where the cells of a block are read and what verifies them; its sums are read once."""
        entry = self.entry(block)
        if entry not in self._sums:
            self.read_index(block)
        return self._segments.locate(entry, self._sums[entry])

    def read_index(self, block: int) -> Bytes:
        """uint8 [index_bytes] of a block; SessionError unless it is what the head names."""
        entry = self.entry(block)
        with self._io(f"reading block {block}"):
            index, self._sums[entry] = self._segments.read_tail(block, entry)
        return index

    def read_block(self, block: int, out: Bytes) -> None:
        """Keys and values of a block into uint8 [kv_bytes]; SessionError naming the first cell
        that is not what was written."""
        entry = self.entry(block)
        if entry not in self._sums:
            self.read_index(block)
        with self._io(f"reading block {block}"):
            self._segments.read_kv(block, entry, self._sums[entry], out)

    def verify(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Check every checksum of the last commit; the number of blocks. progress: (bytes, all)."""
        out = np.empty(self.shape.kv_bytes, np.uint8)
        total = len(self._head.blocks)
        for block in range(total):
            self.read_index(block)
            self.read_block(block, out)
            if progress is not None:
                progress((block + 1) * self.shape.block_bytes, total * self.shape.block_bytes)
        return total

    def n_whole(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Blocks of the last commit before the first that is damaged. progress: (blocks, all)."""
        out = np.empty(self.shape.kv_bytes, np.uint8)
        total = len(self._head.blocks)
        for block, entry in enumerate(self._head.blocks):
            if not self._segments.is_whole(block, entry, out):
                return block
            if progress is not None:
                progress(block + 1, total)
        return total

    def fork(self, folder: Path, n_tokens: int | None = None, meta: str | None = None) -> list[str]:
        """Make another session of the first n_tokens of the last commit, sharing its segments by
        hard links, or copies where links are refused; returns what the user should know."""
        n = self.n_tokens if n_tokens is None else n_tokens
        if not 0 <= n <= self.n_tokens:
            raise ValueError(f"cannot keep {n} of {self.n_tokens} tokens")
        words = self._words[:n].astype("<u4").tobytes()
        blocks = self._head.blocks[: n_blocks(n)]
        numbers = sorted({entry.segment for entry in blocks})
        notices: list[str] = []
        head = replace(
            self._head,
            generation=1,
            segments={number: self._head.segments[number] for number in numbers},
            blocks=blocks,
            token_file=0,
            n_tokens=n,
            token_digest=heads.digest_128(words),
            meta=self.meta if meta is None else meta,
        )

        def fill(new: Path) -> None:
            for number in numbers:
                notice = store_folder.share_file(self._files, self._segments.path(number), new)
                notices.extend([notice] if notice else [])

        with self._io(f"the fork {folder.name!r}", len(words)):
            store_folder.make(folder, self._files, head, words, fill).release()
        return notices

    def close(self) -> None:
        """Give the session up; what was not committed is lost. A second call does nothing."""
        self._segments.close()
        self._lock.release()
        self._io.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
