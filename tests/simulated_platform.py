"""macOS or Windows as far as a Linux process can be them: a program for tests/test_platforms.py.

`python simulated_platform.py linux|darwin|win32 JOB.json` takes away what the platform lacks, names
it in sys.platform, then does the job: imports modules, runs `hga` command lines, and writes down
what came of them as JSON. Third-party packages choose for themselves what their platform offers, so
they are loaded first; what is tried is our code alone. "linux" is the process as it is.

Simulated of both: no O_DIRECT, posix_fallocate, posix_fadvise, affinity, /proc, io_uring, futex.
Of macOS: its clock's number, its place of errno, F_FULLFSYNC, no fdatasync. Of Windows: modules and
calls of POSIX gone (flock, resource, preadv, pread, signals, madvise); byte locks that forbid to
read; files and folders in use cannot be renamed or removed; folders cannot be opened; names that it
refuses; no link of a C library by CDLL(None); 8-bit text on the streams. Not simulated: paths with
drives and backslashes, its own loader and compiler, terminals, Ctrl-C, another page size.
"""

import builtins
import contextlib
import ctypes
import errno
import fcntl
import importlib
import io
import json
import mmap
import os
import select
import shutil
import signal
import stat
import struct
import sys
import tempfile
import types
from pathlib import Path

LOADED_FIRST = (
    *("asyncio", "subprocess", "multiprocessing", "getpass", "tempfile", "socket", "ssl", "uuid"),
    *("numpy.random", "numba", "numba.core.caching", "llvmlite.ir", "safetensors", "tokenizers"),
    *("jinja2.sandbox", "lz4.frame", "psutil", "aiofiles", "rich.console", "rich.progress"),
    *("prompt_toolkit.shortcuts", "msgspec", "xxhash", "platformdirs", "ml_dtypes", "llguidance"),
    *("selectolax.lexbor", "pypdf", "charset_normalizer", "starlette.applications", "uvicorn"),
)

# What Linux has of `os` and the others lack; then what POSIX has and Windows lacks.
NOT_ON_MACOS = (
    *("posix_fallocate", "posix_fadvise", "fdatasync", "O_DIRECT"),
    *("POSIX_FADV_DONTNEED", "sched_getaffinity", "sched_setaffinity", "sched_getscheduler"),
    *("sched_setscheduler", "SCHED_OTHER", "SCHED_BATCH", "memfd_create", "pipe2", "eventfd"),
    *("copy_file_range", "getrandom", "splice"),
)
NOT_ON_WINDOWS = (
    *NOT_ON_MACOS,
    *("preadv", "pwritev", "pread", "pwrite", "fork", "kill", "killpg"),
    *("getuid", "geteuid", "getgid", "getpriority", "setpriority", "nice", "uname", "sysconf"),
    *("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_DIRECTORY", "O_SYNC", "O_DSYNC", "mkfifo"),
    *("fchmod", "fchown", "chown", "sched_yield", "setsid", "openpty", "PRIO_PROCESS"),
)
MODULES_NOT_ON_WINDOWS = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "readline")
SIGNALS_NOT_ON_WINDOWS = ("SIGHUP", "SIGKILL", "SIGBUS", "SIGUSR1", "SIGALRM", "SIGCHLD", "SIGPIPE")

F_FULLFSYNC = 51
_F_OFD_SETLK, _O_LARGEFILE = 37, 0x8000
# Names that Windows gives to devices or cannot give to files.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in "123")}

_real = types.SimpleNamespace(
    open=os.open,
    stat=os.stat,
    readlink=os.readlink,
    listdir=os.listdir,
    maps=lambda: builtins_open("/proc/self/maps", encoding="utf-8").read(),
    CDLL=ctypes.CDLL,
    fcntl=fcntl.fcntl,
    fsync=os.fsync,
    lseek=os.lseek,
)
builtins_open = builtins.open
# What the simulation was asked for, to be seen by the tests.
seen = {"full_syncs": 0, "byte_locks": 0}


