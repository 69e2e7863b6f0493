"""The journal and the outputs on disk: torn lines, full disks, damage, locks."""

import asyncio
import errno
import json
import os

import msgspec
import pytest

from hga.tools.batch import outputs as outputs_module
from hga.tools.batch.journal import JOURNAL_NAME, Journal, Record, Settings, content_hash
from hga.tools.batch.outputs import Outputs
from hga.tools.errors import UsageError, exit_code, message

SETTINGS = Settings.of({"model": "m", "temperature": 0.0})


def record(name, **values):
    return Record(name, content_hash(name.encode()), SETTINGS.key, "done", **values)


def opened(folder, *, resume=False, overwrite=False):
    return Journal.open(folder, resume=resume, overwrite=overwrite)


def written(folder, *names):
    journal = opened(folder)
    journal.begin(SETTINGS)
    for name in names:
        journal.append(record(name, output=f"{name}.md"))
    journal.close()
    return folder / JOURNAL_NAME


def test_the_last_line_of_each_input_counts(tmp_path):
    written(tmp_path, "a", "b")
    journal = opened(tmp_path, resume=True)
    journal.begin(SETTINGS)
    journal.append(Record("a", "x", SETTINGS.key, "failed", reason="why"))
    journal.close()
    again = opened(tmp_path, resume=True)
    assert not again.records["a"].done and again.records["a"].reason == "why"
    assert again.records["b"] == record("b", output="b.md")
    assert again.settings == {SETTINGS.key: {"model": "m", "temperature": 0.0}}
    assert not again.notices
    again.close()
    lines = (tmp_path / JOURNAL_NAME).read_text().splitlines()
    assert [json.loads(line)["line"] for line in lines] == ["settings", *["input"] * 3]


def test_settings_have_one_key_in_any_order():
    one, other = Settings.of({"a": 1, "b": None}), Settings.of({"b": None, "a": 1})
    assert one == other and one.key != Settings.of({"a": 1, "b": False}).key


def test_a_line_cut_at_any_byte_costs_that_line_alone(tmp_path):
    path = written(tmp_path / "made", "a", "bé\n")
    data = path.read_bytes()
    last = data[:-1].rfind(b"\n") + 1
    for end in range(last, len(data)):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / JOURNAL_NAME).write_bytes(data[:end])
        journal = opened(folder, resume=True)
        assert list(journal.records) == ["a"]
        assert len(journal.notices) == (end > last)
        journal.append(record("c"))
        journal.close()
        again = opened(folder, resume=True)
        assert list(again.records) == ["a", "c"] and not again.notices
        again.close()


@pytest.mark.parametrize("damage", [b"\0" * 40, b"{}", b'{"line":"input"}', b"[" * 5000, b"\xff"])
def test_a_damaged_line_is_said_and_passed_over(tmp_path, damage):
    path = written(tmp_path, "a", "b", "c")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = damage + b"\n"
    path.write_bytes(b"".join(lines))
    journal = opened(tmp_path, resume=True)
    assert list(journal.records) == ["a", "c"]
    assert journal.notices == [f"{path}: line 3 is damaged: what it told of is done again"]
    journal.close()


def test_a_journal_is_neither_forgotten_nor_taken_up_unasked(tmp_path):
    path = written(tmp_path, "a", "b")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="holds a batch with 2 inputs done: --resume") as failure:
        opened(tmp_path)
    assert "--overwrite" in str(failure.value) and path.read_bytes() == before


def test_overwrite_removes_what_the_journal_lists_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    written(out, "a", "b")
    for name in ("a.md", "b.md", "mine.md"):
        (out / name).write_text(name)
    (tmp_path / "outside.md").write_text("outside")
    journal = opened(out, resume=True)
    journal.append(record("evil", output="../outside.md"))
    journal.close()
    journal = opened(out, overwrite=True)
    assert not journal.records
    journal.begin(SETTINGS)
    journal.close()
    assert sorted(path.name for path in out.iterdir()) == [JOURNAL_NAME, "mine.md"]
    assert (tmp_path / "outside.md").exists()


@pytest.mark.parametrize(
    "output", ["a\0b", "x" * 5000, ".", "", "folder", "loop", JOURNAL_NAME, "../out", "/etc/hosts"]
)
def test_a_journal_that_lists_what_is_no_output(tmp_path, output):
    out = tmp_path / "out"
    written(out, "a")
    (out / "folder").mkdir()
    (out / "loop").symlink_to("loop")
    with (out / JOURNAL_NAME).open("ab") as file:
        file.write(msgspec.json.encode(record("evil", output=output)) + b"\n")
    journal = opened(out, overwrite=True)
    journal.begin(SETTINGS)
    journal.append(record("b"))
    journal.close()
    assert sorted(p.name for p in out.iterdir()) == ["folder", JOURNAL_NAME, "loop"]
    assert list(opened(out, resume=True).records) == ["b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
@pytest.mark.parametrize("kind", ["pipe", "link", "link to nothing", "folder"])
def test_a_journal_that_is_no_file_is_refused(tmp_path, kind):
    path, other = tmp_path / JOURNAL_NAME, tmp_path / "other"
    other.write_text("mine\n")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other if kind == "link" else tmp_path / "nothing")
    with pytest.raises(OSError, match=r"regular file|directory") as failure:
        opened(tmp_path, overwrite=True)
    assert str(path) in message(failure.value)
    assert other.read_text() == "mine\n" and not (tmp_path / "nothing").exists()


