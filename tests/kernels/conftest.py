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
    """The module tests/kernels/cpu_entry.py, compiled for `kernel_isa`."""
    if kernel_isa is None:
        ops.open_cpu(kernel_cache / "kernels", 1).close()
    else:
        # Without the forward kernel, which takes longest to compile and is not called here.
        target.select(kernel_cache / "kernels", kernel_isa)
    spec = importlib.util.spec_from_file_location(
        "cpu_entry", Path(__file__).with_name("cpu_entry.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cpu_entry"] = module
    spec.loader.exec_module(module)
    return module
