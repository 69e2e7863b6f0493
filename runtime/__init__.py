"""The runtime: `from hga.runtime import Engine, Options, Session`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine
    from .options import Options
    from .session import Session

__all__ = ["Engine", "Options", "Session"]

_HOMES = {"Engine": ".engine", "Options": ".options", "Session": ".session"}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line must start without the numerical libraries."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name], __name__), name)
