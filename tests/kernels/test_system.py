"""Reads and writes at an offset by every way that some system has."""

import os
import sys
import threading
from pathlib import Path

import pytest

from hga.kernels import system


@pytest.fixture(params=["preadv", "pread", "seek"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How files are read and written from here on."""
    if not hasattr(os, "preadv") and request.param == "preadv":
        pytest.skip("this system has no preadv")
    refused = {
        "preadv": ("pread", "pwrite", "lseek"),
        "pread": ("lseek",),
        "seek": ("preadv", "pwritev", "pread", "pwrite"),
    }
    if request.param == "pread":
        for name in ("preadv", "pwritev"):
            monkeypatch.delattr(os, name, raising=False)
    if request.param == "seek":
        monkeypatch.setattr(sys, "platform", "win32")

    def refuse(*arguments: object) -> None:
        raise AssertionError("another way is asked for")

    for name in refused[request.param]:
        if hasattr(os, name):
            monkeypatch.setattr(os, name, refuse)
    return request.param


def test_views_are_written_and_read_at_their_offset(tmp_path: Path, way: str) -> None:
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        fd, views = file.fileno(), [memoryview(b"abc"), memoryview(b"defgh")]
        written = system.write_at(fd, views, 1000)
        assert written == (8 if way == "preadv" else 3)
        room = bytearray(8)
        assert system.read_at(fd, memoryview(room), 1000) == written
        assert room[:written] == b"abcdefgh"[:written]
        assert system.read_at(fd, memoryview(room), 1000 + written) == 0


def test_threads_share_a_descriptor(tmp_path: Path, way: str) -> None:
    """A copy of a descriptor has the position of the first: seeks must not come between."""
    data = b"".join(i.to_bytes(4, "little") for i in range(1 << 14))
    path = tmp_path / "file"
    path.write_bytes(data)
    wrong: list[int] = []
    with open(path, "rb", buffering=0) as file:

        def read(first: int) -> None:
            room = bytearray(4)
            for i in range(first, 1 << 14, 7):
                system.read_at(file.fileno(), memoryview(room), 4 * i)
                if int.from_bytes(room, "little") != i:
                    wrong.append(i)

        threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
