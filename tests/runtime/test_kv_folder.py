"""Temporary folders of keys and values: none is left, whatever ends the making of one."""

import os
import time

import pytest

from hga.kvstore.errors import StoreError
from hga.kvstore.store import SessionStore
from hga.runtime.kv_folder import remove_store, temporary_store


@pytest.fixture
def geometry(engine):
    return engine.geometry


@pytest.mark.parametrize("failure", [StoreError(28, "no room"), KeyboardInterrupt()])
def test_a_store_that_is_not_made_leaves_nothing(geometry, tmp_path, monkeypatch, failure):
    def fail(*given):
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
