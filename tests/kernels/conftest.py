"""The compiled entry points of the kernels, for the instruction set under test."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hga.kernels import ops
from hga.kernels.cpu import target


@pytest.fixture(scope="session")
def cpu(kernel_cache: Path, kernel_isa: str | None) -> ModuleType:
    """The entry points of cpu_entry.py and cpu_entry_routing.py, compiled for `kernel_isa`."""
    if kernel_isa is None:
        ops.open_cpu(kernel_cache / "kernels", 1).close()
    else:
        # Without the forward kernel, which takes longest to compile and is not called here.
        target.select(kernel_cache / "kernels", kernel_isa)
    module, more = _load("cpu_entry"), _load("cpu_entry_routing")
    for name, value in vars(more).items():
        if not name.startswith("_"):
            setattr(module, name, value)
    return module


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
