"""Worker threads: kernels meet, workers sleep and wake, and nothing burns when idle."""

import contextlib
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


class Meeting:
    """Parameter block of the entry point `meet`."""

    def __init__(self, n_threads: int) -> None:
        self.block = np.zeros(4 + 64, np.int64)
        self.n_threads = n_threads

    def hold(self, pool, kernel: int, value: int) -> None:
        self.block[0], self.block[1] = 0, value
        pool.run(kernel, self.block.ctypes.data)
        assert self.block[3] == 0, "a thread passed a barrier before the others"
        assert (self.block[4 : 4 + self.n_threads] == value).all()


@pytest.fixture(scope="module")
def pools(cpu: ModuleType):
    """The class WorkerPool; kernels are imported after their instruction set is chosen."""
    from hga.kernels.cpu.pool import WorkerPool

    return WorkerPool


# With more threads than cores a barrier costs time slices.
@pytest.mark.parametrize(("n_threads", "n_kernels"), [(1, 10000), (2, 10000), (3, 200), (4, 200)])
def test_many_small_kernels(cpu: ModuleType, pools, n_threads: int, n_kernels: int) -> None:
    rng = np.random.default_rng(n_threads)
    meeting = Meeting(n_threads)
    with pools(n_threads) as pool:
        for i in range(n_kernels):
            meeting.hold(pool, cpu.meet.address, i)
            if i % 50 == 0:
                # Around the millisecond after which a worker goes to sleep.
                time.sleep(rng.uniform(0, 0.004))
    assert meeting.block[2] == n_kernels


def test_some_threads_alone(cpu: ModuleType, pools) -> None:
    rng = np.random.default_rng(0)
    with pools(3) as pool:
        for i in range(300):
            meeting = Meeting(int(rng.integers(1, 4)))
            meeting.block[1] = i
            pool.run(cpu.meet.address, meeting.block.ctypes.data, meeting.n_threads)
            assert meeting.block[3] == 0 and meeting.block[2] == 1
            assert (meeting.block[4 : 4 + meeting.n_threads] == i).all()
            assert (meeting.block[4 + meeting.n_threads :] == 0).all()
            if i % 30 == 0:
                time.sleep(rng.uniform(0, 0.004))


def test_workers_wake_from_a_nap(cpu: ModuleType, pools) -> None:
    meeting = Meeting(2)
    with pools(2) as pool:
        for i in range(5):
            time.sleep(0.05)
            start = time.perf_counter()
            meeting.hold(pool, cpu.meet.address, i)
            assert time.perf_counter() - start < 1


def test_an_idle_pool_burns_nothing(cpu: ModuleType, pools) -> None:
    meeting = Meeting(4)
    with pools(4) as pool:
        meeting.hold(pool, cpu.meet.address, 1)
        time.sleep(0.05)
        start = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - start < 0.1


@pytest.mark.parametrize("n_threads", [1, 3])
def test_closing(cpu: ModuleType, pools, n_threads: int) -> None:
    before = threading.active_count()
    pool = pools(n_threads)
    assert threading.active_count() == before + n_threads - 1
    Meeting(n_threads).hold(pool, cpu.meet.address, 1)
    for _ in range(3):
        pool.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(cpu.meet.address, 0)


@pytest.mark.parametrize("pause", [0, 0.02])
def test_closing_a_pool_that_never_ran(pools, pause: float) -> None:
    pool = pools(4)
    time.sleep(pause)
    pool.close()
    assert not any(thread.is_alive() for thread in pool._threads)


def test_many_pools(cpu: ModuleType, pools) -> None:
    for i in range(30):
        with pools(1 + i % 4) as pool:
            Meeting(1 + i % 4).hold(pool, cpu.meet.address, i)


def test_a_pool_that_nobody_closed_keeps_its_mailbox(cpu: ModuleType, pools) -> None:
    """Its workers look into the mailbox as long as they live."""
    pool = pools(2)
    Meeting(2).hold(pool, cpu.meet.address, 1)
    forgotten = weakref.ref(pool)
    del pool
    gc.collect()
    assert forgotten() is not None
    forgotten().close()


@pytest.mark.parametrize("closing", ["", "pool.close()", "raise SystemExit(0)"])
def test_a_process_ends_quietly(closing: str, kernel_cache: Path, kernel_isa: str | None) -> None:
    """With its workers closed, spinning or napping."""
    script = (
        "import time; from pathlib import Path; from hga.kernels.cpu import target\n"
        f"target.select(Path({str(kernel_cache / 'kernels')!r}), {kernel_isa!r})\n"
        "from hga.kernels.cpu.pool import WorkerPool\n"
        f"pool = WorkerPool(3); other = WorkerPool(2); time.sleep(0.01)\n{closing}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("n_threads", [0, -1])
def test_a_pool_needs_a_thread(pools, n_threads: int) -> None:
    with pytest.raises(ValueError, match="at least one thread"):
        pools(n_threads)


class Bell(Exception):
    """What the signal handler raises."""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals to threads")
def test_an_interrupt_leaves_the_pool_usable(cpu: ModuleType, pools) -> None:
    """Ctrl-C may raise between any two bytecodes of `run`: the workers must never be left waiting
    for a thread that went away."""

    def ring(number: int, frame: object) -> None:
        raise Bell

    def ringer() -> None:
        rng = np.random.default_rng(0)
        main = threading.main_thread().ident
        while not over.is_set():
            armed.wait()
            armed.clear()
            time.sleep(rng.uniform(0, 4e-4))
            signal.pthread_kill(main, signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, ring)
    armed, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=ringer)
    interrupted = 0
    try:
        with pools(2) as pool:
            meeting = Meeting(2)
            meeting.hold(pool, cpu.meet.address, 0)
            thread.start()
            for i in range(500):
                try:
                    armed.set()
                    while True:
                        meeting.hold(pool, cpu.meet.address, i)
                except Bell:
                    interrupted += 1
                if i % 40 == 0:
                    time.sleep(0.003)
            over.set()
            meeting.hold(pool, cpu.meet.address, -1)
    finally:
        over.set()
        with contextlib.suppress(Bell):
            armed.set()
            thread.join()
        signal.signal(signal.SIGUSR1, previous)
    assert interrupted == 500
