"""Temporary folders of keys and values: none is left, whatever ends the making of one."""

import os
import time

import pytest

from hga.kvstore.errors import StoreError
from hga.kvstore.lock import FolderLock
from hga.kvstore.store import SessionStore
from hga.runtime.kv_folder import remove_store, temporary_store


@pytest.fixture
def geometry(engine):
    return engine.geometry


@pytest.mark.parametrize("failure", [StoreError(28, "no room"), KeyboardInterrupt()])
def test_a_store_that_is_not_made_leaves_nothing(geometry, tmp_path, monkeypatch, failure):
    def fail(*given, **named):
        raise failure

    monkeypatch.setattr(SessionStore, "create", fail)
    with pytest.raises(type(failure)):
        temporary_store(geometry, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_next_removes_what_was_abandoned(geometry, tmp_path):
    # Killed between its folder and its session: now, and an hour ago.
    new, old = tmp_path / "kv-new", tmp_path / "kv-old"
    for folder in (new, old):
        (folder / ".session.new").mkdir(parents=True)
    os.utime(old, (time.time() - 3600,) * 2)
    killed = temporary_store(geometry, tmp_path)
    killed.close()
    store = temporary_store(geometry, tmp_path)
    assert {path for path in tmp_path.iterdir()} == {new, store.folder.parent}
    remove_store(store)
    assert [path for path in tmp_path.iterdir()] == [new]


@pytest.mark.parametrize("seconds", [0, 4_102_444_800])
def test_whether_a_folder_is_in_use_is_not_told_by_its_date(geometry, tmp_path, seconds):
    making, used, left = (tmp_path / f"kv-{name}" for name in ("making", "used", "left"))
    store = temporary_store(geometry, tmp_path)
    used, new = store.folder.parent, making / ".session.new"
    new.mkdir(parents=True)
    held = FolderLock.take(new)
    (left / ".session.new").mkdir(parents=True)
    FolderLock.take(left / ".session.new").release()
    for folder in (making, used, left):
        os.utime(folder, (seconds, seconds))
    other = temporary_store(geometry, tmp_path)
    assert making.exists() and used.exists() and not left.exists()
    held.release()
    remove_store(store)
    remove_store(other)


def test_an_empty_folder_of_a_clock_that_was_wrong_goes(geometry, tmp_path):
    for name, seconds in (("past", 0), ("future", 4_102_444_800)):
        (tmp_path / f"kv-{name}").mkdir()
        os.utime(tmp_path / f"kv-{name}", (seconds, seconds))
    remove_store(temporary_store(geometry, tmp_path))
    assert not list(tmp_path.iterdir())
