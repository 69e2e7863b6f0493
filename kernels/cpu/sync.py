"""Atomics, a barrier and calls by address: what kernels that share work between threads need.

A waiting thread spins a bounded number of times and then yields its time slice at every look, so
that a busy foreign process costs a slice and not a stall.
"""

import ctypes
import sys
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from hga.kernels.system import MACHINE

_I64 = ir.IntType(64)
_VOID = ir.VoidType()

# About 20 us of pauses: longer than any imbalance between threads of a quiet machine.
SPINS = 2000


def _bind_system_calls() -> None:
    """Give LLVM the addresses of the system's calls to yield and to sleep."""
    if sys.platform == "win32":
        kernel32 = ctypes.WinDLL("kernel32")
        functions = {"hga_yield": kernel32.SwitchToThread, "hga_sleep": kernel32.Sleep}
    else:
        libc = ctypes.CDLL(None)
        functions = {"hga_yield": libc.sched_yield, "hga_sleep": libc.usleep}
    for name, function in functions.items():
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        binding.add_symbol(name, address)


_bind_system_calls()
# hga_sleep counts microseconds (usleep) or milliseconds (Sleep).
MILLISECOND = 1 if sys.platform == "win32" else 1000


@intrinsic
def atomic_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at address; returns the value before."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", b.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_load(typing: Any, address: Any) -> Any:
    """The int64 at address, ordered before later reads and after this thread's atomic writes."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        # Who tells of an event and then looks for sleepers, and who counts himself asleep and then
        # looks for the event, must not both miss the other: an "acquire" load may pass an earlier
        # atomic write on ARM (ldapr). On x86 both are one plain load.
        return b.load_atomic(b.inttoptr(args[0], _I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def atomic_store(typing: Any, address: Any, value: Any) -> Any:
    """Write the int64 at address after all earlier writes."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        b.store_atomic(args[1], b.inttoptr(args[0], _I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def pause(typing: Any) -> Any:
    """Tell the core that this is a waiting loop."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        if MACHINE == "x86_64":
            kind = ir.FunctionType(_VOID, [])
            b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.x86.sse2.pause"), [])
        elif MACHINE == "aarch64":
            # `yield` is no instruction at all on most cores; a barrier of instructions takes about
            # as long as the pause of x86.
            i32 = ir.IntType(32)
            kind = ir.FunctionType(_VOID, [i32])
            isb = cgutils.get_or_insert_function(b.module, kind, "llvm.aarch64.isb")
            b.call(isb, [ir.Constant(i32, 15)])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def yield_thread(typing: Any) -> Any:
    """Give the rest of the time slice to another thread."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        b.call(cgutils.get_or_insert_function(b.module, kind, "hga_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def sleep(typing: Any, duration: Any) -> Any:
    """Sleep for a multiple of MILLISECOND."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        i32 = ir.IntType(32)
        kind = ir.FunctionType(i32, [i32])
        call = cgutils.get_or_insert_function(b.module, kind, "hga_sleep")
        b.call(call, [b.trunc(args[0], i32)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def call_kernel(typing: Any, kernel: Any, thread: Any, n_threads: Any, params: Any) -> Any:
    """Call the kernel at an address: void (int64 thread, int64 n_threads, int64 params)."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VOID, [_I64, _I64, _I64])
        b.call(b.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def as_pointer(typing: Any, address: Any) -> Any:
    """An int64 address as the void pointer that numba.carray takes."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@njit(nogil=True)
def share(n: int, thread: int, n_threads: int) -> tuple[int, int]:
    """A thread's part start..end of n items."""
    return n * thread // n_threads, n * (thread + 1) // n_threads


@njit(nogil=True)
def wait_at_least(address: int, value: int) -> None:
    """Wait until the int64 at address reaches value."""
    spins = 0
    while atomic_load(address) < value:
        if spins < SPINS:
            pause()
            spins += 1
        else:
            yield_thread()


@njit(nogil=True)
def barrier(counter: int, n_threads: int, phase: int) -> int:
    """Wait for all threads; returns the phase to pass next time (the first is 1).

    counter: address of an int64 that was 0 when the kernel began.
    """
    if n_threads > 1:
        atomic_add(counter, 1)
        wait_at_least(counter, phase * n_threads)
    return phase + 1
