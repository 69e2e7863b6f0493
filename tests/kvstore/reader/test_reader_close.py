"""The end of a reader, a file, a process: nothing hangs, is left behind or is written late."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hga.kvstore.errors import StoreError

# A thread ends the process: no signal interrupts a thread that waits for a read.
pytestmark = pytest.mark.timeout(120, method="thread")
CELL = 4096


class BlockedDisk:
    """Reads at offset 0 do not end before `go`."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, fd: int, offset: int, n_bytes: int) -> None:
        if offset == 0:
            self.begun.set()
            self.go.wait(20)


@pytest.mark.parametrize("what", ["close", "remove_file"])
def test_closing_with_a_read_in_flight(
    open_reader, disk_file, faulty_disk, what: str, requests_of
) -> None:
    reader, blocked = open_reader("threads", n_threads=1), BlockedDisk()
    faulty_disk(reader, blocked)
    file = reader.add_file(disk_file[0])
    requests, out = requests_of(reader, file, 1)
    first = reader.submit(requests)
    assert blocked.begun.wait(60)
    others, _ = requests_of(reader, file, 3)
    queued, hints = reader.submit(others[1:]), reader.submit(others[2:], hint=True)
    closing = threading.Thread(target=lambda: getattr(reader, what)(*[file] * (what != "close")))
    closing.start()
    # To wait before they are dropped would be to read them.
    deadline = time.monotonic() + 60
    while (queued == 1).any() and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(StoreError, match=r"cancell?ed"):
        reader.wait(others[1:], queued)
    assert hints.tolist() == [-errno.ECANCELED]
    closing.join(0.1)
    assert closing.is_alive() and first.tolist() == [1], "the read must end first"
    blocked.go.set()
    closing.join(60)
    assert not closing.is_alive() and first.tolist() == [2]
    assert (out == disk_file[1][:CELL]).all()
    with pytest.raises(StoreError, match=r"closed|not open"):
        reader.read(file, 0, 1)


def test_closing_wakes_who_waits(open_reader, disk_file, faulty_disk, requests_of) -> None:
    """A thread that waits for a request which is never begun."""
    reader, blocked = open_reader("threads", n_threads=1, flight_bytes=1), BlockedDisk()
    faulty_disk(reader, blocked)
    file = reader.add_file(disk_file[0])
    first, room = requests_of(reader, file, 1)
    reader.submit(first)
    assert blocked.begun.wait(60)
    waiting, more_room = requests_of(reader, file, 1)
    tickets, errors = reader.submit(waiting), []

    def wait() -> None:
        try:
            reader.wait(waiting, tickets)
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    closing = threading.Thread(target=reader.close)
    closing.start()
    thread.join(60)
    assert not thread.is_alive() and errors[0].errno == errno.ECANCELED
    blocked.go.set()
    closing.join(60)
    assert not closing.is_alive()
    assert (room == disk_file[1][:CELL]).all() and not more_room.any()


def test_closing_leaves_nothing(reader, disk_file) -> None:
    before, threads = len(os.listdir("/proc/self/fd")), list(reader._threads)
    for _ in range(3):
        reader.read(reader.add_file(disk_file[0]), 0, CELL)
    for _ in range(3):
        reader.close()
    assert not any(thread.is_alive() for thread in threads)
    assert len(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(StoreError, match="closed"):
        reader.add_file(disk_file[0])


@pytest.mark.parametrize("mode", ["threads", "uring", "mmap"])
@pytest.mark.parametrize("closing", ["", "reader.close()", "raise SystemExit(0)"])
def test_a_process_ends_quietly(
    mode: str, closing: str, disk_file, kernel_cache: Path, kernel_isa: str | None
) -> None:
    script = (
        "from pathlib import Path; from hga.kernels.cpu import target\n"
        f"target.select(Path({str(kernel_cache / 'kernels')!r}), {kernel_isa!r})\n"
        "from hga.kvstore.reader import Reader\n"
        f"reader = Reader.open({mode!r}); file = reader.add_file({str(disk_file[0])!r})\n"
        f"reader.read(file, 0, 4096)\n{closing}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_many_readers(open_reader, disk_file) -> None:
    from hga.kvstore.reader import Reader

    threads = threading.active_count()
    for i in range(30):
        with Reader.open(n_threads=i % 5) as reader:
            reader.read(reader.add_file(disk_file[0]), 0, CELL)
    assert threading.active_count() == threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork(reader, disk_file) -> None:
    """The child may close, and must not read; the parent notices neither."""
    file = reader.add_file(disk_file[0])
    reader.read(file, 0, CELL)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            reader.read(file, 0, CELL)
        except StoreError as error:
            reader.close()
            os._exit(0 if "fork" in str(error) else 2)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    for i in range(20):
        got = reader.read(file, CELL * i, CELL)
        assert (got == disk_file[1][CELL * i : CELL * (i + 1)]).all()
