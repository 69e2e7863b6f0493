"""Removing sessions: links, what is none, and removals that are cut short."""

import contextlib
import shutil

import pytest

from hga.kvstore.filelayer import Files
from hga.kvstore.store import SessionStore
from hga.kvstore.store_folder import remove
from hga.kvstore.store_layout import BlockShape


@pytest.fixture
def session(tmp_path):
    """A session's folder."""
    folder = tmp_path / "sessions" / "a"
    SessionStore.create(folder, BlockShape(((2, 256),), 100), {"a": 1}, "text").close()
    return folder


def test_removing_a_link_removes_no_session(session, tmp_path):
    root = session.parent
    for name, target in (("b", session), ("c", root / "nowhere"), ("d", tmp_path)):
        (root / name).symlink_to(target, target_is_directory=True)
        remove(root / name)
    assert [path.name for path in root.iterdir()] == ["a"]
    with SessionStore.open(session) as store:
        assert store.meta == "text"


def test_a_removal_that_is_cut_short_can_be_repeated(session, monkeypatch):
    class Killed(BaseException):
        """Nothing tidies up after it."""

    real, whole = Files.unlink, session.with_name("whole")
    shutil.copytree(session, whole)
    left = 0

    def unlink(self, path):
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        real(self, path)

    n_cuts = 0
    for n in range(20):
        left = n
        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            patched.setattr(Files, "unlink", unlink)
            remove(session)
        if not session.exists():
            break
        n_cuts += 1
        remove(session)
        assert not session.exists()
        shutil.copytree(whole, session)
    assert n_cuts > 3 and not session.exists()


def test_what_is_no_session_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    with pytest.raises(FileNotFoundError, match="no session 'mine'"):
        remove(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="holds something else"):
        SessionStore.open(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes").exists()
