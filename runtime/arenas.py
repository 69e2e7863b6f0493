"""What a session's keys and values lie in, by where the engine's plan puts them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from hga.kvstore.arena import RamArena
from hga.kvstore.disk_arena import DiskArena
from hga.kvstore.store import SessionStore

from .kv_folder import remove_store, temporary_store

if TYPE_CHECKING:
    from .cuda_forward import CudaForward
    from .engine import Engine


def open_arena(engine: "Engine", named: SessionStore | None) -> RamArena | DiskArena:
    """An arena over a named session's store, which stays the caller's, or one of its own."""
    if not engine.placement.on_disk:
        if engine.on_card:
            return cast("RamArena", cast("CudaForward", engine.forward_pass).new_arena())
        return RamArena(engine.geometry, engine.ctx)
    store = named or temporary_store(engine.geometry, engine.kv_dir, engine.sum_cells)
    try:
        arena = _on_disk(engine, store, lambda: None if named else remove_store(store))
    except BaseException:
        if named is None:
            remove_store(store)
        raise
    if named is None:
        for text in store.notices:
            engine.note(text)
    return arena


def _on_disk(engine: "Engine", store: SessionStore, on_close: Callable[[], None]) -> DiskArena:
    windows, p = engine.windows, engine.placement
    sizes = p.frame_bytes, p.overflow_cells
    if engine.on_card:
        card, reader = cast("CudaForward", engine.forward_pass), engine.plain_reader
        return card.new_disk_arena(windows, store, reader, *sizes, on_close)
    geometry, ctx = engine.geometry, engine.ctx
    return DiskArena(geometry, ctx, windows, store, engine.reader, *sizes, on_close)
