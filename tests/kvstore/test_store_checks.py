"""Checks of the store that only an unlucky moment or a mistaken caller would need."""

import errno
import os
import shutil

import pytest

from hga.kvstore import lock as locks
from hga.kvstore.errors import StoreError
from hga.kvstore.filelayer import Files
from hga.kvstore.store import SessionStore


class NoRoomForHeads(Files):
    """A disk that has room for everything but a head that grows, while `full`."""

    full = False

    def __init__(self) -> None:
        self.names_of: dict[int, str] = {}

    def open(self, path, flags):
        fd = super().open(path, flags)
        self.names_of[fd] = path.name
        return fd

    def _refuse(self, fd, end):
        if self.full and self.names_of[fd].startswith("head") and end > self.size(fd):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def allocate(self, fd, n_bytes):
        self._refuse(fd, n_bytes)
        return super().allocate(fd, n_bytes)

    def write(self, fd, views, offset):
        self._refuse(fd, offset + sum(map(len, views)))
        return super().write(fd, views, offset)


def test_room_for_a_head_is_had_before_one_is_overwritten(twin, tmp_path):
    files = NoRoomForHeads()
    each = twin(tmp_path / "a", files).create()
    each.turn(100)
    each.turn(100)
    files.full = True
    with pytest.raises(StoreError, match=r"needs .* bytes and") as caught:
        each.store.commit(each.store.tokens, "".join(map(chr, range(256, 9000))))
    assert caught.value.errno == errno.ENOSPC
    files.full = False
    # Nothing was touched: the store goes on, and both heads are whole.
    each.turn(50)
    each.store.close()
    with SessionStore.open(tmp_path / "a") as store:
        assert store.verify() == 2 and store.notices == []


def test_a_session_that_is_removed_while_it_is_locked(twin, tmp_path, monkeypatch):
    each = twin(tmp_path / "a").create()
    each.store.close()
    real = locks.lock

    def late(fd):
        shutil.rmtree(tmp_path / "a")
        twin(tmp_path / "a").create().store.close()
        real(fd)

    def once(fd):
        monkeypatch.undo()
        late(fd)

    monkeypatch.setattr(locks, "lock", once)
    with pytest.raises(StoreError, match="was removed just now"):
        SessionStore.open(tmp_path / "a")


def test_blocks_that_were_given_up_have_to_be_written_again(twin, tmp_path):
    each = twin(tmp_path / "a").create()
    each.turn(650)
    words = each.store.tokens
    each.store.truncate(200)
    with pytest.raises(ValueError, match="block 2 has changed and was not written"):
        each.store.commit(words, "the same tokens")
    each.store.close()
