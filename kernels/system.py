"""What the operating system and the machine offer, and what takes the place of what they lack.

The one home of platform facts for all folders: Linux, macOS and Windows by `sys.platform`, the
processor by MACHINE, everything else by whether it is there. Nothing here is imported by compiled
code; what that needs (addresses, numbers of system calls) is in kernels/cpu/system_calls.py.
"""

import contextlib
import errno
import functools
import mmap
import os
import platform
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_NAMES = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}


def _machine() -> str:
    found = platform.machine().lower()
    # A 32-bit program on a 64-bit system has other system calls than the machine's name says.
    return _MACHINES.get(found, found) if sys.maxsize > 1 << 32 else f"{found} (32 bits)"


MACHINE = _machine()
"""The processor's architecture as Linux names it: "x86_64", "aarch64", …, whatever the system."""

# Linux numbers its system calls by architecture. A wrong number is another call.
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
# io_setup, io_destroy, io_submit, io_getevents.
_BATCH_READS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}

# posix_fallocate where the file system, or the system, has no such thing.
_NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# What one call takes on every system.
_MOST_BUFFERS = 1024
# Beyond what a lock file holds, since Windows lets nobody else read a byte that is locked; as far
# as its call reaches.
_LOCK_AT = 0x7FFFFFFE


_DEVICES = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10)))
)


def name() -> str:
    """Such as "Linux 6.12.1, x86_64, Python 3.12.4"."""
    own = _NAMES.get(sys.platform, sys.platform)
    return f"{own} {platform.release()}, {MACHINE}, Python {platform.python_version()}"


def futex_number() -> int:
    """The number of Linux's system call futex on this machine, 0 where there is none."""
    return _FUTEX.get(MACHINE, 0) if sys.platform == "linux" else 0


def sched_setattr_number() -> int:
    """The number of Linux's system call sched_setattr on this machine, 0 where there is none."""
    return _SCHED_SETATTR.get(MACHINE, 0) if sys.platform == "linux" else 0


def batch_read_numbers() -> tuple[int, int, int, int] | None:
    """The numbers of Linux's system calls io_setup, io_destroy, io_submit and io_getevents on this
    machine; None where there are none."""
    return _BATCH_READS.get(MACHINE) if sys.platform == "linux" else None


def usable_processors() -> int:
    """Logical processors that this process may use; at least one."""
    if sys.platform == "linux" and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory() -> int:
    """The most bytes that this process had in memory."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def limit_process(n_bytes: int, seconds: int) -> None:
    """Bound what this process may take, where the system can: bytes of memory, and seconds of the
    processor, after which it is ended."""
    if sys.platform == "win32":
        return
    import resource

    for limit, value in ((resource.RLIMIT_AS, n_bytes), (resource.RLIMIT_CPU, seconds)):
        # macOS knows the first and refuses to set it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


# --- files ---------------------------------------------------------------------------------------

# A descriptor and its copies have one position: who must seek does it alone.
_seeking = threading.Lock()


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Read into a view at an offset of a file; the number of bytes, 0 at its end. Any number of
    threads may do so at once."""
    if sys.platform != "win32" and hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    if sys.platform != "win32":
        data = os.pread(fd, len(view), offset)
    else:
        with _seeking:
            os.lseek(fd, offset, os.SEEK_SET)
            data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(fd: int, views: Sequence[memoryview], offset: int) -> int:
    """Write views one after another at an offset of a file in one call; the number of bytes,
    perhaps not all."""
    if sys.platform != "win32" and hasattr(os, "pwritev"):
        return os.pwritev(fd, views[:_MOST_BUFFERS], offset)
    if sys.platform != "win32":
        return os.pwrite(fd, views[0], offset)
    with _seeking:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, views[0])


def keeps_name(name: str) -> bool:
    """Whether a file can have this name, of characters that all systems take, as it stands: Windows
    gives some names to devices and drops a full stop at the end."""
    if sys.platform != "win32":
        return True
    return not name.endswith(".") and name.partition(".")[0].lower() not in _DEVICES


