"""An interrupted pack goes on, and its result has the bytes of one that was never interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hga.runtime.container import ModelFile
from hga.tools.pack import pack

# Packs argv[1] to argv[2] in format argv[3] and dies at the progress call of number argv[4].
KILLED = """
import os, signal, sys
from hga.tools.pack import pack
calls = 0
def progress(done, total):
    global calls
    calls += 1
    if calls == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
pack(sys.argv[1], sys.argv[2], sys.argv[3], progress)
"""


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def interrupted(source: Path, out: Path, calls: int, error: type[BaseException], fmt="auto"):
    """Start a pack that the progress callback stops with an exception."""
    left = calls

    def progress(done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error

    with pytest.raises(error):
        pack(source, out, fmt, progress)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("fmt", ["auto", "q4"])
def test_killed_half_way(tiny_hf, tmp_path, fmt) -> None:
    source = tiny_hf("qwen3_moe", "bf16")
    pack(source, tmp_path / "whole.hga", fmt)
    out = tmp_path / "m.hga"
    for calls in (12, 25):
        command = [sys.executable, "-c", KILLED, str(source), str(out), fmt, str(calls)]
        done = subprocess.run(command, check=False, timeout=120, env={**os.environ})
        assert done.returncode == -signal.SIGKILL
        assert partial(out).exists() and not out.exists()
    report = pack(source, out, fmt)
    assert report.resumed_nbytes > 0
    assert out.read_bytes() == (tmp_path / "whole.hga").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.hga", "whole.hga"]
    ModelFile.open(out, verify=True).close()


@pytest.mark.parametrize("fmt", ["auto", "fp8"])
def test_every_point_of_interruption(tiny_gguf, tmp_path, fmt) -> None:
    source, _ = tiny_gguf("llama", "Q5_1")
    total = 0

    def count(done: int, whole: int) -> None:
        nonlocal total
        total += 1

    first = pack(source, tmp_path / "whole.hga", fmt, count)
    for calls in range(1, total + 1, 5):
        out = tmp_path / f"{calls}.hga"
        interrupted(source, out, calls, KeyboardInterrupt, fmt)
        assert not out.exists()
        report = pack(source, out, fmt)
        assert out.read_bytes() == (tmp_path / "whole.hga").read_bytes()
        # What was measured before the interruption is in the report too.
        assert (report.rows, report.changed) == (first.rows, first.changed)
        out.unlink()


def test_many_interruptions_in_a_row(tiny_hf, tmp_path) -> None:
    source = tiny_hf("llama", "f32")
    out = tmp_path / "m.hga"
    done = -1
    # The first calls of a resumed pack report the check of what is there already.
    for calls in (4, 10, 20, 25):
        interrupted(source, out, calls, KeyboardInterrupt)
        lines = partial(out).with_name(partial(out).name + ".journal").read_bytes().count(b"\n")
        assert lines > done
        done = lines
    pack(source, out)
    pack(source, tmp_path / "whole.hga")
    assert out.read_bytes() == (tmp_path / "whole.hga").read_bytes()


def test_another_format_starts_over(tiny_hf, tmp_path) -> None:
    source = tiny_hf("llama", "f32")
    out = tmp_path / "m.hga"
    interrupted(source, out, 20, KeyboardInterrupt)
    assert pack(source, out, "bf16").resumed_nbytes == 0
    pack(source, tmp_path / "whole.hga", "bf16")
    assert out.read_bytes() == (tmp_path / "whole.hga").read_bytes()


def test_a_changed_source_starts_over(tiny, tmp_path) -> None:
    folder = tiny.write_hf(tmp_path / "hf", tiny.config("llama"))
    out = tmp_path / "m.hga"
    interrupted(folder, out, 20, KeyboardInterrupt)
    tiny.write_hf(folder, tiny.config("llama"), seed=1)
    assert pack(folder, out).resumed_nbytes == 0


def test_no_resume_starts_over(tiny_hf, tmp_path) -> None:
    source = tiny_hf("llama", "f32")
    interrupted(source, tmp_path / "m.hga", 20, KeyboardInterrupt)
    assert pack(source, tmp_path / "m.hga", resume=False).resumed_nbytes == 0


def test_a_damaged_partial_file_is_mended(tiny_hf, tmp_path) -> None:
    source = tiny_hf("llama", "f32")
    out = tmp_path / "m.hga"
    pack(source, tmp_path / "whole.hga")
    interrupted(source, out, 30, KeyboardInterrupt)
    raw = bytearray(partial(out).read_bytes())
    for at in range(4096, len(raw), 4096):
        raw[at] ^= 0xFF
    partial(out).write_bytes(raw)
    assert pack(source, out).resumed_nbytes == 0
    assert out.read_bytes() == (tmp_path / "whole.hga").read_bytes()


def test_an_old_result_stays_until_the_new_one_is_whole(tiny_hf, tmp_path) -> None:
    out = tmp_path / "m.hga"
    pack(tiny_hf("llama", "f32"), out)
    before = out.read_bytes()
    interrupted(tiny_hf("llama", "bf16"), out, 20, KeyboardInterrupt)
    assert out.read_bytes() == before
    pack(tiny_hf("llama", "bf16"), out)
    assert out.read_bytes() != before
