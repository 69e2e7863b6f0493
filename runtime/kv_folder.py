"""Folders for keys and values of sessions without a name: made when one begins, removed when it
ends; what a killed process left behind is removed by the next."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from hga.kvstore.cellsums import SumCells, cell_sums
from hga.kvstore.errors import StoreError
from hga.kvstore.geometry import Geometry
from hga.kvstore.lock import NAME as LOCK_NAME
from hga.kvstore.lock import FolderLock
from hga.kvstore.segments import NEW
from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import BlockShape

_PREFIX = "kv-"
_MAKING_S = 600


def temporary_store(
    geometry: Geometry, parent: Path, sum_cells: SumCells = cell_sums
) -> SessionStore:
    """A store in a new folder of `parent`, for `remove_store`; raises StoreError."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)) / "session"
    except OSError as error:
        raise StoreError(
            f"keys and values cannot be stored in {parent}: {error.strerror} (--kv-dir names"
            " another folder)"
        ) from error
    try:
        return SessionStore.create(folder, BlockShape.of(geometry), {}, sum_cells=sum_cells)
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise


def remove_store(store: SessionStore) -> None:
    """Close a temporary store and remove it."""
    store.close()
    shutil.rmtree(store.folder.parent, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(_PREFIX + "*"):
        places = (folder / "session", folder / (".session" + NEW))
        locked = [place for place in places if (place / LOCK_NAME).exists()]
        with contextlib.suppress(OSError):
            if locked:
                # Its lock tells whether it is in use, whatever the clock says.
                FolderLock.take(locked[0]).release()
            elif abs(time.time() - folder.stat().st_mtime) < _MAKING_S:
                # Just being made; one that was long ago, or is said to be yet, never will be.
                continue
            shutil.rmtree(folder, ignore_errors=True)