def become(platform: str) -> None:
    """Be macOS ("darwin") or Windows ("win32") from now on."""
    if platform == "linux":
        return
    for name in LOADED_FIRST:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    _warm_numba()
    assert not any(name.startswith("hga.") for name in sys.modules)
    sys.modules["liburing"] = None
    for name in NOT_ON_WINDOWS if platform == "win32" else NOT_ON_MACOS:
        if hasattr(os, name):
            delattr(os, name)
    for name in [name for name in vars(select) if name.lower().startswith("epoll")]:
        delattr(select, name)
    _hide_linux_files()
    sys.platform = platform
    if platform == "darwin":
        _become_macos()
    else:
        _become_windows()


def _warm_numba() -> None:
    """What Numba and psutil load when they are first used."""
    import numba
    import psutil

    numba.njit(lambda x: x + 1)(1)
    psutil.cpu_count(logical=False)
    psutil.virtual_memory()


def _asked_by_psutil() -> bool:
    frame = sys._getframe(2)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("psutil"):
        frame = frame.f_back
    return frame is not None


def _hide_linux_files() -> None:
    """No /proc and /sys, except for psutil, which has other sources elsewhere."""

    def hiding(call):
        def hidden(path, *args, **kwargs):
            is_path = isinstance(path, str | bytes | os.PathLike)
            is_linux = is_path and os.fsdecode(path).startswith(("/proc/", "/sys/"))
            if is_linux and not _asked_by_psutil():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return call(path, *args, **kwargs)

        return hidden

    for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"),
                         (os, "listdir"), (os, "readlink")):  # fmt: skip
        setattr(module, name, hiding(getattr(module, name)))


# --- macOS ---------------------------------------------------------------------------------------


def _become_macos() -> None:
    del mmap.MADV_HUGEPAGE

    def control(fd, command, argument=0):
        if command == F_FULLFSYNC:
            seen["full_syncs"] += 1
            _real.fsync(fd)
            return 0
        return _real.fcntl(fd, command, argument)

    fcntl.F_FULLFSYNC, fcntl.fcntl = F_FULLFSYNC, control

    class Library(_real.CDLL):
        """The C library under its names there."""

        def __getattr__(self, name):
            if name in ("__errno_location", "statx", "getauxval", "syscall", "sched_setaffinity"):
                raise AttributeError(name)
            return super().__getattr__("__errno_location" if name == "__error" else name)

    ctypes.CDLL = Library


# --- Windows -------------------------------------------------------------------------------------


def _become_windows() -> None:
    for name in MODULES_NOT_ON_WINDOWS:
        sys.modules[name] = None
    for name in SIGNALS_NOT_ON_WINDOWS:
        delattr(signal, name)
    for name in [name for name in vars(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))]:
        delattr(mmap, name)
    del select.poll
    os.O_BINARY = _O_LARGEFILE
    mmap.mmap = _Mapping
    ctypes.CDLL, ctypes.WinDLL = _library, _Kernel32
    sys.modules["msvcrt"] = _msvcrt()
    shutil._use_fd_functions = False
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile
    _refuse_files_in_use()
    psutil = sys.modules["psutil"]
    known = psutil.Process.memory_info
    psutil.Process.memory_info = lambda self: types.SimpleNamespace(
        rss=known(self).rss, peak_wset=known(self).rss
    )
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="cp1252", errors="strict")


class _Mapping(mmap.mmap):
    """mmap.mmap with the parameters that it has there."""

    def __new__(cls, fileno, length, tagname=None, access=mmap.ACCESS_WRITE, offset=0):
        if fileno < 0:
            return super().__new__(cls, fileno, length)
        return super().__new__(cls, fileno, length, access=access, offset=offset)

    @property
    def madvise(self):
        raise AttributeError("madvise")


def _library(name, *args, **kwargs):
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return _real.CDLL(name, *args, **kwargs)


class _Kernel32:
    """The functions of kernel32 that are called. Naps come in the unit of the compiled code, which
    is Linux's here."""

    def __init__(self, name) -> None:
        assert name == "kernel32"
        libc = _real.CDLL(None)
        self.SwitchToThread, self.Sleep = libc.sched_yield, libc.usleep
        self.IsProcessorFeaturePresent = lambda number: 0


def _msvcrt() -> types.ModuleType:
    module = types.ModuleType("msvcrt")
    module.LK_NBLCK = 2

    def locking(fd, mode, n_bytes):
        assert mode == module.LK_NBLCK
        seen["byte_locks"] += 1
        start = _real.lseek(fd, 0, os.SEEK_CUR)
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, n_bytes, 0)
        try:
            _real.fcntl(fd, _F_OFD_SETLK, wanted)
        except OSError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    module.locking = locking
    return module


