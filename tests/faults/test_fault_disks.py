"""Disks that are full, read-only or gone under packs, caches, sessions and keys and values, and two
processes at one of them."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

# On whatever the test left free, `fill` leaves so much.
KIB = 1024


def fill(folder, leave):
    """Take all of a disk but so many bytes."""
    free = shutil.disk_usage(folder).free
    with open(folder / "ballast", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave))


def one_error(err):
    """The only error line."""
    (line,) = [line for line in err.splitlines() if line.startswith("hga: error:")]
    assert "Traceback" not in err and "internal error" not in err, err
    return line


def test_a_full_disk_under_a_pack(small_disk, hga, tiny_hf):
    disk = small_disk("full", "size=1m")
    fill(disk, 64 * KIB)
    code, _, err = hga("pack", tiny_hf("llama"), "-o", disk / "o.hga")
    assert code == 3, err
    assert "bytes" in one_error(err) and not (disk / "o.hga").exists()


@pytest.mark.parametrize("leave", [0, 64 * KIB, 400 * KIB])
def test_a_full_disk_under_the_cache(small_disk, start, home, tiny_gguf, leave):
    disk = small_disk("full", "size=2m")
    (disk / "hga").mkdir()
    kernels = os.path.join(home["XDG_CACHE_HOME"], "hga", "kernels")
    os.symlink(os.path.realpath(kernels), disk / "hga" / "kernels")
    fill(disk, leave)
    source, _ = tiny_gguf("llama")
    words = ["run", source, "-p", "hello", "-n", "3"]
    process = start(*words, env={**home, "XDG_CACHE_HOME": str(disk)})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    one_error(err.decode())


@pytest.mark.parametrize(
    "leave", [32 * KIB, *(pytest.param(n * KIB, marks=pytest.mark.slow) for n in (0, 200))]
)
def test_a_full_disk_under_a_session(small_disk, hga, small, leave):
    disk = small_disk("full", "size=4m")
    words = ["-n", "3", "--temp", "0", "--session", "s", "--kv-dir", disk]
    code, _, err = hga("run", small, "-p", "hello", *words)
    assert code == 0, err
    fill(disk, leave)
    # Some turns may still fit into what a segment has left: the disk fills up in the end.
    while code == 0:
        code, _, err = hga("run", small, "-p", "more " * 40, *words)
    assert code == 3, err
    assert "--kv-dir" in one_error(err)
    (disk / "ballast").unlink()
    assert hga("verify", disk / "s")[0] == 0
    code, _, err = hga("run", small, "-p", "again", *words)
    assert code == 0 or "context" in err, err


def test_a_full_disk_under_keys_and_values(small_disk, hga, small):
    disk = small_disk("full", "size=1m")
    fill(disk, 64 * KIB)
    words = ["-p", "word " * 60, "-n", "3", "--kv", "disk", "--kv-dir", disk]
    code, _, err = hga("run", small, *words)
    assert code == 3, err
    assert "--kv-dir" in one_error(err)
    assert [path.name for path in disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("kind", ["STATE", "CACHE", "CONFIG"])
def test_read_only_folders(small_disk, start, home, small, tiny_gguf, kind):
    disk = small_disk("read-only", "size=1m")
    (disk / "hga").mkdir()
    kernels = os.path.join(home["XDG_CACHE_HOME"], "hga", "kernels")
    os.symlink(os.path.realpath(kernels), disk / "hga" / "kernels")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    own = {**home, f"XDG_{kind}_HOME": str(disk)}
    answers = {}
    for name, words in {
        "plain": ["run", small, "-p", "hello", "-n", "3"],
        "inspect": ["inspect", small],
        "list": ["sessions", "list"],
        "session": ["run", small, "-p", "hello", "-n", "3", "--session", "s"],
        "disk": ["run", small, "-p", "hello", "-n", "3", "--kv", "disk"],
        "source": ["run", tiny_gguf("llama")[0], "-p", "hello", "-n", "3"],
    }.items():
        process = start(*words, env=own)
        _, err = process.communicate(timeout=90)
        assert b"Traceback" not in err and b"internal error" not in err, err
        answers[name] = process.returncode, err.decode()
    assert answers["inspect"][0] == answers["list"][0] == 0, answers
    if kind == "STATE":
        assert answers["plain"][0] == 0
        code, err = answers["session"]
        assert code == 1 and str(disk) in one_error(err)
    if kind == "CACHE":
        for name in ("source", "disk"):
            code, err = answers[name]
            assert code == 1, (name, err)
            assert str(disk) in one_error(err)


@pytest.mark.parametrize("what", ["folder", "head", "segments"])
def test_a_session_folder_that_goes_while_it_is_used(start, small, tmp_path, what):
    kept = tmp_path / "kept"
    process = start(
        "run", small, "--session", "s", "--kv-dir", kept, "-n", "3",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(kept.glob("s/seg-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    # The turn's text has come; its save follows at once.
    time.sleep(0.5)
    if what == "folder":
        shutil.rmtree(kept / "s")
    else:
        for path in (kept / "s").glob({"head": "head-*", "segments": "seg-*"}[what]):
            path.unlink()
    _, err = process.communicate(b"more\n" * 40, timeout=60)
    assert b"Traceback" not in err and b"internal error" not in err, err
    if what != "segments":
        assert process.returncode == 1 and b"session 's'" in err, (process.returncode, err)


def test_two_processes_on_one_session(start, hga, heavy, tmp_path):
    words = ["--session", "s", "--kv-dir", tmp_path]
    first = start("run", heavy, "-n", "8", *words, stdin=subprocess.PIPE)
    first.stdin.write(b"hello\n")
    first.stdin.flush()
    assert first.stdout.read(1)
    code, _, err = hga("run", heavy, "-p", "hello", "-n", "3", *words)
    assert code == 1 and "in use by process" in one_error(err), err
    assert hga("sessions", "list", "--kv-dir", tmp_path)[0] == 0
    first.terminate()
    first.communicate(timeout=60)
    assert hga("run", heavy, "-p", "hello", "-n", "3", *words)[0] == 0


def test_two_processes_pack_one_source_into_the_cache(start, home, tiny_gguf, tmp_path):
    own = {**home, "XDG_CACHE_HOME": str(tmp_path)}
    (tmp_path / "hga").mkdir()
    kernels = os.path.join(home["XDG_CACHE_HOME"], "hga", "kernels")
    os.symlink(os.path.realpath(kernels), tmp_path / "hga" / "kernels")
    source, _ = tiny_gguf("llama")
    words = ["run", source, "-p", "hello", "-n", "4", "--temp", "0"]
    both = [start(*words, env=own) for _ in range(2)]
    said = [process.communicate(timeout=90) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len(list((tmp_path / "hga" / "packs").glob("*.hga"))) == 1


def test_a_disk_that_fails_under_a_checkpoint(tiny_hf, tmp_path, monkeypatch, capsys):
    from hga.tools import cli
    from hga.tools.sources import source

    real = source.ByteFile.__init__

    class Failing:
        """A file whose second MiB cannot be read, and that gives few bytes at a time."""

        def __init__(self, file):
            self._file = file
            self.n_reads = 0

        def __getattr__(self, name):
            return getattr(self._file, name)

        def readinto(self, view):
            self.n_reads += 1
            if self.n_reads > 40:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self._file.readinto(view[: max(1, len(view) // 3)])

    def opened(self, path):
        real(self, path)
        self._file = Failing(self._file)

    monkeypatch.setattr(source.ByteFile, "__init__", opened)
    for name in ("CACHE", "STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    weights = tiny_hf("llama") / "model.safetensors"
    code = cli.main(["pack", str(weights.parent), "-o", str(tmp_path / "o.hga")])
    assert code == 1
    assert one_error(capsys.readouterr().err) == f"hga: error: {weights}: Input/output error"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_descriptor_is_left_by_a_refusal(tiny_hf, tmp_path):
    from hga.tools.sources import SourceError, open_source

    folder = tmp_path / "source"
    shutil.copytree(tiny_hf("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = 1000
    (folder / "config.json").write_text(json.dumps(config))
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(SourceError, match="expected shape"):
            open_source(folder)
    assert set(os.listdir("/proc/self/fd")) == before
