"""Reading ahead and writing behind: bounds, order, failures."""

import errno
import os
import threading
import time

import pytest

from hga.tools.batch.inputs import Input
from hga.tools.batch.journal import Journal, Record
from hga.tools.batch.outputs import Outputs
from hga.tools.batch.pipeline import READ_AHEAD, Pipeline, Unread
from hga.tools.interrupt import Interrupt


@pytest.fixture
def make(tmp_path):
    """make(n, load=..., stop=...) -> a pipeline over n files of their own names."""
    made = []

    def go(n, load=lambda each, data, abandoned: data.decode(), stop=None, size=1):
        folder = tmp_path / "in"
        folder.mkdir()
        inputs = []
        for i in range(n):
            path = folder / f"{i:03}"
            path.write_text(f"{i:03}")
            inputs.append(Input(path, path.name, size))
        out = tmp_path / "out"
        journal = Journal.open(out, resume=False, overwrite=False)
        outputs = Outputs(out, "files", json=False)
        made.append(Pipeline(inputs, load, outputs, journal, stop or Interrupt()))
        made[-1].journal, made[-1].out, made[-1].folder = journal, out, folder
        return made[-1]

    yield go
    for pipeline in made:
        pipeline.journal.close()


def record(name):
    return Record(name, "", "", "done", output=f"{name}.md")


def test_every_file_comes_once_in_order_and_is_written(make):
    with make(50) as pipeline:
        for text in pipeline:
            pipeline.store(record(text), f"about {text}")
        pipeline.flush()
    assert list(pipeline.journal.records) == [f"{i:03}" for i in range(50)]
    assert (pipeline.out / "049.md").read_text() == "about 049\n"


@pytest.mark.parametrize(("size", "most"), [(1, READ_AHEAD), (12 << 20, 2), (100 << 20, 1)])
def test_what_is_read_ahead_is_bounded(make, size, most):
    read = []

    def load(each, data, abandoned):
        read.append(each.name)
        return each.name

    with make(20, load, size=size) as pipeline:
        for taken, _ in enumerate(pipeline):
            time.sleep(0.05)
            # The one that was just taken is still held by who takes it.
            assert len(read) <= taken + most
        assert len(read) == 20


def test_files_are_read_while_the_model_works(make):
    with make(6) as pipeline:
        source = iter(pipeline)
        next(source)
        deadline = time.monotonic() + 10
        while pipeline._ready.qsize() < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        # All are there, and nobody has asked for one since the first.
        assert pipeline._ready.qsize() >= 5
        assert len(list(source)) == 5


def test_a_file_that_went_away_is_unread(make):
    with make(3, size=100 << 20) as pipeline:
        source = iter(pipeline)
        assert next(source) == "000"
        (pipeline.folder / "002").unlink()
        rest = list(source)
    assert rest[0] == "001" and isinstance(rest[1], Unread)
    assert (rest[1].input.name, rest[1].reason) == ("002", "No such file or directory")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_pipe_that_took_a_files_place_is_not_waited_for(make):
    with make(3, size=100 << 20) as pipeline:
        source = iter(pipeline)
        assert next(source) == "000"
        (pipeline.folder / "002").unlink()
        os.mkfifo(pipeline.folder / "002")
        rest = list(source)
    assert rest[0] == "001" and isinstance(rest[1], Unread)
    assert (rest[1].input.name, rest[1].reason) == ("002", "not a regular file any more")


def test_a_bug_in_loading_is_not_swallowed(make):
    def load(each, data, abandoned):
        raise ZeroDivisionError("a bug")

    with make(3, load) as pipeline, pytest.raises(ZeroDivisionError):
        list(pipeline)


def test_a_full_disk_ends_the_run_with_what_was_done_kept(make, monkeypatch):
    def full(self, record):
        if record.input == "003":
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, record)

    append = Journal.append
    monkeypatch.setattr(Journal, "append", full)
    with make(10) as pipeline, pytest.raises(OSError, match="No space left"):
        for text in pipeline:
            pipeline.store(record(text), text)
        pipeline.flush()
    assert {"000", "001", "002"} <= set(pipeline.journal.records)
    assert "003" not in pipeline.journal.records


def test_a_slow_disk_is_waited_for_at_the_end(make, monkeypatch):
    append = Journal.append

    def slow(self, record):
        time.sleep(0.05)
        append(self, record)

    monkeypatch.setattr(Journal, "append", slow)
    with make(5) as pipeline:
        for text in pipeline:
            pipeline.store(record(text), text)
    assert len(pipeline.journal.records) == 5


def test_an_interrupt_ends_the_iteration_and_tells_who_loads(make):
    stop, begun, told = Interrupt(), threading.Event(), threading.Event()

    def load(each, data, abandoned):
        if each.name == "002":
            begun.set()
            while not abandoned():
                time.sleep(0.01)
            told.set()
        return each.name

    with make(5, load, stop) as pipeline:
        taken = []
        for name in pipeline:
            taken.append(name)
            if name == "001":
                assert begun.wait(10)
                stop.requested = True
    assert taken == ["000", "001"] and told.is_set()
    assert not [t for t in threading.enumerate() if t is pipeline._thread]
