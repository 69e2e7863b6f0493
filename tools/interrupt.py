"""Ctrl-C while a reply is produced: the first is a request that the loop polls, the second ends
the program.

Invariant: outside the `with` block the process's own SIGINT handler is in place.
"""

import contextlib
import signal
import socket
import threading
from types import FrameType, TracebackType


class SecondInterrupt(KeyboardInterrupt):
    """Ctrl-C was pressed again before the first had taken effect."""


class Interrupt:
    """`requested` turns true at the first SIGINT; a second raises SecondInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._installed = False

    def __enter__(self) -> "Interrupt":
        self.requested = False
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            # Signals that arrive during one compiled call reach the handler as one: the bytes
            # that the interpreter writes here count them.
            self._counter, told = socket.socketpair()
            self._counter.setblocking(False)
            told.setblocking(False)
            self._told = told
            self._wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            signal.set_wakeup_fd(self._wakeup)
            self._told.close()
            self._counter.close()
            self._installed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        came = b""
        with contextlib.suppress(BlockingIOError):
            came = self._counter.recv(4096)
        if self.requested or came.count(number) > 1:
            raise SecondInterrupt
        self.requested = True
