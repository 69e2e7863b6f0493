"""SavedSession: what connects a session in memory with its folder on disk (kvstore/store.py).

Invariant: between saves the folder holds the state of the last one; a save writes the blocks that
changed since. Every token is stored with how it was run, so that the last token's logits, which
are not stored, can be computed again with the same bits.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from hga.kernels.system import keeps_name
from hga.kvstore.disk_arena import DiskArena
from hga.kvstore.errors import SessionError, StoreError
from hga.kvstore.geometry import BLOCK_TOKENS, n_blocks
from hga.kvstore.head import Fingerprint
from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import VERSION, BlockShape, xxh3

from .marks import DECODED, IN_A_PROMPT, begin_of_last
from .options import OptionError

if TYPE_CHECKING:
    from .engine import Engine
    from .session import Session

# The two highest bits of a stored word say how the token was run (marks.py).
_ID_BITS = 30
_MOST_NAME_BYTES = 64
_NAME = re.compile(r"\w[\w.+@-]*")


class _Text(msgspec.Struct):
    """What is stored beside the tokens: whether there were logits, and the caller's note."""

    logits: bool
    note: str


def session_folder(root: Path, name: str) -> Path:
    """The folder of a named session; OptionError where the name cannot be one."""
    if not _NAME.fullmatch(name) or len(name.encode()) > _MOST_NAME_BYTES:
        raise OptionError(
            f"invalid session name {name[:80]!r}: expected letters, digits, and . _ + @ - after the"
            f" first, at most {_MOST_NAME_BYTES} bytes"
        )
    if not keeps_name(name):
        raise OptionError(f"invalid session name {name!r}: this system gives files no such name")
    return root / name


def fingerprint(engine: "Engine", attention: str, budget: str, prefill: str) -> Fingerprint:
    """What shapes the values of a session; where any of it differs, they do not fit."""
    shapes = engine.geometry.layers
    template = engine.model.tokenizer.chat_template
    return {
        "format": VERSION,
        "model": engine.model.digest,
        "layers": len(shapes),
        "heads": xxh3(repr(shapes).encode()) % (1 << 32),
        "template": f"{xxh3(template.encode()):016x}" if template else "none",
        "sketch_bits": engine.geometry.sketch_bits,
        "kv_type": engine.options.kv_type,
        "attention": attention,
        "budget": budget,
        "prefill": prefill,
    }


def make_store(engine: "Engine", folder: Path, stamp: Fingerprint) -> SessionStore:
    """A folder for an empty session."""
    shape = BlockShape.of(engine.geometry)
    text, sums = encode_text(""), engine.sum_cells
    return SessionStore.create(folder, shape, stamp, text, sum_cells=sums)


