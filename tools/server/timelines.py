"""Timelines: the sessions that a server keeps, so that a prompt that begins like an earlier one
computes only the rest.

All of them together hold at most the context's tokens, which is what the memory bill counts.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hga.runtime.engine import Engine
    from hga.runtime.session import Session

# Where keys and values lie on disk every session has frames of its own.
_IN_MEMORY, _ON_DISK = 4, 1


class Timelines:
    """Sessions, the least recently used first. For one thread."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._most = _ON_DISK if engine.placement.on_disk else _IN_MEMORY
        self._sessions: list[Session] = []

    def best(self, ids: list[int], room: int) -> "Session":
        """The session to run a prompt in, with what it shares already in place and room tokens
        free behind it; the caller feeds the rest. At least the last id is left to be run."""
        session = self._choose(ids)
        self._sessions.remove(session)
        self._sessions.append(session)
        session.truncate(min(session.fork_point(ids), len(ids) - 1))
        free = self._engine.ctx - len(ids) - room
        for other in self._sessions[:-1]:
            if sum(len(s.tokens) for s in self._sessions[:-1]) <= free:
                break
            other.truncate(0)
        return session

    def _choose(self, ids: list[int]) -> "Session":
        shared = [(session.fork_point(ids), session) for session in self._sessions]
        found = max(shared, key=lambda pair: pair[0], default=(0, None))
        n, session = found
        # A session of which most would be lost is left to whoever goes on with it.
        if session is not None and n > 0 and 2 * n >= len(session.tokens):
            return session
        for session in self._sessions:
            if not session.tokens:
                return session
        if len(self._sessions) < self._most:
            self._sessions.append(self._engine.session())
            return self._sessions[-1]
        return self._sessions[0]

    @property
    def n_tokens(self) -> int:
        """Tokens of all sessions."""
        return sum(len(session.tokens) for session in self._sessions)

    def close(self) -> None:
        """Free the keys and values of all."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()
