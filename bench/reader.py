"""Cold random reads of small cells by every way the reader knows, and the drive's own bandwidth.

Prints the drive's sequential rate, a row per way, size and number of threads (the median and the
best of several repetitions, taken in turns), and one JSON line. The file is thrown out of the page
cache before every repetition, which is verified (mincore); nobody but the I/O threads reads.

    python bench/reader.py [--file PATH] [--gib 4] [--cells 2000] [--reps 5]
"""

import argparse
import ctypes
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from hga.kernels.cpu import target

PIECE = 1 << 20
# Way, threads, O_DIRECT.
WAYS = [
    *(("threads", n, direct) for direct in (True, False) for n in (1, 4, 16)),
    ("uring", 1, True),
    ("uring", 1, False),
    ("mmap", 1, False),
]


def write(path: Path, n_bytes: int) -> None:
    """Random bytes, on the drive."""
    block = np.random.default_rng(0).integers(0, 256, 16 << 20, np.uint8)
    with path.open("wb") as file:
        for i in range(0, n_bytes, len(block)):
            block[:8].view(np.int64)[0] = i
            file.write(block[: n_bytes - i].tobytes())
        file.flush()
        os.fsync(file.fileno())


def drop(path: Path) -> None:
    """Throw a file out of the page cache; SystemExit if it stays there."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    size = os.fstat(fd).st_size
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        arguments = (ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size))
        failed = ctypes.CDLL(None).mincore(*arguments, ctypes.c_void_p(pages.ctypes.data))
        del view
    os.close(fd)
    if failed or (pages & 1).mean() > 0.001:
        sys.exit(f"{path} stays in the page cache: the reads would not be cold")


def read_all(reader: Any, table: np.ndarray, tickets: np.ndarray) -> tuple[float, float]:
    """Seconds and processor seconds until all requests of a table are read."""
    from hga.kernels.cpu import io_entry

    tickets[:] = 0
    cpu, start = time.process_time(), time.perf_counter()
    io_entry.push_all(reader.address, table.ctypes.data, len(table), 0, 0)
    # Not `wait`, which would read too.
    while (tickets == 1).any():
        time.sleep(0.0002)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    if not (tickets == 2).all():
        sys.exit(f"reads failed: {np.unique(tickets)}")
    return seconds, cpu


def measure(
    path: Path, way: str, n_threads: int, direct: bool, n_bytes: int, n: int, seed: int
) -> tuple[float, float] | str:
    """Seconds and processor seconds of n cold reads; a reason where the way cannot be had.

    Reads of PIECE bytes follow one another, smaller ones lie anywhere.
    """
    from hga.kvstore.memory import aligned_zeros
    from hga.kvstore.reader import Reader

    with Reader.open(way, n_threads=n_threads, merge_bytes=0) as reader:
        index = reader.add_file(path, direct)
        if reader.notices:
            return reader.notices[0]
        out, tickets = aligned_zeros(n * n_bytes), np.zeros(n, np.int64)
        # Backed before it is timed: a new page of memory costs as much as a read of one.
        out[:] = 0
        places = np.arange(n)
        if n_bytes < PIECE:
            total = path.stat().st_size // n_bytes
            places = np.random.default_rng(seed).choice(total, n, replace=False)
        table = np.zeros((n, 8), np.int64)
        table[:, 0], table[:, 1], table[:, 2] = index, places * n_bytes, n_bytes
        table[:, 3] = out.ctypes.data + n_bytes * np.arange(n)
        table[:, 4] = tickets.ctypes.data + 8 * np.arange(n)
        drop(path)
        return read_all(reader, table, tickets)


def figures(results: list[tuple[float, float]], n_bytes: int, n: int) -> dict[str, float]:
    """Rates of repetitions."""
    seconds = [s for s, _ in results]
    return {
        "gb_s": n * n_bytes / statistics.median(seconds) / 1e9,
        "gb_s_best": n * n_bytes / min(seconds) / 1e9,
        "iops": n / statistics.median(seconds),
        "cpu_percent": 100 * statistics.median(c / s for s, c in results),
    }


def latency(path: Path, reps: int) -> float:
    """Median microseconds of one cold read of 8 KiB that a thread waits for, nothing else going."""
    from hga.kvstore.memory import aligned_zeros
    from hga.kvstore.reader import Reader

    times, out = [], aligned_zeros(8192)
    with Reader.open() as reader:
        index = reader.add_file(path)
        drop(path)
        for place in np.random.default_rng(99).choice(path.stat().st_size // 8192, 40 * reps):
            start = time.perf_counter()
            reader.read(index, int(place) * 8192, 8192, out)
            times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=Path, help="where to write (default: a temporary file here)")
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--reps", type=int, default=5)
    args = parser.parse_args()
    target.select(platformdirs.user_cache_path("hga", appauthor=False) / "kernels")
    if args.file:
        path = args.file
    else:
        fd, name = tempfile.mkstemp(prefix="reader-", suffix=".bin", dir=".")
        os.close(fd)
        path = Path(name)
    try:
        if not path.exists() or path.stat().st_size != int(args.gib * (1 << 30)):
            write(path, int(args.gib * (1 << 30)))
        n = min(1000, path.stat().st_size // PIECE)
        cells = [(*way, n_bytes) for way in WAYS for n_bytes in (4096, 8192)]
        results: dict[tuple[str, int, bool, int], list[tuple[float, float]]] = {}
        runs, refused = [], {}
        # In turns: whatever else the machine does meanwhile, it does to all.
        for rep in range(args.reps):
            run = measure(path, "threads", 4, True, PIECE, n, rep)
            if isinstance(run, str):
                sys.exit(f"no O_DIRECT here: {run}")
            runs.append(run)
            for cell in cells:
                run = measure(path, *cell, args.cells, rep)
                if isinstance(run, str):
                    refused[cell[0]] = run
                else:
                    results.setdefault(cell, []).append(run)
        sequential, wait_us = figures(runs, PIECE, n), latency(path, args.reps)
        print(
            f"sequential, 1 MiB at a time, 4 threads, O_DIRECT: {sequential['gb_s']:.2f}"
            f" ({sequential['gb_s_best']:.2f}) GB/s"
        )
        print(f"one cold read of 8 KiB, waited for: {wait_us:.0f} us, Python's share included")
        print(f"random, median (best) of {args.reps} x {args.cells} cold reads:")
        for way, reason in refused.items():
            print(f"  {way}: {reason}")
        rows = []
        for (way, n_threads, direct, n_bytes), found in results.items():
            row = figures(found, n_bytes, args.cells)
            print(
                f"  {way:8}{n_threads:3} {'O_DIRECT' if direct else 'buffered'}{n_bytes:6} B"
                f" {row['gb_s']:6.3f} ({row['gb_s_best']:.3f}) GB/s {row['iops']:7.0f} IOPS"
                f"  cpu {row['cpu_percent']:3.0f} %"
            )
            names = {"way": way, "threads": n_threads, "direct": direct, "bytes": n_bytes}
            rows.append({**names, **row})
        print(json.dumps({"sequential": sequential, "wait_us": wait_us, "random": rows}))
    finally:
        if not args.file:
            path.unlink()


if __name__ == "__main__":
    main()