class SavedSession:
    """The durable side of one session. Closed with the session."""

    def __init__(self, engine: "Engine", session: "Session", store: SessionStore) -> None:
        """session: empty, for `restore`, or of any length, over a store that is new."""
        self.store = store
        self._engine = engine
        self._session = session
        self.notices = list(store.notices)
        self.reused_tokens = 0
        self.open_s = 0.0
        self._text = _Text(False, "")
        session.n_unchanged = 0

    @property
    def name(self) -> str:
        """The session's name."""
        return self.store.name

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.store.folder

    @property
    def note(self) -> str:
        """The caller's text of the last save."""
        return self._text.note

    @property
    def disk_bytes(self) -> int:
        """What keys, values and sketches take on disk."""
        return self.store.disk_bytes

    def save(self, note: str | None = None) -> None:
        """Make the session durable with a text of the caller's (None: as last time).

        StoreError: it is on disk as the last save left it, and unchanged in memory.
        """
        session, store = self._session, self.store
        n_tokens, n_same = len(session.tokens), session.n_unchanged
        text = _Text(session.has_logits, self._text.note if note is None else note)
        stamp = fingerprint(self._engine, session.attention, session.budget, session.prefill)
        unchanged = text == self._text and stamp == dict(store.fingerprint)
        if n_tokens == n_same == store.n_tokens and unchanged:
            return
        if isinstance(session.arena, DiskArena):
            self._write_last(session.arena, n_tokens)
        else:
            first = n_same // BLOCK_TOKENS if n_tokens > n_same else n_blocks(n_tokens)
            for block in range(first, n_blocks(n_tokens)):
                kv, index = session.arena.block_kv(block), session.arena.block_index(block)
                store.write_block(block, kv, index)
        words = np.array(session.tokens, np.uint32)
        words |= np.frombuffer(bytes(session.marks), np.uint8).astype(np.uint32) << _ID_BITS
        store.commit(words, encode_text(text.note, text.logits), stamp)
        session.n_unchanged, self._text = n_tokens, text

    def _write_last(self, arena: DiskArena, n_tokens: int) -> None:
        """Write the last block as it is in memory; the arena has written those before it, and
        writes this one again when it is whole."""
        block, whole = n_blocks(n_tokens) - 1, n_tokens % BLOCK_TOKENS == 0
        if block < 0 or (whole and self.store.is_pending(block)):
            return
        self.store.begin_block(block)
        for layer in range(len(arena.geometry.layers)):
            self.store.write_layer(block, layer, arena.recent(layer, block))
        self.store.seal_block(block, arena.block_index(block))

    def move_to(self, folder: Path, note: str) -> None:
        """Save, then go on in a fork in another folder."""
        self.save()
        self.notices = self.store.fork(folder)
        self.store.close()
        self.store = SessionStore.open(folder, sum_cells=self._engine.sum_cells)
        self.save(note)

    def restore(self) -> None:
        """Bring back what was saved; `open_s` says how long it took. Raises StoreError where it
        does not fit in the context, SessionError where it is damaged."""
        begin = time.perf_counter()
        session = self._session
        words = self._checked_words()
        self._text = self._decode(self.store.meta)
        self._load_pages(words.size)
        ids, marks = _parted(words)
        # A card computes a token with what shares its block.
        forward = self._engine.forward_pass
        unit = forward.block_tokens if forward.on_card else 0
        first = begin_of_last(marks, unit) if self._text.logits and marks else len(marks)
        session.resume(ids, marks, first)
        session.n_unchanged = self.reused_tokens = words.size
        self.open_s = time.perf_counter() - begin

    def _load_pages(self, n_tokens: int) -> None:
        arena = self._session.arena
        if isinstance(arena, DiskArena):
            arena.restore(n_tokens)
            return
        arena.reserve(n_tokens)
        for block in range(n_blocks(n_tokens)):
            arena.load_index(block, self.store.read_index(block))
            arena.load_kv(block, self.store.read_block)

    def repair(self, report: Callable[[int, int], None]) -> int:
        """Compute keys and values again from the first damaged block on, in place of `restore`,
        and save; the number of tokens that were run. The store is one that was opened to salvage.

        Every token is run as it was, so that the result has the bits of the undamaged session.
        report: (tokens, all). Until the save the folder stays as it is. Raises as `restore`.
        """
        session, store = self._session, self.store
        words = self._checked_words()
        self._text = self._decode(store.meta)
        ids, marks = _parted(words)
        first = min(store.n_whole() * BLOCK_TOKENS, words.size)
        self._load_pages(first)
        store.truncate(first)
        session.resume(ids[:first], marks[:first], first)
        end = first
        while end < len(ids):
            at, end = end, end + 1
            if marks[at] == DECODED:
                session.step(ids[at])
            else:
                while end < len(ids) and marks[end] == IN_A_PROMPT:
                    end += 1
                session.feed(ids[at:end])
            report(end - first, len(ids) - first)
        # A prompt that was cut at a block has a call more now.
        session.marks, session.n_unchanged, self.reused_tokens = marks, first, first
        if first < len(ids):
            self.save()
        return len(ids) - first

    def _checked_words(self) -> NDArray[np.uint32]:
        store, engine, ctx = self.store, self._engine, self._session.ctx
        if store.shape != BlockShape.of(engine.geometry):
            raise SessionError(
                f"session {self.name!r}: its blocks have another shape: it is damaged"
            )
        words = store.tokens
        if words.size > ctx:
            raise StoreError(
                f"session {self.name!r} holds {words.size} tokens and the context {ctx}: "
                f"--ctx {words.size} or more opens it"
            )
        largest = int((words & np.uint32((1 << _ID_BITS) - 1)).max(initial=0))
        if largest >= engine.plan.vocab_size:
            raise SessionError(
                f"session {self.name!r}: token id {largest} is beyond the vocabulary of"
                f" {engine.plan.vocab_size}: it is damaged"
            )
        return words

    def _decode(self, meta: str) -> _Text:
        try:
            return msgspec.json.decode(meta, type=_Text)
        except msgspec.MsgspecError:
            raise SessionError(
                f"session {self.name!r}: its text is not what this version writes: it is damaged"
            ) from None

    def close(self) -> None:
        """Let others have it; what was not saved since is lost."""
        self.store.close()


def _parted(words: NDArray[np.uint32]) -> tuple[list[int], bytearray]:
    """Token ids, and how each was run, of stored words."""
    ids = words & np.uint32((1 << _ID_BITS) - 1)
    return ids.tolist(), bytearray((words >> _ID_BITS).astype(np.uint8).tobytes())


def note_of(meta: str) -> str:
    """The caller's note in the text of a commit; SessionError where there is none."""
    try:
        return msgspec.json.decode(meta, type=_Text).note
    except msgspec.MsgspecError:
        raise SessionError("its text is not what this version writes: it is damaged") from None


def encode_text(note: str, logits: bool = False) -> str:
    """The text of a commit; logits: whether the session had any after its last token."""
    return msgspec.json.encode(_Text(logits, note)).decode()
