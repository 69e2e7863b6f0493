"""Repair: keys and values of a named session computed again where they are damaged.

What a session cannot do without are its heads and its tokens; everything else follows from them.
Invariant: until all of it is computed the folder stays as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hga.kvstore.head import Fingerprint
from hga.kvstore.store import SessionStore

from .saved import SavedSession, fingerprint, session_folder
from .session import Session

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True, slots=True)
class Repaired:
    """Tokens of the session, those of them that were run again, and what was wrong with whole
    files."""

    n_tokens: int
    n_run: int
    notices: tuple[str, ...]


def repair_session(
    engine: "Engine", name: str, stored: Fingerprint, report: Callable[[int, int], None]
) -> Repaired:
    """Repair a session; `stored` is its fingerprint, which tells how it attends.

    The engine has to be of the same model and settings. report: (tokens, all) that are run again.
    Raises as Engine.session does: FileNotFoundError, StoreError where it is in use, SessionError
    where head or tokens are damaged.
    """
    attention, budget = str(stored.get("attention")), str(stored.get("budget"))
    stamp = fingerprint(engine, attention, budget, engine.options.prefill)
    folder = session_folder(engine.sessions_dir, name)
    store = SessionStore.open(folder, stamp, salvage=True, sum_cells=engine.sum_cells)
    try:
        session = Session(engine, engine.new_arena(store), attention, budget)
    except BaseException:
        store.close()
        raise
    with session:
        session.saved = SavedSession(engine, session, store)
        n_run = session.saved.repair(report)
        return Repaired(len(session.tokens), n_run, tuple(store.notices))
