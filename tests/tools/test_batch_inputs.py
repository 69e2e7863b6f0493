"""Which files a batch reads, in which order, under which names."""

import errno
import os
import socket
import sys

import pytest

from hga.tools.batch.inputs import find_inputs, output_name
from hga.tools.errors import UsageError


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def found_in(*operands, out="out", hidden=False):
    return find_inputs([str(operand) for operand in operands], out, hidden=hidden)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names(found):
    return [each.name for each in found.inputs]


def test_folders_are_read_whole_by_name(tmp_path, out):
    docs = tree(tmp_path / "docs", "b.txt", "a/z.md", "a/b/c.md", "a.txt", "é.txt", "B.txt2")
    found = found_in(docs, out=out)
    assert names(found) == ["B.txt2", "a/b/c.md", "a/z.md", "a.txt", "b.txt", "é.txt"]
    assert [each.path.read_text() for each in found.inputs] == names(found)
    assert found.inputs[-1].n_bytes == len("é.txt".encode()) and not found.notices


def test_several_operands_keep_their_order_and_stay_apart(tmp_path, out):
    one = tree(tmp_path / "x" / "docs", "a.md")
    two = tree(tmp_path / "y" / "docs", "a.md", "b.md")
    single = tree(tmp_path, "a.md") / "a.md"
    found = found_in(two, single, one, out=out)
    assert names(found) == ["docs/a.md", "docs/b.md", "a.md", "docs/2-a.md"]
    assert found.inputs[3].path == one / "a.md"


def test_names_that_differ_in_case_alone_get_outputs_of_their_own(tmp_path, out):
    docs = tree(tmp_path / "docs", "Read.md", "read.md")
    assert names(found_in(docs, out=out)) == ["2-read.md", "Read.md"]


def test_hidden_and_generated_entries_are_said(tmp_path, out):
    docs = tree(tmp_path / "docs", "a.md", ".git/config", ".env", "node_modules/x.js")
    found = found_in(docs, out=out)
    assert names(found) == ["a.md"]
    (notice,) = found.notices
    assert all(name in notice for name in (".git", ".env", "node_modules", "--hidden"))
    assert len(names(found_in(docs, out=out, hidden=True))) == 4
    # Named by the user, it is meant.
    assert names(found_in(docs / ".env", out=out)) == [".env"]


def test_no_file_is_taken_twice(tmp_path, out):
    docs = tree(tmp_path / "docs", "sub/a.md", "b.md")
    (docs / "0-link.md").symlink_to(docs / "b.md")
    (docs / "0-folder").symlink_to(docs / "sub")
    found = found_in(docs, docs / "b.md", out=out)
    assert names(found) == ["docs/b.md", "docs/sub/a.md"]
    assert any("met twice, taken once: docs/0-link.md, b.md" in text for text in found.notices)
    assert any("already seen: docs/0-folder" in text for text in found.notices)


def test_links_lead_out_of_the_folder_and_loops_end(tmp_path, out):
    outside = tree(tmp_path / "outside", "c.md")
    docs = tree(tmp_path / "docs", "a.md", "deep/b.md")
    (docs / "there").symlink_to(outside)
    (docs / "deep" / "up").symlink_to(docs)
    (outside / "back").symlink_to(docs / "deep")
    found = found_in(docs, out=out)
    assert names(found) == ["a.md", "deep/b.md", "there/c.md"]
    assert any("deep/up" in text and "there/back" in text for text in found.notices)


def test_what_cannot_be_read_is_a_reason_not_an_end(tmp_path, out):
    docs = tree(tmp_path / "docs", "a.md")
    (docs / "broken").symlink_to("nowhere")
    (docs / "self").symlink_to("self")
    os.mkfifo(docs / "pipe")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(docs)
    try:
        server.bind("socket")
    finally:
        os.chdir(here)
    found = found_in(docs, out=out)
    assert names(found) == ["a.md"]
    assert dict(found.unreadable) == {
        "broken": "a link that leads nowhere",
        "self": "a link that leads nowhere",
        "pipe": "not a regular file",
        "socket": "not a regular file",
    }


def test_a_folder_that_may_not_be_read_is_reported(tmp_path, out, monkeypatch):
    docs = tree(tmp_path / "docs", "a.md", "locked/b.md")
    (docs / "locked").chmod(0)
    if os.access(docs / "locked", os.R_OK):
        # Root may read everything: the system's answer to others is given here.
        scan = os.scandir

        def refused(folder):
            if os.fspath(folder).endswith("locked"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(folder))
            return scan(folder)

        monkeypatch.setattr(os, "scandir", refused)
    try:
        assert found_in(docs, out=out).unreadable == [("locked", "Permission denied")]
    finally:
        (docs / "locked").chmod(0o755)


def test_the_output_folder_is_left_out(tmp_path):
    docs = tree(tmp_path / "docs", "a.md", "out/a.md.md")
    found = found_in(docs, out=docs / "out")
    assert names(found) == ["a.md"] and found.notices == ["left out, the output folder: out"]


def test_operands_that_are_not_there_or_hold_nothing(tmp_path, out):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no file or folder 'absent'"):
        found_in("absent", out=out)
    with pytest.raises(UsageError, match="no files to read in"):
        found_in(tmp_path / "empty", out=out)


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_no_text_can_be_stored_and_printed(tmp_path, out):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    (docs / "a\nb\x1b[31m.txt").write_text("y")
    found = found_in(docs, out=out)
    assert names(found) == ["a\\nb\\x1b[31m.txt", "caf\\xe9.txt"]
    assert [each.path.read_text() for each in found.inputs] == ["y", "x"]
    assert all(each.name.encode().isascii() for each in found.inputs)


def test_a_file_and_a_folder_named_as_its_output_stay_apart():
    outputs = [output_name(name, ".md") for name in ("a", "a.md/b", "A.MD/b", "a.md/c/d", "e/a")]
    for one in outputs:
        for other in outputs:
            assert not other.casefold().startswith(f"{one.casefold()}/"), outputs
    assert outputs[0] == "a.md" and outputs[4] == "e/a.md"
    assert output_name("a.md/b", ".json") == "a.md/b.json"


def test_outputs_keep_the_whole_name():
    assert output_name("a/b.txt", ".md") == "a/b.txt.md"
    assert output_name("b.md", ".json") == "b.md.json"
    long, other = "é" * 120, "é" * 119 + "e"
    made, second = output_name(f"x/{long}", ".md"), output_name(f"x/{other}", ".md")
    assert made != second and all(len(part.encode()) < 240 for part in made.split("/"))
