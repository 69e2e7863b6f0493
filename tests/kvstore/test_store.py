"""What a session store promises while nothing goes wrong: round trips, forks, space, one owner."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hga.kvstore import slots, store_folder
from hga.kvstore.errors import SessionError, StoreError
from hga.kvstore.geometry import Geometry, LayerShape
from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import BlockShape


def test_what_was_committed_comes_back(twin, tmp_path, read_state):
    made = twin(tmp_path / "a").create()
    for n_tokens, keep in ((5, None), (300, None), (0, 250), (700, 130), (0, 0), (1000, None)):
        made.turn(n_tokens, keep)
        assert read_state(made.store) == made.saved[-1]
        made.store.close()
        made.open()
        assert read_state(made.store) == made.saved[-1]
    assert made.store.generation == 7 and made.store.notices == []
    made.store.close()


def test_the_shape_is_the_geometry(shape):
    geometry = Geometry((LayerShape(2, 64, True), LayerShape(3, 32, False)), sketch_bits=1)
    found = BlockShape.of(geometry)
    assert found.kv_bytes == geometry.block_kv_bytes
    assert found.index_bytes == geometry.block_index_bytes
    assert found.block_bytes % 4096 == 0
    # Cells are numbered in the order of bytes, as the kernels' table has their offsets.
    places = {}
    for number in range(found.n_cells):
        place, offset = found.place(number)
        places[place.layer, place.head, 4 * place.chunk + place.cell] = offset
    for layer in range(2):
        offsets = geometry.cell_offsets(layer)
        for (head, cell), offset in np.ndenumerate(offsets):
            assert places[layer, head, cell] == offset
    assert len(places) == found.n_cells == 16 + 24


def test_a_located_block_can_be_read_and_verified_by_others(twin, tmp_path, shape):
    # Not before the kernels' folder is chosen.
    from hga.kernels.cpu.checksum import cell_sum

    made = twin(tmp_path / "a").create()
    made.turn(1000)
    made.store.close()
    with made.open().store as store:
        for block in range(8):
            at = store.locate(block)
            data = np.fromfile(at.path, np.uint8, shape.kv_bytes, offset=at.offset)
            assert os.pread(at.fd, shape.kv_bytes, at.offset) == data.tobytes()
            assert data.tobytes() == made.blocks[block][0] and at.offset % 4096 == 0
            for number in range(shape.n_cells):
                place, offset = shape.place(number)
                seed = np.uint64((at.seed + number) % (1 << 64))
                size = shape.layers[place.layer][1]
                assert cell_sum(data.ctypes.data + offset, size, seed) == at.sums[number]
        with pytest.raises(IndexError):
            store.locate(8)


def test_a_changed_block_must_be_written(twin, tmp_path):
    made = twin(tmp_path / "a").create()
    made.turn(300)
    for words in ([*made.tokens, 5], [1, *made.tokens[1:]], made.tokens * 2):
        with pytest.raises(ValueError, match=r"block \d has changed and was not written"):
            made.store.commit(words, "x")
    made.store.commit(made.tokens[:200], "shorter")
    assert made.store.n_tokens == 200
    with pytest.raises(ValueError, match="8191 bytes, not 8192"):
        made.store.write_block(0, np.zeros(8191, np.uint8), np.zeros(100, np.uint8))
    with pytest.raises(ValueError, match="99 bytes, not 100"):
        made.store.write_block(0, np.zeros(8192, np.uint8), np.zeros(99, np.uint8))
    made.store.close()


def test_forks_share_pages_and_go_their_own_ways(twin, tmp_path, read_state):
    made = twin(tmp_path / "a").create()
    made.turn(700)
    other = made.fork(tmp_path / "b", 300).open()
    assert read_state(other.store) == other.saved[-1]
    shared = tmp_path / "a" / "seg-000000.kv"
    assert os.path.samefile(shared, tmp_path / "b" / "seg-000000.kv")
    for each in (made, other, made, other):
        each.turn(200, keep=100)
        each.turn(300)
    third = other.fork(tmp_path / "c", 0).open()
    third.turn(10)
    for each in (made, other, third):
        assert read_state(each.store) == each.saved[-1]
        each.store.close()
    # The last owner may write to a shared segment again.
    store_folder.remove(tmp_path / "a")
    other.open()
    other.turn(900, keep=0)
    assert read_state(other.store) == other.saved[-1]
    with pytest.raises(StoreError, match="'c' exists already"):
        other.store.fork(tmp_path / "c")
    other.store.close()


def test_a_fork_copies_where_links_are_refused(twin, tmp_path, read_state, monkeypatch):
    made = twin(tmp_path / "a").create()
    made.turn(700)
    monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError(18, "Cross-device")))
    notices = made.store.fork(tmp_path / "b", 600, "x")
    assert len(notices) == 2 and "copied, not shared" in notices[0]
    made.turn(100, keep=0)
    with SessionStore.open(tmp_path / "b") as store:
        assert store.verify() == 5 and store.n_tokens == 600
    assert os.stat(tmp_path / "b" / "seg-000000.kv").st_nlink == 1
    made.store.close()


def test_space_is_given_back(twin, tmp_path):
    made = twin(tmp_path / "a").create()
    for n_tokens in (10, 2000, 4000):
        made.turn(n_tokens)
    files = set(os.listdir(tmp_path / "a"))
    assert {"seg-000000.kv", "seg-000003.kv", "tokens-000000"} <= files
    for file in (tmp_path / "a").glob("seg-*"):
        status = file.stat()
        assert status.st_blocks * 512 >= status.st_size, "sparse"
    made.turn(10, keep=0)
    made.turn(10)
    # The last two saves are kept.
    assert sum(name.startswith("seg") for name in os.listdir(tmp_path / "a")) <= 2
    assert sum(name.startswith("tokens") for name in os.listdir(tmp_path / "a")) == 1
    made.store.close()


def test_files_are_for_their_owner_alone(twin, tmp_path):
    made = twin(tmp_path / "a").create()
    made.turn(10)
    made.store.close()
    for path in [tmp_path / "a", *(tmp_path / "a").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_one_process_has_a_session(twin, tmp_path):
    made = twin(tmp_path / "a").create()
    made.turn(10)
    with pytest.raises(StoreError, match=rf"'a' is in use by this process \({os.getpid()}\)"):
        SessionStore.open(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from hga.kvstore.store import SessionStore\n"
        "try: SessionStore.open(Path(sys.argv[1]))\n"
        "except OSError as error: print(error.strerror)"
    )
    words = [sys.executable, "-P", "-c", code, str(tmp_path / "a")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert f"session 'a' is in use by process {os.getpid()} (since " in done.stdout, done.stderr
    with pytest.raises(StoreError, match="in use"):
        store_folder.remove(tmp_path / "a")
    # Looking needs no lock.
    assert store_folder.peek(tmp_path / "a").n_tokens == 10
    made.store.close()
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.stdout == "" == done.stderr
    store_folder.remove(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no session 'a' in"):
        SessionStore.open(tmp_path / "a")


def test_removal_leaves_what_is_not_a_sessions(twin, tmp_path):
    made = twin(tmp_path / "a").create()
    made.store.close()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        store_folder.remove(tmp_path / "a")
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="no session"):
        store_folder.remove(tmp_path)


def test_another_model_is_explained_key_by_key(twin, tmp_path, fingerprint):
    made = twin(tmp_path / "a").create()
    made.store.close()
    with pytest.raises(SessionError) as caught:
        SessionStore.open(tmp_path / "a", {**fingerprint, "attention": "dense", "new": 1})
    text = str(caught.value)
    assert "attention: stored hga, now dense; new: stored nothing, now 1" in text
    assert "model:" not in text
    changed = {**fingerprint, "attention": "dense"}
    with SessionStore.open(tmp_path / "a", fingerprint) as store:
        store.commit([], "", changed)
    SessionStore.open(tmp_path / "a", changed).close()


def test_a_closed_store_refuses(twin, tmp_path):
    made = twin(tmp_path / "a").create()
    made.store.close()
    made.store.close()
    with pytest.raises(StoreError, match="was closed"):
        made.store.commit([], "")


def test_text_of_any_kind_and_its_limit(twin, tmp_path, monkeypatch):
    from hga.kvstore import head

    made = twin(tmp_path / "a").create()
    for text in ("", "é\0\n" * 10, "a" * 3_000_000):
        made.store.commit([], text)
        made.store.close()
        assert made.open().store.meta == text
    assert (tmp_path / "a" / "head-0").stat().st_size < 100_000
    monkeypatch.setattr(head, "MOST_META", 10)
    with pytest.raises(ValueError, match="11 bytes of text"):
        made.store.commit([], "a" * 11)
    made.store.close()


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.dictionaries(st.integers(0, 5), st.integers(1, 4), max_size=4),
    taken=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=16),
    shared=st.sets(st.integers(0, 5)),
)
def test_a_free_slot_is_free(sizes, taken, shared):
    inside = {}
    for segment, slot in taken:
        if slot < sizes.get(segment, 0):
            inside.setdefault(segment, set()).add(slot)
    found = slots.find_free(sizes, inside, lambda segment: segment not in shared)
    free = [
        (segment, slot)
        for segment in sorted(sizes)
        for slot in range(sizes[segment])
        if segment not in shared and slot not in inside.get(segment, ())
    ]
    assert found == (free[0] if free else None)
