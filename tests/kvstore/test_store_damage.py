"""Damage of every kind is found when the session is opened or the block is read, and named."""

import os
import shutil
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hga.kvstore import head as heads
from hga.kvstore import store_folder
from hga.kvstore.errors import SessionError
from hga.kvstore.store import SessionStore


@pytest.fixture
def made(twin, tmp_path):
    """A session of six blocks in two segments, closed."""
    each = twin(tmp_path / "a").create()
    each.turn(100)
    each.turn(650)
    each.places = [each.store.locate(i) for i in range(6)]
    each.store.close()
    return each


def patch(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def fetch(path, offset, n_bytes):
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(n_bytes)


def refusal(each, verify=True):
    with pytest.raises(SessionError) as caught, SessionStore.open(each.folder) as store:
        store.verify() if verify else None
    return str(caught.value)


def test_a_flipped_bit_of_any_cell_is_named(made, shape):
    place = made.places[4]
    for number in range(shape.n_cells):
        where, offset = shape.place(number)
        at = place.offset + offset + 17 * number % 256
        before = fetch(place.path, at, 1)
        patch(place.path, at, bytes([before[0] ^ 4]))
        text = refusal(made)
        assert f"block 4 (tokens 512 to 639) in {place.path}: {where} at offset" in text
        assert "torn, changed or swapped" in text
        patch(place.path, at, before)
    with SessionStore.open(made.folder) as store:
        assert store.verify() == 6


def test_torn_blocks(made, shape):
    place = made.places[2]
    whole = fetch(place.path, place.offset, shape.block_bytes)
    for begin in (0, 4096, 8192):
        patch(place.path, place.offset + begin, bytes(512))
        text = refusal(made)
        assert "block 2" in text and ("layer" in text) == (begin < 8192)
        assert begin < 8192 or "index, sums and seal do not match" in text
        patch(place.path, place.offset, whole)


def test_cells_and_blocks_in_each_others_place(made, shape):
    first, second = made.places[1], made.places[3]
    cells = fetch(first.path, first.offset, 512)
    patch(first.path, first.offset, cells[256:] + cells[:256])
    text = refusal(made)
    assert "block 1" in text and "layer 0, chunk 0, KV head 0, cell 0 (and 1 more)" in text
    patch(first.path, first.offset, cells)
    blocks = [fetch(p.path, p.offset, shape.block_bytes) for p in (first, second)]
    patch(first.path, first.offset, blocks[1])
    patch(second.path, second.offset, blocks[0])
    text = refusal(made)
    assert "block 1" in text and ("swapped: the slot holds block 3" in text or "foreign" in text)


def test_a_swap_within_a_segment(made, shape):
    inside = [i for i in range(6) if made.places[i].path == made.places[5].path]
    first, second = (made.places[i] for i in inside[:2])
    blocks = [fetch(p.path, p.offset, shape.block_bytes) for p in (first, second)]
    patch(first.path, first.offset, blocks[1])
    patch(second.path, second.offset, blocks[0])
    assert f"swapped: the slot holds block {inside[1]}" in refusal(made)


def test_a_stale_slot(made, twin, shape):
    """The disk brings back what an earlier save wrote to the slot."""
    each = made.open()
    each.turn(10, keep=0)
    each.turn(10, keep=0)
    place = each.store.locate(0)
    old = fetch(place.path, place.offset, shape.block_bytes)
    each.turn(10, keep=0)
    each.turn(10, keep=0)
    while each.store.locate(0).offset != place.offset or each.store.locate(0).path != place.path:
        each.turn(10, keep=0)
    each.store.close()
    patch(place.path, place.offset, old)
    assert "stale: the slot holds what save 5 wrote" in refusal(made)


def test_segments_that_are_missing_cut_or_foreign(made, twin, tmp_path, shape):
    path = made.folder / "seg-000000.kv"
    kept = path.read_bytes()
    path.unlink()
    assert f"segment {path} is missing" in refusal(made, verify=False)
    for size in (0, 100, 4096, len(kept) - 1):
        path.write_bytes(kept[:size])
        assert str(path) in refusal(made, verify=False)
    path.write_bytes(kept)
    other = twin(tmp_path / "b", seed=1).create()
    other.turn(100)
    other.store.close()
    shutil.copy(tmp_path / "b" / "seg-000000.kv", path)
    assert f"{path} is a foreign segment: it has id" in refusal(made, verify=False)
    path.write_bytes(kept[:20] + b"\1" + kept[21:])
    assert "header does not match its checksum" in refusal(made, verify=False)
    path.write_bytes(kept)
    with SessionStore.open(made.folder) as store:
        store.verify()


def test_a_block_of_another_session_with_the_same_head(made, twin, tmp_path, shape):
    other = twin(tmp_path / "b", seed=1).create()
    other.turn(100)
    there = other.store.locate(0)
    other.store.close()
    here = made.places[0]
    patch(here.path, here.offset, fetch(there.path, there.offset, shape.block_bytes))
    assert "foreign: it was written for segment" in refusal(made)


def test_tokens(made):
    path = made.folder / "tokens-000000"
    kept = path.read_bytes()
    patch(path, 400, b"\xff\xff")
    assert "tokens do not match their digest" in refusal(made, verify=False)
    path.write_bytes(kept[:-1])
    assert "750 tokens need four each" in refusal(made, verify=False)
    path.unlink()
    assert f"{path} is missing" in refusal(made, verify=False)


def test_heads(made):
    newest, older = made.folder / "head-1", made.folder / "head-0"
    kept = newest.read_bytes()
    # One damaged head: the save before it counts, and that is said.
    for at in (0, 20, 40, 60 + len(kept) // 2, len(kept) - 1):
        patch(newest, at, bytes([kept[at] ^ 1]))
        with SessionStore.open(made.folder) as store:
            assert store.n_tokens == 100 and store.verify() == 1
            assert "a save was cut short" in store.notices[0]
        newest.write_bytes(kept)
    newest.write_bytes(b"")
    older.write_bytes(b"x")
    assert "neither head-0 nor head-1 is whole" in refusal(made, verify=False)
    newest.unlink()
    older.unlink()
    with pytest.raises(FileNotFoundError):
        SessionStore.open(made.folder)


def test_heads_of_two_sessions(made, twin, tmp_path):
    other = twin(tmp_path / "b", seed=1).create()
    for _ in range(5):
        other.turn(10)
    other.store.close()
    shutil.copy(tmp_path / "b" / "head-0", made.folder / "head-0")
    assert "do not follow one another" in refusal(made, verify=False)


def test_another_format_version(made):
    head = bytearray((made.folder / "head-1").read_bytes())
    head[8:12] = struct.pack("<I", 2)
    head[48:56] = struct.pack("<Q", heads.xxh3(bytes(head[:48])))
    (made.folder / "head-1").write_bytes(head)
    assert "format version 2: this version reads 1" in refusal(made, verify=False)


def rehash(data):
    """A head whose checksums are right, whatever it says."""
    body = data[64:]
    head = bytearray(data[:64])
    head[24:32] = struct.pack("<Q", len(body))
    head[32:48] = heads.digest_128(bytes(body))
    head[48:56] = struct.pack("<Q", heads.xxh3(bytes(head[:48])))
    return bytes(head) + bytes(body)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_hostile_head_is_refused_or_harmless(data, hostile):
    """Numbers of any size in any field, with checksums that match: a StoreError of one line, or a
    session whose tokens and blocks verify."""
    folder, original = hostile
    body = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(64, len(body) - 1))
        size = data.draw(st.sampled_from((1, 2, 4, 8)))
        value = data.draw(st.sampled_from((0, 1, 127, 1 << 31, (1 << 32) - 1, (1 << 64) - 1)))
        value = data.draw(st.one_of(st.just(value), st.integers(0, (1 << 64) - 1)))
        body[at : at + size] = struct.pack("<Q", value)[:size]
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(64, len(body) - 1)) :]
    (folder / "head-1").write_bytes(rehash(body))
    try:
        with SessionStore.open(folder) as store:
            store.verify()
            assert store.tokens.size == store.n_tokens
    except SessionError as error:
        assert "\n" not in str(error)