def _used_paths() -> set[str]:
    """Files and folders that this process has open or mapped."""
    paths = set()
    for fd in _real.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            paths.add(_real.readlink(f"/proc/self/fd/{fd}"))
    for line in _real.maps().splitlines():
        paths.add(line[line.find("/") :] if "/" in line else "")
    return paths


def _refuse_files_in_use() -> None:
    def check_in_use(path) -> None:
        full = os.path.realpath(path)
        for used in _used_paths():
            if used == full or used.startswith(full + "/"):
                raise PermissionError(errno.EACCES, f"is in use here ({used})", str(path))

    def check_name(path) -> None:
        name = os.path.basename(os.fsdecode(path))
        stem = name.partition(".")[0].lower()
        if set(name) & set('<>:"|?*\\') or name.endswith((".", " ")) or stem in _RESERVED:
            raise OSError(errno.EINVAL, "the name is not one of Windows", str(path))

    def guarded(call, in_use, named):
        def guard(*paths, **kwargs):
            for i in in_use:
                check_in_use(paths[i])
            for i in named:
                check_name(paths[i])
            return call(*paths, **kwargs)

        return guard

    os.replace, os.rename = (guarded(c, (0, 1), (1,)) for c in (os.replace, os.rename))
    os.unlink, os.rmdir = guarded(os.unlink, (0,), ()), guarded(os.rmdir, (0,), ())
    os.remove, os.mkdir = os.unlink, guarded(os.mkdir, (), (0,))
    hiding_open = os.open

    def open_file(path, flags, mode=0o777, **kwargs):
        check_name(path)
        if not flags & os.O_CREAT and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return hiding_open(path, flags, mode, **kwargs)

    def sync(fd):
        # FlushFileBuffers wants a handle that may write.
        if _real.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        _real.fsync(fd)

    access = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
    os.O_ACCMODE = getattr(os, "O_ACCMODE", access)
    os.open, os.fsync = open_file, sync
    stat.FILE_ATTRIBUTE_REPARSE_POINT = 1024


# --- the job -------------------------------------------------------------------------------------


def run_command(words: list[str]) -> dict[str, object]:
    """One command line of hga: its exit code and what it wrote."""
    from hga.tools.cli import main

    streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252", write_through=True) for _ in "oe"]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    out, err = (stream.buffer.getvalue().decode("utf-8") for stream in streams)
    return {"code": code, "out": out, "err": err}


def refusals(folder: str) -> list[str]:
    """What the second to come is told: of a session, and of a file that is being written."""
    from hga.kvstore.lock import FolderLock
    from hga.runtime.durable import open_locked

    told = []
    written = Path(folder) / "partial"
    for take in (lambda: FolderLock.take(Path(folder)), lambda: open_locked(written)):
        held = take()
        try:
            take()
        except OSError as error:
            told.append(error.strerror)
        release = getattr(held, "release", None) or held.close
        release()
        again = take()
        (getattr(again, "release", None) or again.close)()
    written.unlink()
    return told


def refused_names(names: list[str]) -> list[str]:
    """Of names for a session, those that are refused."""
    from hga.runtime.options import OptionError
    from hga.runtime.saved import session_folder

    refused = []
    for name in names:
        try:
            session_folder(Path(), name)
        except OptionError:
            refused.append(name)
    return refused


def main() -> None:
    job = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    become(sys.argv[1])
    from hga.kernels import ops
    from hga.tools.folders import cache_folder

    # Kernels compile when they are imported: they are kept where engines look for them.
    ops.choose_cpu(cache_folder() / "kernels")
    failed = []
    for name in job["modules"]:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    from hga.tools import doctor

    # Enough to be measured; how fast the disk is is not asked here.
    doctor._FILE_BYTES, doctor._CELLS = 4 << 20, 256
    ran = [run_command(words) for words in job["commands"]]
    result = {"failed": failed, "ran": ran, "seen": seen, "locked": refusals(job["lock"])}
    result["refused_names"] = refused_names(job["names"])
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
