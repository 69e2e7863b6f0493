"""MODEL to a packed file: the cache, its key, damage, and `hga pack`."""

import json
import os
import shutil

import pytest

from hga.runtime.container import ModelFile
from hga.tools import cli, resolve
from hga.tools.errors import UsageError
from hga.tools.fingerprint import fingerprint
from hga.tools.status import Status

pytestmark = pytest.mark.usefixtures("own_folders")
QUIET = Status(quiet=True)


@pytest.fixture
def checkpoint(tiny_hf, tmp_path):
    """A writable copy of a tiny checkpoint folder."""
    return shutil.copytree(tiny_hf("llama"), tmp_path / "model.v1", copy_function=shutil.copyfile)


def test_a_source_is_packed_once(checkpoint, tmp_path, monkeypatch):
    path = resolve.resolve(str(checkpoint), QUIET)
    assert path.parent == tmp_path / "cache" / "hga" / "packs"
    assert path.name.startswith("model.v1-") and path.suffix == ".hga"
    ModelFile.open(path, verify=True).close()
    monkeypatch.setattr(resolve, "_pack", None)
    assert resolve.resolve(str(checkpoint), QUIET) == path
    assert not list(path.parent.glob("*.partial*"))


def test_a_packed_file_is_taken_as_it_is(checkpoint, tmp_path):
    path = resolve.resolve(str(checkpoint), QUIET)
    copy = shutil.copy(path, tmp_path / "mine.bin")
    assert resolve.resolve(str(copy), QUIET) == copy


