"""Calls of the operating system from compiled code, by address, and the atomics that they need.

The addresses stand in the control block of whoever calls (io_slots.py): so tests can put a faulty
disk in their place, and a platform that lacks one has 0 there.
"""

import ctypes
import sys
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from hga.kernels.system import futex_number

from .sync import yield_thread

JIT = {"nogil": True, "error_model": "numpy"}

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129


def functions() -> tuple[int, int, int, int, int, int]:
    """Addresses of preadv, errno's place and syscall, futex's number, the address of clock_gettime
    and its clock's number; 0 where there is none."""
    if sys.platform == "win32":
        return 0, 0, 0, 0, 0, 0
    libc = ctypes.CDLL(None)

    def address(name: str) -> int:
        function = getattr(libc, name, None)
        return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0

    linux = sys.platform == "linux"
    futex = futex_number()
    syscall = address("syscall") if futex else 0
    place = address("__errno_location") or address("__error")
    # The monotonic clock's number on Linux and on macOS.
    return address("preadv"), place, syscall, futex, address("clock_gettime"), 1 if linux else 6


def _pointer(b: Any, address: Any) -> Any:
    return b.inttoptr(address, _I64.as_pointer())


@intrinsic
def atomic_exchange(typing: Any, address: Any, value: Any) -> Any:
    """Write the int64 at address; returns the value before."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("xchg", _pointer(b, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def compare_exchange(typing: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write the int64 at address if it is the expected one; whether it was."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        pair = b.cmpxchg(_pointer(b, args[0]), args[1], args[2], "seq_cst", "seq_cst")
        return b.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


def stack(n_bytes: int) -> Any:
    """An intrinsic that returns the address of n_bytes on the stack of the calling function."""

    @intrinsic
    def reserve(typing: Any) -> Any:
        def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
            room = cgutils.alloca_once(b, ir.ArrayType(_I64, -(-n_bytes // 8)))
            return b.ptrtoint(room, _I64)

        return types.int64(), generate

    return reserve


_timespec = stack(16)


@intrinsic
def call_preadv(
    typing: Any, function: Any, fd: Any, vectors: Any, n_vectors: Any, offset: Any
) -> Any:
    """preadv(fd, vectors, n_vectors, offset)."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I32, _I64, _I32, _I64])
        call = b.inttoptr(args[0], kind.as_pointer())
        return b.call(call, [b.trunc(args[1], _I32), args[2], b.trunc(args[3], _I32), args[4]])

    return types.int64(*[types.int64] * 5), generate


@intrinsic
def call_errno(typing: Any, function: Any) -> Any:
    """The calling thread's errno."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I32.as_pointer(), [])
        place = b.call(b.inttoptr(args[0], kind.as_pointer()), [])
        return b.sext(b.load(place), _I64)

    return types.int64(types.int64), generate


@intrinsic
def call_clock(typing: Any, function: Any, clock_id: Any, timespec: Any) -> Any:
    """clock_gettime(clock_id, timespec)."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I32, [_I32, _I64])
        call = b.inttoptr(args[0], kind.as_pointer())
        return b.sext(b.call(call, [b.trunc(args[1], _I32), args[2]]), _I64)

    return types.int64(*[types.int64] * 3), generate


@intrinsic
def call_futex(
    typing: Any, function: Any, number: Any, address: Any, op: Any, value: Any, timeout: Any
) -> Any:
    """syscall(futex, address, op, value, timeout)."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64], var_arg=True)
        call = b.inttoptr(args[0], kind.as_pointer())
        return b.call(call, [*args[1:], ir.Constant(_I64, 0), ir.Constant(_I64, 0)])

    return types.int64(*[types.int64] * 6), generate


@intrinsic
def _store(typing: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store(args[1], _pointer(b, args[0]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.load(_pointer(b, args[0]))

    return types.int64(types.int64), generate


@njit(**JIT)
def now_ns(clock: int, clock_id: int) -> int:
    """Nanoseconds of a clock that never goes back; 0 where there is none."""
    if clock == 0:
        return 0
    timespec = _timespec()
    call_clock(clock, clock_id, timespec)
    time: int = _load(timespec) * 1_000_000_000 + _load(timespec + 8)
    return time


@njit(**JIT)
def sleep_on(syscall: int, futex: int, address: int, value: int, timeout_ns: int) -> None:
    """Sleep until another thread calls `wake` for the address, the low half of the int64 there is
    not `value`, or the time is over; may return for no reason."""
    if syscall == 0:
        yield_thread()
        return
    timespec = _timespec()
    _store(timespec, timeout_ns // 1_000_000_000)
    _store(timespec + 8, timeout_ns % 1_000_000_000)
    call_futex(syscall, futex, address, _WAIT_PRIVATE, value, timespec)


@njit(**JIT)
def wake(syscall: int, futex: int, address: int, n_threads: int) -> None:
    """Wake up to n_threads that sleep on the address."""
    if syscall != 0:
        call_futex(syscall, futex, address, _WAKE_PRIVATE, n_threads, 0)
