"""Names for kernels that a factory makes.

Numba names machine code by qualified name and a counter of the process. The counter starts anew in
each process, so that two closures of one factory, cached by different processes, may come to share
a name; whichever is loaded first then serves for both. A name of its own for each prevents it.
"""

from collections.abc import Callable
from typing import Any


def named(name: str) -> Callable[[Any], Any]:
    """Add a name to a function's qualified name; goes below `njit`."""

    def wrap(function: Any) -> Any:
        function.__qualname__ += f".{name}"
        return function

    return wrap
