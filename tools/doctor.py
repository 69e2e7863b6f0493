"""`hga doctor`: what this machine offers, measured here and now, and what hga makes of it.

Nothing is kept: the file that the disk is measured with is removed. A line that is worse than it
could be says why and, where something helps, what.
"""

import argparse
import contextlib
import json
import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hga.kernels import system
from hga.kernels.ops import default_threads
from hga.kvstore.errors import StoreError
from hga.kvstore.memory import aligned_zeros
from hga.kvstore.reader import Reader, Request
from hga.tools.bench import memory_bandwidth
from hga.tools.errors import OK
from hga.tools.folders import cache_folder, config_folder, state_folder
from hga.tools.status import Status, size

_FILE_BYTES = 256 << 20
_RUN_BYTES = 1 << 20
_CELL_BYTES = 8 << 10
_CELLS = 4096
Section = dict[str, Any]


def doctor(values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    folder = Path(values.kv_dir) if values.kv_dir else cache_folder() / "kv"
    found: dict[str, Section] = {
        "system": _system(),
        "processor": _processor(values.threads),
        "memory": _memory(values.threads),
    }
    status.notice(f"measuring the disk of {folder}")
    found["disk"] = _disk(folder, values.io)
    found["gpu"] = _gpu()
    found["folders"] = {
        "packs and kernels": str(cache_folder()),
        "sessions and history": str(state_folder()),
        "configuration": str(config_folder()),
        "keys and values": str(folder),
    }
    if values.json:
        print(json.dumps(found))
    else:
        print("\n".join(_lines(found)))
    return OK


def _lines(found: dict[str, Section]) -> Iterator[str]:
    for title, section in found.items():
        yield title
        for name, value in section.items():
            for text in value if isinstance(value, list) else [value]:
                yield f"  {name.replace('_', ' '):<26}{_shown(name, text)}"


def _shown(name: str, value: object) -> str:
    if name.endswith("_per_s") and isinstance(value, int | float):
        return f"{size(value)}/s"
    if name.endswith("bytes") and isinstance(value, int | float):
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _system() -> Section:
    """The platform, and what takes the place of what it lacks."""
    section: Section = {"name": system.name(), "page_bytes": mmap.PAGESIZE}
    if missing := system.fallbacks():
        section["fallbacks"] = missing
    return section


def _processor(threads: int | None) -> Section:
    from hga.kernels.cpu import target

    section: Section = {
        "name": system.processor_name(),
        "instruction_set": target.detect(),
        "threads": threads or default_threads(),
        "cores": os.cpu_count(),
    }
    if note := target.shortfall():
        section["note"] = note
    return section


def _memory(threads: int | None) -> Section:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "total_bytes": memory.total,
        "available_bytes": memory.available,
        "read_bytes_per_s": round(memory_bandwidth(threads or default_threads())),
    }


def _disk(folder: Path, mode: str) -> Section:
    """Sequential and random reads with an empty page cache, through the reader that hga uses."""
    import shutil

    section: Section = {"folder": str(folder)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        section["file_system"] = _file_system(folder)
        section["free_bytes"] = shutil.disk_usage(folder).free
        with _measured_file(folder) as path:
            notices: list[str] = []
            with Reader.open(mode, report=notices.append) as reader:
                index = reader.add_file(path)
                section["reads_by"] = reader.mode
                section["past_the_page_cache"] = reader.file(index).direct >= 0
                section["sequential_bytes_per_s"] = round(_sequential(reader, index))
                random = _random(reader, index)
                section["random_8_KiB_bytes_per_s"] = round(random)
                section["random_8_KiB_reads"] = f"{random / _CELL_BYTES:,.0f} per second"
            if notices:
                section["note"] = notices
    except (OSError, StoreError) as error:
        section["note"] = f"cannot be measured: {error.strerror or error}"
    if section.get("file_system") in ("tmpfs", "ramfs"):
        section["note"] = (
            "this is memory, not a disk: --kv-dir (or XDG_CACHE_HOME) names another folder"
        )
    return section


@contextlib.contextmanager
def _measured_file(folder: Path) -> Iterator[str]:
    """A file of random bytes that is not in the page cache, closed and removed at the end."""
    fd, path = tempfile.mkstemp(dir=folder, prefix="doctor-")
    try:
        with open(fd, "wb") as file:
            block = np.random.default_rng(0).bytes(_RUN_BYTES)
            for _ in range(_FILE_BYTES // _RUN_BYTES):
                file.write(block)
            file.flush()
            system.sync(file.fileno())
            system.forget(file.fileno())
        yield path
    finally:
        os.unlink(path)


def _sequential(reader: Reader, file: int) -> float:
    """Bytes per second of reads of a MiB, four at a time."""
    out = aligned_zeros(4 * _RUN_BYTES)
    begin = time.perf_counter()
    for first in range(0, _FILE_BYTES, len(out)):
        requests = [
            Request(file, first + at, _RUN_BYTES, out.ctypes.data + at)
            for at in range(0, len(out), _RUN_BYTES)
        ]
        reader.wait(requests, reader.submit(requests))
    return _FILE_BYTES / (time.perf_counter() - begin)


def _random(reader: Reader, file: int) -> float:
    """Bytes per second of reads of a cell, 64 at a time."""
    cells = np.random.default_rng(1).permutation(_FILE_BYTES // _CELL_BYTES)[:_CELLS]
    out = aligned_zeros(64 * _CELL_BYTES)
    begin = time.perf_counter()
    for first in range(0, len(cells), 64):
        requests = [
            Request(file, int(cell) * _CELL_BYTES, _CELL_BYTES, out.ctypes.data + i * _CELL_BYTES)
            for i, cell in enumerate(cells[first : first + 64])
        ]
        reader.wait(requests, reader.submit(requests))
    return len(cells) * _CELL_BYTES / (time.perf_counter() - begin)


def _file_system(folder: Path) -> str | None:
    """The type of the file system that a folder lies in, where the system tells."""
    import psutil

    path, best = folder.resolve(), ("", None)
    for part in psutil.disk_partitions(all=True):
        if path.is_relative_to(part.mountpoint) and len(part.mountpoint) > len(best[0]):
            best = (part.mountpoint, part.fstype)
    return best[1]


def _gpu() -> Section:
    """What torch sees; hga itself computes on the processor in this version."""
    from importlib import import_module

    try:
        torch = import_module("torch")
    except ImportError:
        return {"found": "not looked for: torch is not installed"}
    if not torch.cuda.is_available():
        return {"found": "none that torch can use"}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"found": names, "note": "not used: this version computes on the processor"}
