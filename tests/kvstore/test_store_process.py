"""Real processes and real disks: kill -9 in a growing session, a small full disk, a file size
limit."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hga.kvstore.errors import StoreError
from hga.kvstore.store import SessionStore

# Every turn's tokens and bytes follow from its number, so that the parent knows what to expect.
WRITER = """
import random, sys
from pathlib import Path
import numpy as np
from hga.kernels.cpu import target
target.select(Path(sys.argv[3]))
from hga.kvstore import cellsums
from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import BlockShape
folder, turn = Path(sys.argv[1]), int(sys.argv[2])
shape = BlockShape(((2, 256), (1, 512)), 100)
store = SessionStore.open(folder) if folder.exists() else SessionStore.create(folder, shape, {})
cellsums.cell_sums(np.zeros(256, np.uint8), 256, 0, np.zeros(1, np.uint32))
print("ready", flush=True)
while True:
    turn += 1
    draw = random.Random(turn)
    keep = store.n_tokens if draw.random() < 0.7 else draw.randrange(store.n_tokens + 1)
    if keep > 3000:
        keep = 100
    words = [*store.tokens.tolist()[:keep], *[turn] * draw.randrange(1, 300)]
    store.truncate(keep)
    for block in range(keep // 128, -(-len(words) // 128)):
        value = (block + turn) % 256
        store.write_block(block, np.full(8192, value, np.uint8), np.full(100, value, np.uint8))
    store.commit(words, str(turn))
    print(turn, flush=True)
"""


def test_kill_9_in_a_growing_session(tmp_path, kernel_cache):
    folder, turn, kills = tmp_path / "a", 0, 0
    words = [sys.executable, "-P", "-c", WRITER, str(folder)]
    deadline = time.monotonic() + 60
    while kills < 12 and time.monotonic() < deadline:
        command = [*words, str(turn), str(kernel_cache / "kernels")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(0.05 + 0.031 * (kills % 7))
            child.send_signal(signal.SIGKILL)
            said = [int(line) for line in child.stdout.read().split("\n")[:-1]]
        kills += 1
        with SessionStore.open(folder) as store:
            store.verify()
            found = int(store.meta or 0)
            # The last turn that was reported, or the one whose report was cut off.
            assert found in ((said or [turn])[-1], (said or [turn])[-1] + 1)
            assert not found or store.tokens[-1] == found
            turn = found
    assert kills >= 2 and turn > 3


def test_a_full_disk(twin, tmp_path, read_state):
    mount = Path(tempfile.mkdtemp(dir=tmp_path))
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(mount)]
    try:
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        pytest.skip("a small file system needs the command mount")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr!r}")
    try:
        each = twin(mount / "a").create()
        each.turn(300)
        with pytest.raises(
            StoreError, match=r"block \d+ needs \d+ bytes and \d+ are free"
        ) as caught:
            for _ in range(10):
                each.turn(900)
        assert caught.value.errno == 28 and str(mount / "a") in caught.value.strerror
        each.saved.pop()
        each.store.roll_back()
        assert read_state(each.store) == each.saved[-1]
        # A shorter conversation still fits.
        each.tokens, each.blocks = list(each.saved[-1][0]), list(each.saved[-1][1])
        each.turn(20, keep=50)
        assert read_state(each.store) == each.saved[-1]
        each.store.close()
        filler = mount / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        with pytest.raises(StoreError, match="a new session 'b' needs"):
            twin(mount / "b").create()
        assert not (mount / "b").exists() and not list(mount.glob(".b*"))
        each.open()
        with pytest.raises(StoreError, match=r"save \d+ needs \d+ bytes"):
            each.store.commit(each.tokens, os.urandom(9000).hex())
        assert read_state(each.store) == each.saved[-1]
        filler.unlink()
        each.turn(20)
        assert read_state(each.store) == each.saved[-1]
        each.store.close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_limit_on_the_size_of_files(twin, tmp_path, read_state):
    resource = pytest.importorskip("resource", reason="limits and sizes of processes are POSIX's")
    each = twin(tmp_path / "a").create()
    each.turn(100)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="below the limit on the size of files"):
            each.turn(900)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    each.saved.pop()
    each.store.roll_back()
    assert read_state(each.store) == each.saved[-1]
    each.store.close()
