"""SavedSession: what connects a session in memory with its folder on disk (kvstore/store.py).

Invariant: between saves the folder holds the state of the last one; a save writes the blocks that
changed since. Every token is stored with how it was run, so that the last token's logits, which
are not stored, can be computed again with the same bits.
"""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from hga.kvstore.errors import SessionError, StoreError
from hga.kvstore.geometry import BLOCK_TOKENS, CHUNK_TOKENS, n_blocks
from hga.kvstore.head import Fingerprint
from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import VERSION, BlockShape, xxh3

from .options import OptionError

if TYPE_CHECKING:
    from .engine import Engine
    from .session import Session

# How a token was run; in the two highest bits of its stored word.
IN_A_PROMPT, DECODED, FIRST_OF_A_CALL = 0, 1, 2
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
    return root / name


def fingerprint(engine: "Engine", session: "Session") -> Fingerprint:
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
        "attention": session.attention,
        "budget": session.budget,
        "prefill": session.prefill,
    }


class SavedSession:
    """The durable side of one session; made by `open`. Closed with the session."""

    def __init__(self, engine: "Engine", session: "Session", store: SessionStore) -> None:
        self._engine = engine
        self._session = session
        self._store = store
        self.notices = store.notices
        self.reused_tokens = 0
        self.open_s = 0.0
        self._text = _Text(False, "")

    @classmethod
    def open(cls, engine: "Engine", session: "Session", folder: Path, new: bool) -> "SavedSession":
        """Restore an empty session from a folder, or make the folder for a session of any length
        (`new`). Raises StoreError, SessionError where it does not fit or is damaged, and
        FileNotFoundError."""
        begin = time.perf_counter()
        stamp = fingerprint(engine, session)
        if new:
            shape = BlockShape.of(engine.geometry)
            saved = cls(engine, session, SessionStore.create(folder, shape, stamp, encode_text("")))
            session.n_unchanged = 0
            return saved
        saved = cls(engine, session, SessionStore.open(folder, stamp))
        try:
            saved._restore()
        except BaseException:
            saved.close()
            raise
        saved.open_s = time.perf_counter() - begin
        return saved

    @property
    def name(self) -> str:
        """The session's name."""
        return self._store.name

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._store.folder

    @property
    def note(self) -> str:
        """The caller's text of the last save."""
        return self._text.note

    @property
    def disk_bytes(self) -> int:
        """What keys, values and sketches take on disk."""
        return self._store.disk_bytes

    def save(self, note: str | None = None) -> None:
        """Make the session durable with a text of the caller's (None: as last time).

        StoreError: it is on disk as the last save left it, and unchanged in memory.
        """
        session, store = self._session, self._store
        n_tokens, n_same = len(session.tokens), session.n_unchanged
        has_logits = session.has_logits
        text = _Text(has_logits, self._text.note if note is None else note)
        stamp = fingerprint(self._engine, session)
        if (
            n_tokens == n_same == store.n_tokens
            and text == self._text
            and stamp == dict(store.fingerprint)
        ):
            return
        first = n_same // BLOCK_TOKENS if n_tokens > n_same else n_blocks(n_tokens)
        for block in range(first, n_blocks(n_tokens)):
            store.write_block(
                block, session.arena.block_kv(block), session.arena.block_index(block)
            )
        words = np.array(session.tokens, np.uint32)
        words |= np.frombuffer(bytes(session.marks), np.uint8).astype(np.uint32) << _ID_BITS
        store.commit(words, encode_text(text.note, has_logits), stamp)
        session.n_unchanged, self._text = n_tokens, text

    def move_to(self, folder: Path, note: str) -> list[str]:
        """Save, then go on in a fork of that name; returns what the user should know."""
        self.save()
        notices = self._store.fork(folder)
        self._store.close()
        self._store = SessionStore.open(folder)
        self.save(note)
        return notices

    def _restore(self) -> None:
        session, store, engine = self._session, self._store, self._engine
        if store.shape != BlockShape.of(engine.geometry):
            raise SessionError(
                f"session {self.name!r}: its blocks have another shape: it is damaged"
            )
        words = store.tokens
        if words.size > session.ctx:
            raise StoreError(
                f"session {self.name!r} holds {words.size} tokens and the context {session.ctx}: "
                f"--ctx {words.size} or more opens it"
            )
        ids = words & np.uint32((1 << _ID_BITS) - 1)
        if words.size and int(ids.max()) >= engine.plan.vocab_size:
            raise SessionError(
                f"session {self.name!r}: token id {ids.max()} is beyond the vocabulary of"
                f" {engine.plan.vocab_size}: it is damaged"
            )
        self._text = self._decode(store.meta)
        session.arena.reserve(words.size)
        for block in range(n_blocks(words.size)):
            session.arena.load_index(block, store.read_index(block))
            store.read_block(block, session.arena.block_kv(block))
        session.resume(ids.tolist(), (words >> _ID_BITS).astype(np.uint8).tobytes())
        if self._text.logits and words.size:
            _compute_logits(session)
        session.n_unchanged = self.reused_tokens = words.size

    def _decode(self, meta: str) -> _Text:
        try:
            return msgspec.json.decode(meta, type=_Text)
        except msgspec.MsgspecError:
            raise SessionError(
                f"session {self.name!r}: its text is not what this version writes: it is damaged"
            ) from None

    def close(self) -> None:
        """Let others have it; what was not saved since is lost."""
        self._store.close()


def note_of(meta: str) -> str:
    """The caller's note in the text of a commit; SessionError where there is none."""
    try:
        return msgspec.json.decode(meta, type=_Text).note
    except msgspec.MsgspecError:
        raise SessionError("its text is not what this version writes: it is damaged") from None


def encode_text(note: str, logits: bool = False) -> str:
    """The text of a commit; logits: whether the session had any after its last token."""
    return msgspec.json.encode(_Text(logits, note)).decode()


def _compute_logits(session: "Session") -> None:
    """Run the last token again as it was run. A prompt's is run with what shares its unit of 64
    tokens, which a routed prompt attends alike."""
    marks: NDArray[np.uint8] = np.frombuffer(bytes(session.marks), np.uint8)
    last = marks.size - 1
    begin = last
    if marks[last] != DECODED:
        starts = np.flatnonzero(marks[: last + 1] != IN_A_PROMPT)
        begin = max(int(starts[-1]) if starts.size else 0, last // CHUNK_TOKENS * CHUNK_TOKENS)
    session.run_again(begin)