@pytest.fixture
def hostile(made):
    (made.folder / "head-0").write_bytes(b"")
    return made.folder, (made.folder / "head-1").read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300), magic=st.booleans())
def test_random_bytes_are_no_head(data, magic):
    data = b"HGAHEAD\0" + data if magic else data
    assert heads.decode(data, "x") is None
    if len(data) > 64 + 72:
        with pytest.raises(SessionError):
            heads.decode(rehash(b"HGAHEAD\0\1\0\0\0" + data[12:]), "x")


def test_a_text_that_lies_about_its_size(made):
    """A small frame that unpacks to much more than is stated is never unpacked."""
    head = store_folder.peek(made.folder)
    import lz4.frame

    bomb = lz4.frame.compress(bytes(200_000_000))
    data = bytearray(heads.encode(head))
    stored = struct.unpack_from("<Q", data, 64 + 24)[0]
    data[len(data) - stored :] = bomb
    struct.pack_into("<QQ", data, 64 + 16, 1000, len(bomb))
    (made.folder / "head-1").write_bytes(rehash(data))
    assert "its text cannot be unpacked" in refusal(made, verify=False)


def test_the_cell_before_a_missing_end(made, shape):
    out = np.empty(shape.kv_bytes, np.uint8)
    with SessionStore.open(made.folder) as store:
        place = store.locate(5)
        with place.path.open("r+b") as file:
            file.truncate(place.offset + 1000)
        with pytest.raises(SessionError, match=r"1000 of 8192 bytes are there: it was cut"):
            store.read_block(5, out)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no links and pipes in the file system")
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder"])
@pytest.mark.parametrize(
    "name", ["head-0", "head-1", "tokens-000000", "seg-000000.kv", "seg-000007.kv", "lock"]
)
def test_what_is_no_file_is_neither_followed_nor_waited_for(made, tmp_path, name, kind):
    """A folder that came from elsewhere must not lead a save to a file of the user's."""
    path, outside = made.folder / name, tmp_path / "outside"
    if path.exists():
        shutil.move(path, outside)
    else:
        outside.write_bytes(b"mine")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(outside if kind == "link" else tmp_path / "nothing")
    before = outside.read_bytes()
    if name == "seg-000007.kv":
        # No head names it: it is left alone.
        made.open().turn(200)
        made.store.close()
    else:
        assert "is not a regular file" in refusal(made)
    assert outside.read_bytes() == before and not (tmp_path / "nothing").exists()


