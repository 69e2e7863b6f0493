"""A small block shape, a model of a session to compare the store with, and a disk with faults."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import BlockShape

SHAPE = BlockShape(((2, 256), (1, 512)), 100)
FINGERPRINT = {"model": "abc", "n_layers": 2, "attention": "hga"}


class Twin:
    """A session store and what it should hold: `saved` is the list of all states that commits
    made, the last one the newest. A block's bytes are random, drawn anew whenever it is written."""

    def __init__(self, folder: Path, files=None, seed=0):
        self.folder, self.files = folder, files
        self.random = np.random.default_rng(seed)
        self.tokens: list[int] = []
        self.blocks: list[tuple[bytes, bytes]] = []
        self.saved: list[tuple[list[int], list[tuple[bytes, bytes]], str]] = []
        self.store: SessionStore | None = None

    def create(self):
        # In case it is cut short after it took effect.
        self.saved.append(([], [], "new"))
        self.store = SessionStore.create(self.folder, SHAPE, FINGERPRINT, "new", self.files)
        return self

    def turn(self, n_tokens, keep=None):
        """Keep some tokens, add others, write the blocks that changed and commit."""
        keep = len(self.tokens) if keep is None else keep
        meta = f"{len(self.saved)} turns " * 20
        self.saved.append(None)
        self.store.truncate(keep)
        self.tokens = [*self.tokens[:keep], *self.random.integers(0, 1 << 30, n_tokens).tolist()]
        n_blocks = -(-len(self.tokens) // 128)
        first = keep // 128 if n_tokens else n_blocks
        self.blocks = self.blocks[: -(-keep // 128)]
        for block in range(first, n_blocks):
            kv, index = self.random.bytes(SHAPE.kv_bytes), self.random.bytes(SHAPE.index_bytes)
            parts = np.frombuffer(kv, np.uint8)
            if block % 2:
                parts = [parts[:4096], parts[4096:]]
            self.store.write_block(block, parts, np.frombuffer(index, np.uint8))
            self.blocks[block:] = [(kv, index)]
        self.saved[-1] = (list(self.tokens), list(self.blocks), meta)
        self.store.commit(self.tokens, meta)

    def fork(self, folder, n_tokens):
        """The twin of a fork, not opened."""
        other = Twin(folder, self.files, int(self.random.integers(1 << 30)))
        other.tokens = self.tokens[:n_tokens]
        other.blocks = self.blocks[: -(-n_tokens // 128)]
        other.saved.append((list(other.tokens), list(other.blocks), "forked"))
        self.store.fork(folder, n_tokens, "forked")
        return other

    def open(self):
        self.store = SessionStore.open(self.folder, FINGERPRINT, self.files)
        return self


def state_of(store: SessionStore):
    """What a store holds, read block by block."""
    out = np.empty(SHAPE.kv_bytes, np.uint8)
    blocks = []
    for block in range(-(-store.n_tokens // 128)):
        index = store.read_index(block).tobytes()
        store.read_block(block, out)
        blocks.append((out.tobytes(), index))
    return store.tokens.tolist(), blocks, store.meta


@pytest.fixture(scope="session", autouse=True)
def _compiled(kernel_cache: Path) -> None:
    """Sums are compiled once for all runs."""
    from hga.kernels import ops

    if "hga.kernels.cpu.simd" not in sys.modules:
        ops.choose_cpu(kernel_cache / "kernels")


@pytest.fixture(scope="session")
def disk(load_module) -> ModuleType:
    """The module fault_disk.py."""
    return load_module(Path(__file__).with_name("fault_disk.py"))


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory where there is one, for tests that write much."""
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="hga-", dir=shared if shared.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def twin():
    """The class of a store with a model beside it."""
    return Twin


@pytest.fixture
def shape() -> BlockShape:
    """Two layers: two KV heads of 256-byte cells, one of 512."""
    return SHAPE


@pytest.fixture
def fingerprint() -> dict[str, object]:
    """What the twins store."""
    return dict(FINGERPRINT)


@pytest.fixture
def read_state():
    """`state_of`."""
    return state_of
