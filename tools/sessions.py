"""Saved conversations: `hga sessions`, and inspect and verify of a session folder.

A look at a session reads its head alone, without the lock, so it works beside the process that
has the session; verify and fork need it for themselves.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hga.kvstore import store_folder
from hga.kvstore.errors import SessionError
from hga.kvstore.head import Head
from hga.kvstore.store import SessionStore
from hga.runtime.saved import encode_text, note_of, session_folder
from hga.tools import conversation_state as states
from hga.tools.errors import OK, UsageError, message, one_line, printable
from hga.tools.folders import cache_folder, expand, state_folder
from hga.tools.reply_writer import shown
from hga.tools.status import Status, size

Progress = Callable[[int, int], None]


def sessions_folder(kv_dir: str | None) -> Path:
    """Where named sessions are."""
    return expand(kv_dir) if kv_dir is not None else state_folder() / "sessions"


@dataclass(frozen=True, slots=True)
class Found:
    """A session as its head states it; `error` where it cannot be read. n_bytes: what it takes on
    the disk, what it shares with forks included; modified: seconds since 1970."""

    folder: Path
    n_bytes: int
    modified: float
    head: Head | None = None
    state: states.State | None = None
    error: str | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The figures for --json."""
        return {
            "name": self.folder.name,
            "path": str(self.folder),
            "tokens": self.head.n_tokens if self.head else None,
            "turns": len(self.state.turns) if self.state else None,
            "nbytes": self.n_bytes,
            "modified": _date("%Y-%m-%dT%H:%M:%SZ", time.gmtime, self.modified),
            "fingerprint": dict(self.head.fingerprint) if self.head else None,
            "error": self.error,
        }


def look(folder: Path) -> Found:
    """What a session folder holds; FileNotFoundError where it is none."""
    if not store_folder.is_session(folder):
        raise FileNotFoundError(
            2, f"no session {folder.name!r} in {folder.parent} (hga sessions lists them)"
        )
    n_bytes, modified = _weigh(folder)
    head = None
    try:
        head = store_folder.peek(folder)
        note = note_of(head.meta)
        state = states.decode(note, head.n_tokens, 1 << 30) if note else None
    except OSError as error:
        return Found(folder, n_bytes, modified, head, error=message(error))
    return Found(folder, n_bytes, modified, head, state)