def test_a_flipped_bit_of_index_sums_and_seal_is_named(made, shape):
    """A changed index would choose other groups, and nothing else would tell."""
    place, first = made.places[3], shape.kv_bytes
    for at in (0, shape.index_bytes - 1, shape.index_bytes + 2, shape.tail_bytes - 20):
        before = fetch(place.path, place.offset + first + at, 1)
        patch(place.path, place.offset + first + at, bytes([before[0] ^ 1]))
        assert "block 3 (tokens 384 to 511)" in refusal(made)
        assert "index, sums and seal do not match" in refusal(made)
        patch(place.path, place.offset + first + at, before)
    with SessionStore.open(made.folder) as store:
        assert store.verify() == 6


def test_two_blocks_in_one_slot_are_refused(made):
    data = bytearray(heads.encode(store_folder.peek(made.folder)))
    stored, n_blocks = struct.unpack_from("<Q", data, 64 + 24)[0], 6
    begin = len(data) - stored - 16 * n_blocks
    data[begin : begin + 8] = data[begin + 16 : begin + 24]
    with pytest.raises(SessionError, match="two blocks lie in one slot"):
        heads.decode(rehash(data), "x")


def test_a_head_that_states_more_than_any_has_is_not_read(made):
    data = bytearray(heads.encode(store_folder.peek(made.folder)))
    struct.pack_into("<Q", data, 24, 1 << 40)
    struct.pack_into("<Q", data, 48, heads.xxh3(bytes(data[:48])))
    path = made.folder / "head-1"
    path.write_bytes(data)
    os.truncate(path, (1 << 40) + 64)
    assert f"{path} has {(1 << 40) + 64} bytes, at most" in refusal(made, verify=False)
