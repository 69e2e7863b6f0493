"""Power cuts, full disks and failing disks at every single operation of a scripted session."""

import errno
import shutil

import pytest

from hga.kvstore.errors import StoreError
from hga.kvstore.store import SessionStore


def script(twin, folder, files):
    """Create, turns, growth over segments, truncation, a fork, both going on, an empty session."""
    first = twin(folder / "first", files)
    twins = [first]
    yield twins
    first.create()
    first.turn(100)
    first.turn(100)
    first.turn(500)
    first.turn(170, keep=150)
    other = twin(folder / "other", files)
    twins.append(other)
    other.saved.append((first.tokens[:200], first.blocks[:2], "forked"))
    forked = first.fork(folder / "other", 200)
    other.tokens, other.blocks = forked.tokens, forked.blocks
    first.turn(60, keep=120)
    other.open()
    other.turn(30)
    other.turn(300, keep=10)
    other.store.close()
    first.turn(0, keep=0)
    first.turn(10)
    first.store.close()


def play(twin, folder, files):
    """Run the script; returns (twins, what ended it)."""
    run = script(twin, folder, files)
    twins = next(run)
    ended = None
    try:
        for _ in run:
            pass
    except BaseException as error:
        if not (isinstance(error, StoreError) or type(error).__name__ == "PowerCut"):
            raise
        ended = error
    return twins, ended


def reopened(each, read_state):
    """The state of a session after a crash, None where it was never made."""
    each.files = None
    if not each.folder.exists():
        return None
    with each.open().store as store:
        return read_state(store)


def n_points(twin, quick_path, disk, **options):
    files = disk.FaultDisk(quick_path, **options)
    twins, ended = play(twin, quick_path / "dry", files)
    assert ended is None and len(twins) == 2
    files.close_all()
    shutil.rmtree(quick_path / "dry")
    return files.count


def test_power_is_cut_at_every_write_and_sync(twin, quick_path, disk, read_state):
    total = n_points(twin, quick_path, disk)
    assert total > 120
    seen = set()
    for at in [at for at in range(1, total + 1) for _ in range(4)]:
        files = disk.FaultDisk(quick_path, seed=disk.random.randrange(1 << 30), at=at)
        folder = quick_path / str(at)
        twins, ended = play(twin, folder, files)
        assert type(ended) is disk.PowerCut
        for each in twins:
            if each.store is not None:
                each.store.close()
        files.cut_power()
        for each in twins:
            found = reopened(each, read_state)
            # The last commit that returned, or the one under way: nothing older, nothing else.
            possible = each.saved[-2:] if each.saved else [None]
            if len(each.saved) <= 1:
                possible = [*possible, None]
            assert found in possible, f"{each.folder.name}, cut at {at}: {files.trail[-1]}"
            seen.add(found is not None and found == each.saved[-1])
            if found is not None:
                goes_on(each, found, read_state)
        shutil.rmtree(folder)
    assert seen == {True, False}


def goes_on(each, found, read_state):
    """The session takes another turn, and is whole after it."""
    each.tokens, each.blocks = list(found[0]), list(found[1])
    each.open()
    each.turn(140)
    each.store.close()
    with SessionStore.open(each.folder) as store:
        assert read_state(store) == each.saved[-1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_the_disk_fails_at_every_operation(twin, quick_path, disk, read_state, code):
    total = n_points(twin, quick_path, disk)
    refused = 0
    for at in range(1, total + 1):
        files = disk.FaultDisk(quick_path, seed=at, at=at, fault=code)
        folder = quick_path / str(at)
        twins, ended = play(twin, folder, files)
        made = "a new session" not in str(ended)
        failed = next(
            (t for t in twins if made and f"session {t.folder.name!r}" in str(ended)), None
        )
        if ended is None:
            # A file that no commit names could not be removed.
            assert files.trail[at - 1].startswith("unlink")
        elif code == errno.ENOSPC and "needs" in str(ended):
            assert "bytes and 12345 are free" in str(ended)
            if failed is not None:
                usable(failed, read_state, roll_back=bool(at % 2))
        elif failed is not None:
            refused += 1
            with pytest.raises(StoreError, match="opened again"):
                failed.store.commit(failed.store.tokens, "x")
        for each in twins:
            if each.store is not None:
                each.store.close()
        files.close_all()
        for each in twins:
            found = reopened(each, read_state)
            assert found in each.saved[-2:] or (found is None and len(each.saved) < 2)
        shutil.rmtree(folder)
    assert refused > (5 if code == errno.ENOSPC else 50)


def usable(each, read_state, roll_back):
    """After a full disk: the store is at its last commit, and the next one succeeds, whether what
    was written is given up or not."""
    held = each.store.tokens.tolist(), each.store.meta
    state = next(s for s in reversed(each.saved) if s is not None and (s[0], s[2]) == held)
    assert state in each.saved[-2:]
    if roll_back:
        each.store.roll_back()
        assert read_state(each.store) == state
    each.saved = [*each.saved[: each.saved.index(state) + 1]]
    each.tokens, each.blocks = list(state[0]), list(state[1])
    # Who goes back gives up what was written; who does not writes anew.
    each.turn(200, keep=len(state[0]) // 2 if roll_back else 0)
    assert read_state(each.store) == each.saved[-1]


def test_short_and_interrupted_calls_change_nothing(twin, quick_path, disk, read_state):
    for seed in range(3):
        files = disk.FaultDisk(quick_path, seed=seed, clumsy=True)
        twins, ended = play(twin, quick_path / str(seed), files)
        assert ended is None
        files.close_all()
        for each in twins:
            assert reopened(each, read_state) == each.saved[-1]
