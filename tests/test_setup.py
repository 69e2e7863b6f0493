"""The Makefile's set-up: one clear line where the interpreter will not do, and nothing of set-up on
standard output. Interpreters are stood in for by small scripts, so that nothing is installed.
"""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or os.name != "posix", reason="make or a POSIX shell is absent"
)


def make(tmp_path: Path, python: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `make run` with a virtual environment of its own."""
    command = ["make", "-C", str(ROOT), "--no-print-directory", "run"]
    return subprocess.run(
        [*command, f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
    )


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The line that is ours, of a refused set-up."""
    assert done.returncode != 0
    assert done.stdout == ""
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(ours) == 1, done.stderr
    return ours[0]


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    line = complaint(make(tmp_path, "no-such-python"))
    assert "no-such-python" in line and "3.11" in line


def test_an_old_interpreter_is_refused_with_its_version(tmp_path: Path) -> None:
    old = script(tmp_path / "old", '[ "$1" = -V ] && { echo Python 3.9.1; exit 0; }; exit 1')
    line = complaint(make(tmp_path, old))
    assert "3.9.1" in line and "3.11" in line and "PYTHON=" in line


def test_a_missing_venv_module_is_named(tmp_path: Path) -> None:
    body = f'case "$2" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"'
    line = complaint(make(tmp_path, script(tmp_path / "bare", body)))
    assert "venv" in line and "python3-venv" in line


def test_set_up_speaks_on_standard_error_and_leaves_standard_input(tmp_path: Path) -> None:
    """A stand-in interpreter makes an environment whose every command prints on both streams and
    reads its input: only `hga` may be heard on standard output, and only it gets the question."""
    noisy = script(tmp_path / "noisy", "echo noise; echo noise >&2; cat")
    hga = script(tmp_path / "hga", 'echo "asked: $(cat)"')
    body = f"""
    case "$*" in
      *-m\\ venv*) mkdir -p {tmp_path}/venv/bin; cat
        for name in python pip; do cp {noisy} {tmp_path}/venv/bin/$name; done
        cp {hga} {tmp_path}/venv/bin/hga; echo noise;;
    esac
    """
    done = make(tmp_path, script(tmp_path / "python", body), stdin="why?\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "asked: why?\n"
    assert "setting up" in done.stderr and "noise" in done.stderr
