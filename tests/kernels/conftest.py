"""The compiled entry points of the kernels, for the instruction set under test."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hga.kernels import ops
from hga.kernels.cpu import target


@pytest.fixture(scope="session")
def cpu(
    kernel_cache: Path, kernel_isa: str | None, load_module: Callable[[Path], ModuleType]
) -> ModuleType:
    """The entry points of cpu_entry.py and cpu_entry_routing.py, compiled for `kernel_isa`."""
    if kernel_isa is None:
        ops.open_cpu(kernel_cache / "kernels", 1).close()
    else:
        # Without the forward kernel, which takes longest to compile and is not called here.
        target.select(kernel_cache / "kernels", kernel_isa)
    names = ("cpu_entry.py", "cpu_entry_routing.py")
    module, more = (load_module(Path(__file__).with_name(name)) for name in names)
    for name, value in vars(more).items():
        if not name.startswith("_"):
            setattr(module, name, value)
    return module
