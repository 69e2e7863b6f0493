"""Where hga keeps its files on this machine: the XDG base directories, or the platform's own.

Packs and fetched models live in the cache folder, history in the state folder, config.toml in
the configuration folder. Nothing here creates a folder.
"""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/hga`, else the platform's cache folder for hga."""
    return _folder("XDG_CACHE_HOME", "user_cache_path")


def state_folder() -> Path:
    """`$XDG_STATE_HOME/hga`, else the platform's state folder for hga."""
    return _folder("XDG_STATE_HOME", "user_state_path")


def config_folder() -> Path:
    """`$XDG_CONFIG_HOME/hga`, else the platform's configuration folder for hga."""
    return _folder("XDG_CONFIG_HOME", "user_config_path")


def expand(path: str | Path) -> Path:
    """A path with a leading ~ as the home folder it stands for; that of a user who is not known,
    which Path.expanduser takes for a failure, is a name as any other."""
    return Path(os.path.expanduser(path))


def _folder(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable, "")
    # The XDG specification tells readers to ignore a relative path.
    if base and Path(base).is_absolute():
        return Path(base) / "hga"
    import platformdirs

    found: Path = getattr(platformdirs, fallback)("hga", appauthor=False)
    return found
