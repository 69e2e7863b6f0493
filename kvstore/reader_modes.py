"""Which way the reader reads: what was asked for, if it can be had, else threads, and why."""

import errno
import functools
from collections.abc import Callable
from dataclasses import dataclass

from hga.kernels import system

from . import reader_backends as backends
from .reader_uring import Ring, serve_uring

MODES = ("auto", "threads", "uring", "mmap")
# Threads that read in Python take turns for the interpreter: more of them add nothing.
_PYTHON_THREADS = 4


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Way:
    """A mode as it was obtained, what each of its threads runs, and what to call after them."""

    mode: str
    n_threads: int
    serve: Callable[[backends.Queue], None]
    close: Callable[[], None] = _nothing


def choose(mode: str, n_threads: int, has_preadv: bool, note: Callable[[str], None]) -> Way:
    """The way of a mode of MODES; `note` is told what it lacks.

    "auto" is "threads": they read more a second than one Python thread with a full io_uring, and
    leave the interpreter alone (docs/decisions/0007-kv-on-disk.md).
    """
    if mode == "uring":
        ring = _open_ring(note)
        if ring is not None:
            return Way("uring", 1, functools.partial(serve_uring, ring=ring), ring.close)
    python_threads = max(1, min(n_threads, _PYTHON_THREADS))
    if mode == "mmap":
        if system.asks_for_pages():
            return Way("mmap", python_threads, backends.serve_mmap)
        note("files are not mapped, threads read instead: there is no MADV_WILLNEED")
    if has_preadv:
        return Way("threads", n_threads, backends.serve_preadv)
    note("reads go through the interpreter: this system has no preadv")
    return Way("threads", python_threads, backends.serve_python)


def _open_ring(note: Callable[[str], None]) -> Ring | None:
    try:
        return Ring()
    except (ImportError, AttributeError) as error:
        reason = f"the package liburing is not installed or not usable ({error})"
    except OSError as error:
        reason = f"the system refuses it ({error.strerror or error})"
        if error.errno == errno.ENOMEM:
            reason += "; more lockable memory helps (ulimit -l)"
    note(f"io_uring is not used, threads read instead: {reason}")
    return None