def test_overwrite_leaves_one_line(tmp_path):
    out = tmp_path / "out"
    written(out, "a", "b")
    journal = opened(out, overwrite=True)
    journal.begin(SETTINGS)
    journal.close()
    assert len((out / JOURNAL_NAME).read_text().splitlines()) == 1


def test_two_runs_do_not_share_an_output_folder(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(BlockingIOError) as failure:
        opened(tmp_path, resume=True)
    assert "another process is writing this file" in message(failure.value)
    first.close()
    opened(tmp_path).close()


class FullDisk:
    """A file whose disk has room for a number of bytes more."""

    def __init__(self, file, room):
        self._file, self.room = file, room

    def write(self, data):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = self._file.write(data[: min(self.room, 10)])
        self.room -= n
        return n

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path):
    path = written(tmp_path, "a")
    before = path.read_bytes()
    journal = opened(tmp_path, resume=True)
    file, journal._file = journal._file, FullDisk(journal._file, 25)
    with pytest.raises(OSError) as failure:
        journal.append(record("b"))
    assert exit_code(failure.value) == 3
    n_bytes = len(msgspec.json.encode(record("b"))) + 1
    assert f"{n_bytes:,} bytes were to be added" in message(failure.value)
    assert path.read_bytes() == before and "b" not in journal.records
    journal._file = file
    journal.append(record("b"))
    journal.close()
    assert list(opened(tmp_path, resume=True).records) == ["a", "b"]


def run(coroutine):
    return asyncio.run(coroutine)


def test_outputs_are_whole_or_not_there(tmp_path, monkeypatch):
    outputs = Outputs(tmp_path, "files", json=False)
    run(outputs.write("a/b.txt", "text"))
    assert (tmp_path / "a" / "b.txt.md").read_text() == "text\n"
    made = (tmp_path / "a" / "b.txt.md").stat().st_mode & 0o777
    assert made == 0o666 & ~_umask()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs_module.os, "fsync", full)
    with pytest.raises(OSError) as failure:
        run(outputs.write("a/b.txt", "other"))
    assert exit_code(failure.value) == 3
    assert "6 bytes were to be written" in message(failure.value)
    assert (tmp_path / "a" / "b.txt.md").read_text() == "text\n"
    assert not list((tmp_path / ".unfinished").iterdir())
    outputs.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_one_file_of_all_answers_in_the_order_of_the_inputs(tmp_path):
    records = {
        "b": Record("b", "", "", "done", text="B.", prompt_tokens=3, reply_tokens=2, n_parts=2),
        "a": Record("a", "", "", "done", text='{"x": 1}\n', prompt_tokens=4, reply_tokens=1),
        "c": Record("c", "", "", "failed", reason="binary file"),
    }
    names = ["a", "b", "c", "never read"]
    run(Outputs(tmp_path, "md", json=False).join(names, records))
    assert (tmp_path / "results.md").read_text() == (
        '## a\n\n{"x": 1}\n\n## b\n\nB.\n\n## c\n\n*Failed: binary file*\n'
    )
    run(Outputs(tmp_path, "jsonl", json=False).join(names, records))
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert rows == [
        {"input": "a", "output": '{"x": 1}\n', "prompt_tokens": 4, "reply_tokens": 1},
        {"input": "b", "output": "B.", "prompt_tokens": 3, "reply_tokens": 2, "parts": 2},
        {"input": "c", "error": "binary file"},
    ]
    run(Outputs(tmp_path, "jsonl", json=True).join(["a"], records))
    assert json.loads((tmp_path / "results.jsonl").read_text())["output"] == {"x": 1}


def test_foreign_outputs_are_not_replaced_unasked(tmp_path):
    (tmp_path / "a.md").write_text("mine")
    with pytest.raises(UsageError, match="exists and no journal says"):
        Outputs(tmp_path, "files", json=False).refuse_existing(["b", "a"])
    Outputs(tmp_path, "files", json=True).refuse_existing(["b", "a"])
    (tmp_path / "results.md").write_text("mine")
    with pytest.raises(UsageError, match=r"results\.md exists"):
        Outputs(tmp_path, "md", json=False).refuse_existing(["z"])
