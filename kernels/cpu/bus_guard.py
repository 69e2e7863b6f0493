"""A mapped file that is cut while it is read: zeros in place of the signal that ends the process.

Reading a mapped page past the end of its file raises SIGBUS in the thread that reads. The handler
here maps a page of zeros there and lets the thread go on; what was read is wrong, and whoever
mapped the file looks afterwards whether it changed (runtime/container.py). Compiled, since the
signal comes within compiled code that must not wait for the interpreter.
"""

import ctypes
import mmap
import signal
import sys
from typing import Any

from llvmlite import ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from hga.kernels.system import MACHINE

_I32, _I64 = ir.IntType(32), ir.IntType(64)
# struct siginfo of 64-bit Linux: the code and the address. These numbers and structures are the
# same on all its architectures but MIPS, SPARC and Alpha; tried on the ones named here.
_MACHINES = ("x86_64", "aarch64")
_CODE_AT, _ADDRESS_AT = 8, 16
# The page exists in the mapping and not in the file; other codes are failures of the memory.
_BUS_ADRERR = 2
_PROT_READ = 1
# Fixed, private, anonymous.
_MAP_FLAGS = 0x10 | 0x02 | 0x20
_SA_SIGINFO, _SA_NODEFER, _SA_ONSTACK = 4, 0x40000000, 0x08000000
_PAGE_BYTES = mmap.PAGESIZE


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    """The int32 at an address."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.load(b.inttoptr(args[0], _I32.as_pointer()))

    return types.int32(types.int64), generate


@intrinsic
def _load_wide(typing: Any, address: Any) -> Any:
    """The int64 at an address."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return b.load(b.inttoptr(args[0], _I64.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def _map_zeros(typing: Any, address: Any) -> Any:
    """Put a page of zeros at a page's address; where it lies, or -1."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64, _I64, _I32, _I32, _I32, _I64])
        call = cgutils.get_or_insert_function(b.module, kind, "mmap")
        size, offset = ir.Constant(_I64, _PAGE_BYTES), ir.Constant(_I64, 0)
        numbers = [ir.Constant(_I32, n) for n in (_PROT_READ, _MAP_FLAGS, -1)]
        return b.call(call, [args[0], size, *numbers, offset])

    return types.int64(types.int64), generate


@intrinsic
def _leave_to_the_system(typing: Any, number: Any) -> Any:
    """Take the handler away, so that the signal does what it would have done."""

    def generate(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I32, _I64])
        call = cgutils.get_or_insert_function(b.module, kind, "signal")
        return b.call(call, [args[0], ir.Constant(_I64, 0)])

    return types.int64(types.int32), generate


def is_available() -> bool:
    """Whether the handler knows this system's structures."""
    return sys.platform == "linux" and MACHINE in _MACHINES


class _Action(ctypes.Structure):
    """struct sigaction of 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def install() -> bool:
    """Take the signal from now on; False where that is not possible and a cut file ends the
    process."""
    if sys.platform == "win32" or not is_available():
        return False

    @cfunc(types.void(types.int32, types.int64, types.int64), cache=True)
    def handle(number: int, info: int, context: int) -> None:
        page = _load_wide(info + _ADDRESS_AT) & -_PAGE_BYTES
        if _load(info + _CODE_AT) != _BUS_ADRERR or _map_zeros(page) != page:
            _leave_to_the_system(number)

    _handlers.append(handle)
    action = _Action(handle.address, flags=_SA_SIGINFO | _SA_NODEFER | _SA_ONSTACK)
    failed: int = ctypes.CDLL(None).sigaction(signal.SIGBUS, ctypes.byref(action), None)
    return failed == 0


# The system keeps the address of the code: it stays for as long as the process.
_handlers: list[Any] = []
