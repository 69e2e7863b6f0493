"""The queue's order: demand before hints, neighbours together, promotion, cancelled hints, bounds.

No I/O threads: `runs` reads one run at a time, so that the order is the queue's.
"""

import errno
import threading

import numpy as np
import pytest

from hga.kvstore.errors import StoreError

# A thread ends the process: no signal interrupts a thread that waits for a read.
pytestmark = pytest.mark.timeout(120, method="thread")
CELL = 4096


def take(reader) -> tuple[np.ndarray, int]:
    """Begin a run in this thread: its slots, and how many they are."""
    from hga.kernels.cpu import io_entry, io_slots

    run = np.zeros(io_slots.MAX_RUN, np.int64)
    return run, io_entry.take(reader.address, 0, run.ctypes.data)


def finish(reader, run: np.ndarray, n: int) -> None:
    """Read a run and end it."""
    from hga.kernels.cpu import io_entry

    io_entry.finish(reader.address, run.ctypes.data, n, io_entry.UNREAD, 0)


def read_once(reader) -> int:
    """Read one run in this thread; returns how many requests it was."""
    run, n = take(reader)
    if n > 0:
        finish(reader, run, n)
    return n


@pytest.fixture
def setting(open_reader, disk_file, faulty_disk):
    """make(**options) -> (reader, push, runs); make.disk is its disk.

    push(cells, hint, generation) -> tickets of cells of CELL bytes by their number in the file."""
    from hga.kvstore.memory import aligned_zeros
    from hga.kvstore.reader import Request

    def make(n_threads: int = 0, **options):
        reader = open_reader("threads", n_threads=n_threads, **options)
        disk = make.disk = faulty_disk(reader, lambda fd, offset, n_bytes: None)
        file = reader.add_file(disk_file[0])
        rooms = []

        def push(numbers, hint=False, generation=0):
            rooms.append(aligned_zeros(CELL * len(numbers)).reshape(-1, CELL))
            requests = [
                Request(file, CELL * n, CELL, room.ctypes.data)
                for n, room in zip(numbers, rooms[-1])
            ]
            return reader.submit(requests, hint, generation)

        def runs() -> list[tuple[int, int]]:
            """Read everything: (first cell, cells) of every read."""
            disk.calls.clear()
            while read_once(reader):
                pass
            return [(offset // CELL, n_bytes // CELL) for _, offset, n_bytes in disk.calls]

        return reader, push, runs

    return make


def test_demand_comes_before_hints(setting) -> None:
    reader, push, runs = setting()
    push([40, 30], hint=True)
    push([20, 10])
    push([5], hint=True)
    push([1])
    assert runs() == [(20, 1), (10, 1), (1, 1), (40, 1), (30, 1), (5, 1)]
    assert reader.stats["requests"] == 6 and reader.stats["merged"] == 0


def test_no_hint_begins_beside_a_demand(setting) -> None:
    """They would share the disk, and whoever waits would wait for both."""
    reader, push, _ = setting()
    hints = push([40, 30], hint=True)
    demand = push([20])
    run, n = take(reader)
    assert n == 1 and take(reader)[1] == 0
    # Another demand may.
    later = push([10])
    other, m = take(reader)
    assert m == 1 and take(reader)[1] == 0
    finish(reader, run, n)
    assert demand[0] == 2 and take(reader)[1] == 0
    finish(reader, other, m)
    assert later[0] == 2 and hints.tolist() == [1, 1]
    assert read_once(reader) == 1 and read_once(reader) == 1 and hints.tolist() == [2, 2]
    assert read_once(reader) == 0


def test_few_hints_are_read_at_a_time(setting) -> None:
    """A demand that comes waits for these."""
    from hga.kvstore.memory import aligned_zeros
    from hga.kvstore.reader import Request

    reader, _, _ = setting()
    size = 2 << 20
    room = aligned_zeros(3 * size)
    # The setting's file has index 0.
    wanted = [Request(0, i % 2 * size, size, room.ctypes.data + i * size) for i in range(3)]
    tickets = reader.submit(wanted, True, 0)
    begun = [take(reader), take(reader)]
    assert [n for _, n in begun] == [1, 1] and take(reader)[1] == 0
    finish(reader, *begun[0])
    assert read_once(reader) == 1
    finish(reader, *begun[1])
    assert tickets.tolist() == [2, 2, 2]


def test_neighbours_are_read_together(setting) -> None:
    reader, push, runs = setting(merge_bytes=4 * CELL)
    push([3, 1, 2, 7, 4, 5, 6, 9])
    # From the oldest on; what lies before it was asked for later and is read later.
    assert runs() == [(3, 4), (1, 2), (7, 1), (9, 1)]
    assert reader.stats["merged"] == 4 and reader.stats["reads"] == 4


def test_hints_do_not_ride_with_demands(setting) -> None:
    _, push, runs = setting()
    push([1, 2, 3], hint=True)
    push([0])
    assert runs() == [(0, 1), (1, 3)]


def test_neighbours_of_another_file(setting, disk_file, tmp_path) -> None:
    """Never read together, though a small queue has them in the same buckets."""
    from hga.kvstore.memory import aligned_zeros
    from hga.kvstore.reader import Request

    reader, _, runs = setting(n_entries=8)
    data = [disk_file[1], disk_file[1][::-1].copy()]
    other = tmp_path / "other"
    data[1].tofile(other)
    files = [reader.add_file(path) for path in (disk_file[0], other)]
    rng = np.random.default_rng(0)
    for _ in range(200):
        which, first = rng.integers(0, 2, 6), int(rng.integers(500))
        out, tickets = aligned_zeros(6 * CELL).reshape(-1, CELL), []
        for i, w in enumerate(which):
            place = CELL * (first + i)
            tickets.append(reader.submit([Request(files[w], place, CELL, out[i].ctypes.data)]))
        runs()
        for i, w in enumerate(which):
            place = CELL * (first + i)
            assert (out[i] == data[w][place : place + CELL]).all()
    assert reader.stats["merged"] > 0


def test_a_promoted_hint(setting) -> None:
    from hga.kernels.cpu import io_entry

    reader, push, runs = setting()
    hints = push([50, 40, 30], hint=True)
    push([20])
    assert io_entry.promote(reader.address, hints.ctypes.data + 8)
    assert runs() == [(20, 1), (40, 1), (50, 1), (30, 1)]
    assert not io_entry.promote(reader.address, hints.ctypes.data + 8), "no longer queued"
    assert reader.stats["promoted"] == 1


def test_waiting_for_a_hint_reads_it_at_once(setting) -> None:
    from hga.kernels.cpu import io_entry

    reader, push, runs = setting()
    hints = push([50, 40, 30], hint=True)
    assert io_entry.wait_all(reader.address, hints.ctypes.data + 16, 1) == 1
    assert hints.tolist() == [1, 1, 2]
    assert runs() == [(50, 1), (40, 1)]
    stats = reader.stats
    assert (stats["promoted"], stats["helped"], stats["stalls"]) == (1, 1, 1)


def test_stale_hints_are_dropped(setting) -> None:
    reader, push, runs = setting()
    old = push([50, 40], hint=True, generation=1)
    demand = push([45], generation=1)
    new = push([30, 20], hint=True, generation=2)
    assert reader.cancel_hints(2) == 2
    assert old.tolist() == [0, 0] and new.tolist() == [1, 1]
    assert runs() == [(45, 1), (30, 1), (20, 1)]
    assert demand.tolist() == [2] and new.tolist() == [2, 2]
    assert reader.cancel_hints(99) == 0 and reader.stats["cancelled"] == 2
    # The entries are free again.
    for generation in range(3, 200):
        push(range(0, 40, 2), hint=True, generation=generation)
        assert reader.cancel_hints(generation + 1) == 20
    assert runs() == []


def test_hints_leave_room_for_demands(setting) -> None:
    reader, push, runs = setting(n_entries=16)
    hints = push(range(0, 40, 2), hint=True)
    assert hints.tolist() == [1] * 12 + [0] * 8
    assert reader.stats["refused"] == 8
    demands = push(range(100, 120, 2))
    # Four were queued; for the others the pushing thread read some itself.
    assert reader.stats["requests"] == reader.stats["helped"] == 6
    assert demands.tolist() == [2] * 6 + [1] * 4
    assert len(runs()) == 16


def test_the_bound_on_bytes_in_flight(setting) -> None:
    """With one read blocked, no other begins that would pass the bound."""
    reader, push, _ = setting(flight_bytes=3 * CELL, merge_bytes=64 * CELL)
    blocked, go = threading.Event(), threading.Event()

    def fault(fd: int, offset: int, n_bytes: int) -> None:
        if offset == 0:
            blocked.set()
            assert go.wait(60)

    setting.disk.fault = fault
    push([0, 1])
    thread = threading.Thread(target=read_once, args=(reader,))
    thread.start()
    assert blocked.wait(60)
    tickets = push([10, 11])
    assert read_once(reader) == 1, "one cell fits beside the two"
    assert tickets.tolist() == [2, 1]
    push([20, 21, 22, 23])
    go.set()
    thread.join(60)
    assert read_once(reader) == 1
    assert read_once(reader) == 3, "a run ends at the bound"


def test_a_ticket_may_be_used_again(setting) -> None:
    _, push, runs = setting()
    for _ in range(100):
        hints = push([9, 8, 7], hint=True)
        assert (hints == 1).all()
        assert len(runs()) == 3
        assert (hints == 2).all()


def test_random_use_against_a_model(setting) -> None:
    """Every request ends once, in an order that the rules allow."""
    reader, push, runs = setting(n_entries=64, merge_bytes=1)
    rng = np.random.default_rng(5)
    for _ in range(60):
        demands = rng.permutation(500)[: rng.integers(12)].tolist()
        hints = (500 + rng.permutation(500)[: rng.integers(24)]).tolist()
        parts = [(n, False) for n in demands] + [(n, True) for n in hints]
        rng.shuffle(parts)
        for number, hint in parts:
            push([int(number)], hint=bool(hint))
        order = [int(n) for n, h in parts if not h] + [int(n) for n, h in parts if h]
        assert runs() == [(n, 1) for n in order]
    assert reader.stats["errors"] == 0


def test_a_closed_queue(setting) -> None:
    reader, push, _ = setting()
    demands, hints = push([1, 2]), push([3], hint=True)
    reader.close()
    cancelled = -errno.ECANCELED
    assert demands.tolist() == [cancelled] * 2 and hints.tolist() == [cancelled]
    with pytest.raises(StoreError, match="closed"):
        push([4])