def lock(fd: int) -> None:
    """Lock an open file for this process alone, until it is closed; BlockingIOError where another
    process, or another descriptor of this one, has it. Advisory. Moves the file's position to 0 on
    Windows."""
    if sys.platform == "win32":
        import msvcrt

        with _seeking:
            os.lseek(fd, _LOCK_AT, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except OSError as error:
                raise BlockingIOError(errno.EWOULDBLOCK, error.strerror or "is locked") from None
            finally:
                os.lseek(fd, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync(fd: int) -> None:
    """Make what was written to a file durable, and its size."""
    if sys.platform == "darwin":
        import fcntl

        # fsync there leaves the data in the drive's cache. Not every file system has the other.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


def sync_data(fd: int) -> None:
    """Make what was written to a file durable."""
    if sys.platform == "linux":
        os.fdatasync(fd)
    else:
        sync(fd)


def sync_folder(folder: Path) -> None:
    """Make names made, moved or removed in a folder durable, where folders can be opened."""
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        sync(fd)
    finally:
        os.close(fd)


def backed_bytes(found: os.stat_result) -> int:
    """Bytes of the disk that a file takes; where that is not told, its size."""
    if sys.platform == "win32":
        return found.st_size
    return found.st_blocks * 512


def passes_page_cache() -> bool:
    """Whether files can be read past the page cache (O_DIRECT)."""
    return hasattr(os, "O_DIRECT")


def renames_open_files() -> bool:
    """Whether a file or folder in use can be moved and removed."""
    return sys.platform != "win32"


def allocate(fd: int, n_bytes: int) -> bool:
    """Give a file its size and its space on the disk; False where that is not offered."""
    if sys.platform != "linux":
        return False
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError as error:
        if error.errno in _NO_ALLOCATION:
            return False
        raise
    return True


def forget(fd: int) -> None:
    """Let go of what the system keeps in memory of a file that was synced, where it can be told."""
    if sys.platform == "linux":
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def asks_for_pages() -> bool:
    """Whether the system can be asked to read pages of a mapping ahead."""
    return hasattr(mmap, "MADV_WILLNEED")


def will_need(mapped: mmap.mmap, start: int, n_bytes: int) -> None:
    """Ask for pages of a mapping, where that can be; start is a multiple of mmap.PAGESIZE."""
    if sys.platform != "win32":
        mapped.madvise(mmap.MADV_WILLNEED, start, n_bytes)


def private_memory(n_bytes: int, large_pages: bool) -> mmap.mmap:
    """Fresh memory of this process alone, zero, backed page by page as it is written; in large
    pages where the system has them and it is asked. OSError where there is not so much."""
    if sys.platform == "win32":
        return mmap.mmap(-1, n_bytes)
    # What is shared between processes gets no large pages.
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux" and large_pages:
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


# --- the processor -------------------------------------------------------------------------------


def processor_name() -> str:
    """The processor's name, or its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _sysctl_text("machdep.cpu.brand_string") or MACHINE
    return platform.processor() or MACHINE


@functools.cache
def arm_products() -> tuple[str, ...]:
    """Of "dotprod" (SDOT) and "i8mm" (USDOT), what an aarch64 processor has. The system is asked:
    LLVM names a processor that it does not know by its architecture alone."""
    if MACHINE != "aarch64":
        return ()
    if sys.platform == "linux":
        import ctypes

        getauxval = ctypes.CDLL(None).getauxval
        getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
        # AT_HWCAP and AT_HWCAP2, HWCAP_ASIMDDP and HWCAP2_I8MM of the kernel's headers.
        found = {"dotprod": getauxval(16) >> 20 & 1, "i8mm": getauxval(26) >> 13 & 1}
    elif sys.platform == "darwin":
        found = {
            "dotprod": _sysctl_number("hw.optional.arm.FEAT_DotProd"),
            "i8mm": _sysctl_number("hw.optional.arm.FEAT_I8MM"),
        }
    elif sys.platform == "win32":
        import ctypes

        # PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE.
        found = {"dotprod": ctypes.WinDLL("kernel32").IsProcessorFeaturePresent(43)}
    else:
        found = {}
    return tuple(feature for feature, is_there in found.items() if is_there)


def _sysctl(name: str, room: int) -> bytes:
    """A value of macOS's sysctl, at most so many bytes; empty where it is unknown."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "sysctlbyname", None)
    if call is None:
        return b""
    value, size = ctypes.create_string_buffer(room), ctypes.c_size_t(room)
    if call(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return b""
    return value.raw[: size.value]


def _sysctl_number(name: str) -> int:
    return int.from_bytes(_sysctl(name, 8), "little")


def _sysctl_text(name: str) -> str:
    return _sysctl(name, 256).rstrip(b"\0").decode("utf-8", "replace")


# --- what is missing -----------------------------------------------------------------------------


def fallbacks() -> list[str]:
    """What this system lacks of what hga uses, and what is done instead, a line each."""
    return list(_fallbacks())


def _fallbacks() -> Iterator[str]:
    if not futex_number():
        yield "no futex: a thread that waits for a read gives its time slice away at every look"
    if sys.platform == "win32":
        yield "no preadv: files are read by seeking, through the interpreter, four threads at most"
    elif not hasattr(os, "preadv"):
        yield "no preadv: files are read through the interpreter, four threads at most"
    if not passes_page_cache():
        yield "no O_DIRECT: reads pass through the page cache"
    if not hasattr(os, "posix_fadvise"):
        yield "no posix_fadvise: what was written stays in the page cache until the system drops it"
    if not hasattr(os, "posix_fallocate"):
        yield "no posix_fallocate: room on the disk is made by writing zeros"
    if sys.platform == "win32":
        yield "no flock: files are locked by the byte (msvcrt.locking)"
        yield "folders cannot be synced: after a power cut a new name may be missing"
        yield "files in use cannot be renamed: they are closed first"
    if sys.platform != "linux":
        yield "no guard of mapped files: if a packed file is cut while it is read, the process ends"
        yield "no io_uring: threads read instead"
