"""Signals at every phase: nothing saved is lost, nothing temporary is left, no traceback."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
WORDS = "the quick brown fox " * 250


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def is_saved(hga, folder: Path) -> int:
    """Turns of the session, all of whose checksums are right."""
    code, out, err = hga("verify", folder)
    assert code == 0, err
    code, out, err = hga("sessions", "show", folder.name, "--kv-dir", folder.parent, "--json")
    assert code == 0, err
    import json

    return len(json.loads(out)["messages"])


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize(
    "phase",
    ["decode", *(pytest.param(name, marks=pytest.mark.slow) for name in ("load", "prefill"))],
)
def test_a_signal_ends_a_run_in_order(start, hga, heavy, tmp_path, home, number, phase):
    folder = tmp_path / "kept"
    prompt = tmp_path / "p.txt"
    prompt.write_text(WORDS)
    words = ["-n", "2000", "--temp", "0", "--session", "s", "--kv-dir", folder, "--kv", "disk"]
    code, _, err = hga("run", heavy, "-p", "hello", "-n", "3", *words[2:])
    assert code == 0, err
    process = start("run", heavy, "-f", prompt, *words)
    if phase == "load":
        wait_for(lambda: "small" in _maps(process.pid) or "heavy.hga" in _maps(process.pid))
    elif phase == "prefill":
        # The lock is taken when the session is opened; reading the prompt comes next.
        wait_for(lambda: b"session" in os.read(process.stderr.fileno(), 1 << 16))
        time.sleep(0.1)
    else:
        assert process.stdout.read(1)
    process.send_signal(number)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == CODES[number], err
    assert time.monotonic() - begin < 10
    assert b"Traceback" not in err and b"error" not in err, err
    # The reply is kept as far as it got; before its first token the turn is dropped.
    assert is_saved(hga, folder / "s") == 1 + (phase == "decode")
    assert not list(Path(home["XDG_CACHE_HOME"]).glob("hga/kv/*"))


def _maps(pid: int) -> str:
    """What a process has mapped or open."""
    try:
        links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return ""
    return " ".join(links)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_while_a_turn_is_saved(python, hga, small, tmp_path, number):
    # The signal comes from within the commit, between the blocks and the head.
    code = """
import os, sys
from hga.kvstore import commit
real = commit.write
def write(*given):
    os.kill(os.getpid(), int(sys.argv[1]))
    real(*given)
from hga.tools import cli
import hga.kvstore.store as store
store.commit.write = write
sys.exit(cli.main(sys.argv[2:]))
"""
    words = ["run", small, "-p", "hello", "-n", "4", "--session", "s", "--kv-dir", tmp_path]
    code, _, err = python(code, int(number), *words)
    # Ctrl-C once does not cut a save short, and there was no reply left to stop.
    assert code == (0 if number == signal.SIGINT else CODES[number]), err
    assert "Traceback" not in err
    assert is_saved(hga, tmp_path / "s") == 1


def test_an_ignored_hang_up_stays_ignored(start, heavy):
    process = start(
        "run", heavy, "-p", "hello", "-n", "60",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout.read(1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_a_temporary_store_goes_with_its_run(start, heavy, home):
    process = start("run", heavy, "-p", WORDS, "-n", "500", "--kv", "disk")
    kept = Path(home["XDG_CACHE_HOME"]) / "hga" / "kv"
    wait_for(lambda: any(kept.glob("kv-*/session/head-*")))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert not any(kept.glob("kv-*"))


def test_what_a_killed_run_left_goes_with_the_next(start, hga, heavy, home):
    process = start("run", heavy, "-p", WORDS, "-n", "500", "--kv", "disk")
    kept = Path(home["XDG_CACHE_HOME"]) / "hga" / "kv"
    wait_for(lambda: any(kept.glob("kv-*/session/head-*")))
    process.kill()
    process.communicate()
    assert any(kept.glob("kv-*"))
    code, _, err = hga("run", heavy, "-p", "hello", "-n", "3", "--kv", "disk")
    assert code == 0, err
    assert not any(kept.glob("kv-*"))


def test_signals_while_packing_leave_what_a_second_try_takes_over(start, hga, tiny_hf, tmp_path):
    source, out = tiny_hf("llama"), tmp_path / "o.hga"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        process = start("pack", source, "-o", out)
        wait_for(lambda p=process: (tmp_path / "o.hga.partial").exists() or p.poll() is not None)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert b"Traceback" not in err
    assert hga("pack", source, "-o", out)[0] == 0
    assert hga("verify", out)[0] == 0
    assert [path.name for path in tmp_path.glob("o.hga*")] == ["o.hga"]


def test_a_stopped_and_continued_run_goes_on(start, heavy):
    process = start("run", heavy, "-p", "hello", "-n", "40", "--temp", "0")
    assert process.stdout.read(1)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