def _weigh(folder: Path) -> tuple[int, float]:
    """What a folder's files take on the disk, and the time of the newest. Another process may
    remove one while we look."""
    n_bytes, dates = 0, []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            found = path.lstat()
            n_bytes += getattr(found, "st_blocks", found.st_size // 512) * 512
            dates.append(found.st_mtime)
    return n_bytes, max(dates, default=0.0)


def _date(form: str, convert: Callable[[float], time.struct_time], seconds: float) -> str | None:
    """A time as text; None where a clock that was wrong, or a file that came from elsewhere, says
    what no calendar has."""
    try:
        return time.strftime(form, convert(seconds))
    except (ValueError, OverflowError, OSError):
        return None


def look_all(root: Path) -> list[Found]:
    """The sessions of a folder, the one used last first."""
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        # One that goes, or that may not be read, is no reason to show none of the others.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if folder.name[0] != ".":
                found.append(look(folder))
    return sorted(found, key=lambda each: (-each.modified, each.folder.name))


def table(found: list[Found]) -> list[str]:
    """A line for each session."""
    # A name is any bytes but a slash: it must not steer a terminal.
    names = [printable(each.folder.name.replace("\n", "\\n")) for each in found]
    width = max([4, *map(len, names)])
    lines = [f"{'name':{width}}  {'tokens':>9}  {'turns':>5}  {'size':>9}  last used"]
    for name, each in zip(names, found, strict=True):
        used = _date("%Y-%m-%d %H:%M", time.localtime, each.modified) or "unknown"
        if each.error is not None or each.head is None:
            lines.append(f"{name:{width}}  {each.error}")
            continue
        turns = "-" if each.state is None else f"{len(each.state.turns):,}"
        lines.append(
            f"{name:{width}}  {each.head.n_tokens:9,}  {turns:>5}  {size(each.n_bytes):>9}  {used}"
        )
    return lines


def describe_lines(found: Found) -> list[str]:
    """What is in a session, for people."""
    lines = [f"{found.folder}: session, {size(found.n_bytes)}"]
    if found.head is None or found.error is not None:
        return [*lines, f"damaged       {found.error}"]
    head = found.head
    turns = "no conversation"
    if found.state is not None:
        turns = f"{len(found.state.turns)} turn{'' if len(found.state.turns) == 1 else 's'}"
    segments = [f"{entry.name} ({entry.n_slots} slots)" for entry in head.segments.values()]
    return [
        *lines,
        f"tokens        {head.n_tokens:,}, {turns}, save {head.generation}",
        f"blocks        {len(head.blocks)} of 128 tokens, {size(head.shape.block_bytes)} each",
        f"segments      {', '.join(segments) or 'none yet'}",
        *(f"{key:13} {value}" for key, value in head.fingerprint.items()),
    ]


def verify_session(folder: Path, progress: Progress | None = None) -> str:
    """Check every checksum of a session; a sentence that says what was. Raises SessionError at
    the first that is wrong, StoreError where another process has the session."""
    from hga.kernels import ops

    look(folder)
    ops.choose_cpu(cache_folder() / "kernels")
    with SessionStore.open(folder) as store:
        n_blocks = store.verify(progress)
        note = note_of(store.meta)
        if note:
            states.decode(note, store.n_tokens, 1 << 30)
        notices = "".join(f" ({notice})" for notice in store.notices)
        return (
            f"{folder}: head, {store.n_tokens:,} tokens, index and all "
            f"{n_blocks * store.shape.n_cells:,} cells of keys and values match their checksums"
            f"{notices}"
        )


def sessions(task: str, values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    root = sessions_folder(values.kv_dir)
    if task == "list":
        return _list(root, values.json)
    if task == "show":
        return _show(session_folder(root, values.operand_name), values.json)
    if task == "rm":
        for name in values.operand_names:
            store_folder.remove(session_folder(root, name))
            status.notice(f"session {name!r} is removed")
        return OK
    old, new = values.operand_name, values.operand_new
    said = fork(session_folder(root, old), session_folder(root, new), values.turns)
    for line in said:
        status.notice(line)
    return OK


def fork(old: Path, new: Path, n_turns: int | None) -> list[str]:
    """A session of the first turns (None: all of them) of another; what to tell the user."""
    look(old)
    with SessionStore.open(old) as store:
        note, n_tokens, meta = note_of(store.meta), store.n_tokens, store.meta
        if n_turns is not None:
            if not note:
                raise UsageError(f"session {old.name!r} holds no conversation: leave out --turns")
            state = states.decode(note, n_tokens, 1 << 30)
            if n_turns > len(state.turns):
                raise UsageError(
                    f"session {old.name!r} has {len(state.turns)} turns: not {n_turns}"
                )
            if n_turns < len(state.turns):
                before = states.tokens_before(state, n_turns)
                if before is None:
                    raise UsageError(
                        f"session {old.name!r}: the chat template rewrote what came before: only "
                        "all of it can be forked (leave out --turns)"
                    )
                n_tokens = before
                meta = encode_text(states.encode(states.first_turns(state, n_turns)))
        notices = store.fork(new, n_tokens, meta)
    return [*notices, f"session {new.name!r} begins with {n_tokens:,} tokens of {old.name!r}"]


def _list(root: Path, as_json: bool) -> int:
    found = look_all(root)
    if as_json:
        print(json.dumps({"path": str(root), "sessions": [each.data for each in found]}))
    elif found:
        print("\n".join(table(found)))
    else:
        print(f"no sessions in {root}")
    return OK


def _show(folder: Path, as_json: bool) -> int:
    found = look(folder)
    if found.error is not None:
        raise SessionError(found.error)
    state = found.state
    turns = [] if state is None else [(turn.user, turn.reply) for turn in state.turns]
    if as_json:
        messages = [{"user": user, "assistant": reply} for user, reply in turns]
        system = None if state is None else state.system
        print(json.dumps({**found.data, "system": system, "messages": messages}))
        return OK
    lines = describe_lines(found)
    if state is not None and state.system:
        lines.append(f"system        {one_line(state.system)}")
    for user, reply in turns:
        lines += ["", *(f"> {line}" for line in user.splitlines()), reply]
    print(shown("\n".join(lines)))
    return OK
