"""Signals: Ctrl-C while a reply is produced is first a request that the loop polls, the second ends
the program; SIGTERM and SIGHUP end it in order, with what there is of a reply kept.

Invariant: outside the `with` blocks the process's own handlers are in place.
"""

import _thread
import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

# Windows has no SIGHUP.
_ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

_AGAIN_S = 0.02


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, `number`: the program ends as it does after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(number)


class _Swallowed:
    """The interpreter's hook for exceptions that cannot be raised where they came up: a signal that
    arrives within a finalizer (of a kernel being loaded, say) would be lost there, with a traceback
    for all effect. It is sent once more, a moment later, and what it has left half done is not
    told."""

    def __init__(self, told: Callable[[Any], object]) -> None:
        self._told, self._lost = told, False

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if isinstance(error, KeyboardInterrupt):
            self._lost = True
            number = error.number if isinstance(error, Terminated) else signal.SIGINT
            timer = threading.Timer(_AGAIN_S, _thread.interrupt_main, (number,))
            timer.daemon = True
            timer.start()
        elif not self._lost:
            self._told(unraisable)


@contextlib.contextmanager
def endings() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP raise Terminated; one that is ignored (nohup)
    stays so."""
    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [n for n in _ENDINGS if signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _terminate)
    hook, sys.unraisablehook = sys.unraisablehook, _Swallowed(sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class SecondInterrupt(KeyboardInterrupt):
    """Ctrl-C was pressed again before the first had taken effect."""


class Interrupt:
    """`requested` turns true at the first signal; a second SIGINT raises SecondInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._installed = False
        self._ending: int | None = None

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
            self._deferred = [n for n in _ENDINGS if signal.getsignal(n) is _terminate]
            for number in self._deferred:
                signal.signal(number, self._end)
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
            for number in self._deferred:
                signal.signal(number, _terminate)
            signal.set_wakeup_fd(self._wakeup)
            self._told.close()
            self._counter.close()
            self._installed = False

    def obey(self) -> None:
        """Raise Terminated where SIGTERM or SIGHUP came within the block."""
        if self._ending is not None:
            raise Terminated(self._ending)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.requested, self._ending = True, number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        came = b""
        with contextlib.suppress(BlockingIOError):
            came = self._counter.recv(4096)
        if self.requested or came.count(number) > 1:
            raise SecondInterrupt
        self.requested = True