def test_equal_contents_share_a_pack_and_changes_make_another(checkpoint, tmp_path):
    first = resolve.resolve(str(checkpoint), QUIET)
    twin = tmp_path / "twin" / "model.v1"
    shutil.copytree(checkpoint, twin)
    assert resolve.resolve(str(twin), QUIET) == first
    weights = next(twin.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve.resolve(str(twin), QUIET) != first


def test_a_damaged_cached_pack_is_made_again(checkpoint, capsys):
    path = resolve.resolve(str(checkpoint), QUIET)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert resolve.resolve(str(checkpoint), Status()) == path
    assert path.read_bytes() == whole
    assert "packing again" in capsys.readouterr().err


def test_another_process_at_the_same_pack_is_waited_for(checkpoint, monkeypatch):
    from hga.tools import pack as pack_module

    real, tries = pack_module.pack, []

    def busy_once(*given):
        tries.append(given)
        if len(tries) == 1:
            raise BlockingIOError(11, "another process is packing to this file", "x")
        return real(*given)

    monkeypatch.setattr(pack_module, "pack", busy_once)
    monkeypatch.setattr(resolve, "_POLL_S", 0.0)
    assert resolve.resolve(str(checkpoint), QUIET).is_file() and len(tries) == 2


def test_names(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        resolve, "ensure", lambda name, status, accept_terms: asked.append(name) or tmp_path
    )
    resolve.source_of("demo", QUIET)
    resolve.source_of("gemma", QUIET, accept_terms=True)
    assert asked == ["demo", "gemma"]
    with pytest.raises(UsageError, match="demo, gemma"):
        resolve.source_of("dmeo", QUIET)


def test_fingerprint_is_remembered_until_a_file_changes(tmp_path):
    source = tmp_path / "a.gguf"
    source.write_bytes(b"one")
    memo = tmp_path / "memo.json"
    hashed = []

    def report(done, total):
        hashed.append(done)

    first = fingerprint(source, memo, report)
    assert fingerprint(source, memo, report) == first and len(hashed) == 1
    source.write_bytes(b"two")
    os.utime(source, ns=(1, 1))
    second = fingerprint(source, memo, report)
    assert second != first and len(hashed) == 2
    memo.write_text("{broken")
    assert fingerprint(source, memo, report) == second and len(hashed) == 3
    # The name of a lone file does not count, those in a folder do.
    renamed = source.rename(tmp_path / "b.gguf")
    assert fingerprint(renamed, memo, report) == second


def test_pack_command(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pack", str(checkpoint)]) == 0
    assert (tmp_path / "model.v1.hga").is_file()
    out, err = capsys.readouterr()
    assert out == "" and "keep every value" in err
    target = tmp_path / "new" / "small.hga"
    assert cli.main(["pack", str(checkpoint), "-o", str(target), "--format", "q8"]) == 0
    assert "relative RMS error" in capsys.readouterr().err
    assert cli.main(["pack", str(target)]) == 2
    assert "packed file already" in capsys.readouterr().err
    assert cli.main(["pack", str(checkpoint), "-o", str(tmp_path)]) == 2


def test_a_device_or_a_pipe_is_refused_at_either_end(checkpoint, tmp_path, capsys):
    pipe = tmp_path / "pipe.gguf"
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes in the file system")
    os.mkfifo(pipe)
    assert cli.main(["run", str(pipe), "-p", "hi"]) == 2
    assert cli.main(["pack", str(checkpoint), "-o", str(pipe)]) == 2
    assert pipe.is_fifo()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_cache_that_cannot_be_written_is_named_with_a_remedy(checkpoint, tmp_path, capsys):
    path = resolve.resolve(str(checkpoint), QUIET)
    (path.parent / "fingerprints.json").unlink()

    def refuse(*ignored, **options):
        raise PermissionError(13, "Permission denied", str(path.parent))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.mkstemp", refuse)
        # What is packed is found without the note of its fingerprint.
        assert resolve.resolve(str(checkpoint), QUIET) == path
        path.unlink()
        patch.setattr("hga.tools.pack.pack", refuse)
        assert cli.main(["run", str(checkpoint), "-p", "hi"]) == 1
    assert "XDG_CACHE_HOME" in capsys.readouterr().err


def test_an_interrupted_pack_says_that_it_can_go_on(checkpoint, tmp_path, monkeypatch, capsys):
    def stop(*ignored):
        raise KeyboardInterrupt

    monkeypatch.setattr("hga.tools.pack.pack", stop)
    assert cli.main(["pack", str(checkpoint), "-o", str(tmp_path / "m.hga")]) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_refusals_name_the_checkpoint(checkpoint, capsys):
    config = checkpoint / "config.json"
    stated = json.loads(config.read_text())
    for change in ({"model_type": "mamba"}, {"frobnication": 3}, {"hidden_act": "relu"}):
        config.write_text(json.dumps({**stated, **change}))
        assert cli.main(["run", str(checkpoint), "-p", "hi"]) == 5
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and str(checkpoint) in lines[0]
    config.write_text(json.dumps(stated))
    (checkpoint / "tokenizer.json").unlink()
    assert cli.main(["run", str(checkpoint), "-p", "hi"]) == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "tokenizer.json" in lines[0]


def test_what_is_no_model_exits_5(tmp_path, capsys):
    junk = tmp_path / "junk.hga"
    junk.write_bytes(b"HGAPACK\x00" + b"\xff" * 5000)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    (tmp_path / "empty").mkdir()
    for path in (text, tmp_path / "empty"):
        assert cli.main(["pack", str(path)]) == 5
        assert len(capsys.readouterr().err.splitlines()) == 1
    for path in (junk, text, tmp_path / "empty"):
        assert cli.main(["run", str(path), "-p", "hi"]) == 5
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_inspect_and_verify_commands(checkpoint, tmp_path, capsys):
    path = resolve.resolve(str(checkpoint), QUIET)
    for words in (["inspect", path], ["inspect", checkpoint], ["verify", path]):
        assert cli.main([str(word) for word in words]) == 0
        out, err = capsys.readouterr()
        assert str(words[1]) in out and err == ""
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "packed"
    data = bytearray(path.read_bytes())
    data[8192] ^= 1
    path.write_bytes(data)
    assert cli.main(["verify", str(path)]) == 5
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert cli.main(["verify", str(tmp_path / "absent")]) == 2
