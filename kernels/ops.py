"""The seam between runtime and kernels: one call that runs tokens through layers.

Shapes: T tokens of a call, L layers, H query heads, G KV heads, D head_dim, C chunks of 64 tokens,
E experts, F MLP width, V vocabulary, V16 and E16 rounded up to 16. A backend is opened once, when
an engine opens; it says what it got and, where that is not the best, why. Today's backend is the
CPU (Numba); its parameter blocks are kernels/cpu/params.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .system import usable_processors

if TYPE_CHECKING:
    from .cpu.pool import WorkerPool


@dataclass(slots=True)
class Backend:
    """Compiled kernels and the threads that run them. `close` stops the threads."""

    isa: str
    n_threads: int
    notices: list[str]
    _pool: "WorkerPool" = field(repr=False)
    _forward: int = field(repr=False)

    @property
    def description(self) -> str:
        """Such as "cpu: avx512, 2 threads"."""
        plural = "s" if self.n_threads > 1 else ""
        return f"cpu: {self.isa}, {self.n_threads} thread{plural}"

    def forward(self, params: int, n_active: int | None = None) -> None:
        """Run the forward kernel on the CALL block at an address, on the first n_active threads
        (None: on all); their number changes no result."""
        self._pool.run(self._forward, params, n_active)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def default_threads() -> int:
    """Physical cores that this process may use; at least one."""
    import psutil

    usable = usable_processors()
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


_selected: list[tuple[Path, str | None]] = []


def choose_cpu(cache_root: Path, isa: str | None = None) -> tuple[Path, str | None]:
    """The folder of compiled kernels under cache_root, and a problem with it if there is one. The
    first call of a process chooses; it comes before any kernel is used."""
    from .cpu import target

    if not _selected:
        _selected.append(target.select(cache_root, isa))
    return _selected[0]


def is_compiled(folder: Path) -> bool:
    """Whether a folder of compiled kernels holds the forward kernel."""
    return any(folder.rglob("forward.*.nbc"))


def open_cpu(cache_root: Path, n_threads: int | None = None, isa: str | None = None) -> Backend:
    """Load the CPU kernels from cache_root, or compile them, and start the threads. The
    instruction set is fixed by the first call of a process."""
    from .cpu import target

    _, problem = choose_cpu(cache_root, isa)
    from .cpu.forward import forward
    from .cpu.pool import WorkerPool

    notices = [note for note in (problem, target.shortfall()) if note]
    threads = n_threads or default_threads()
    return Backend(target.detect(), threads, notices, WorkerPool(threads), forward.address)
