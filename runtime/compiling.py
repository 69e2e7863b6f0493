"""Kernels compiled before their first use, in processes of their own: what a compilation takes of
memory goes with its process, and what the two of them compile they compile side by side."""

import contextlib
import subprocess
import sys
from pathlib import Path

_BEGIN = (
    "import sys; from pathlib import Path; from hga.kernels import ops; root = Path(sys.argv[1]);"
)
_FORWARD = _BEGIN + "ops.open_cpu(root, 2).close()"
# All that reads and verifies keys and values on disk, called with nothing to do.
_READER = (
    _BEGIN
    + "ops.choose_cpu(root);"
    + "import numpy as np; from hga.kvstore.reader import Reader; reader = Reader.open();"
    + "from hga.kernels.cpu.residency import read_blocks;"
    + "read_blocks(reader.address, 0, 0, 0, 0, 0, 0, 0, 0); reader.close();"
    + "from hga.kvstore.cellsums import cell_sums;"
    + "cell_sums(np.zeros(256, np.uint8), 256, 0, np.zeros(1, np.uint32))"
)


def compile_ahead(cache_root: Path) -> None:
    """Fill the folder of compiled kernels below cache_root. Where a process fails, kernels are
    compiled when they are first used."""
    started: list[subprocess.Popen[bytes]] = []
    nothing = subprocess.DEVNULL
    try:
        with contextlib.suppress(OSError):
            for code in (_FORWARD, _READER):
                words = [sys.executable, "-P", "-c", code, str(cache_root)]
                child = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing)
                started.append(child)
        for child in started:
            child.wait()
    finally:
        for child in started:
            child.kill()
            child.wait()
