"""`hga sessions repair`: keys and values that are damaged, computed again from the saved tokens."""

import argparse
import shlex

from hga.kvstore import store_folder
from hga.kvstore.errors import PagesError
from hga.runtime.saved import session_folder
from hga.tools.errors import OK
from hga.tools.sessions import sessions_folder
from hga.tools.status import Status

# What a session's fingerprint states and the command takes from it.
_STATED = ("attention", "budget", "prefill", "sketch_bits", "kv_type")


def repair(values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    name = values.operand_name
    folder = session_folder(sessions_folder(values.kv_dir), name)
    if not store_folder.is_session(folder):
        raise FileNotFoundError(2, f"no session {name!r} in {folder.parent}")
    head = store_folder.peek(folder)
    for key in _STATED:
        stated = head.fingerprint.get(key)
        setattr(values, key, stated if isinstance(stated, int) else str(stated))
    values.device = "cpu"
    # A session may be longer than what its model was trained on.
    values.ctx = values.ctx or max(head.n_tokens, 1)
    from hga.runtime.repair import repair_session
    from hga.tools.run import engine_options, open_engine

    with (
        open_engine(values.operand_model, engine_options(values), values, status) as engine,
        status.bar("computing again", "tokens") as report,
    ):
        done = repair_session(engine, name, head.fingerprint, report)
    for notice in done.notices:
        status.notice(notice)
    if done.n_run:
        status.notice(
            f"session {name!r}: {done.n_run:,} of {done.n_tokens:,} tokens were computed again"
        )
    else:
        status.notice(f"session {name!r}: all {done.n_tokens:,} tokens are whole, nothing to do")
    return OK


def advised(error: PagesError, name: str, model: str | None, kv_dir: str | None) -> PagesError:
    """The same error with the command that helps."""
    words = ["hga", "sessions", "repair", name, model or "demo"]
    words += [] if kv_dir is None else ["--kv-dir", kv_dir]
    return PagesError(f"{error} (its tokens are kept: {shlex.join(words)} computes it again)")
