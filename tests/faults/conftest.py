"""Real processes of hga to be hurt: with a model small enough to start in a second, and one that
takes seconds for what it is asked."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hga.tools.pack import pack

_PROGRAM = "import sys; from hga.tools.cli import main; sys.exit(main())"


@pytest.fixture(scope="session")
def small(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model that answers in milliseconds."""
    folder = tmp_path_factory.mktemp("small")
    pack(tiny.write_hf(folder / "hf", tiny.config("llama")), folder / "small.hga")
    return folder / "small.hga"


@pytest.fixture(scope="session")
def experts(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with experts."""
    folder = tmp_path_factory.mktemp("experts")
    pack(tiny.write_hf(folder / "hf", tiny.config("qwen3_moe")), folder / "experts.hga")
    return folder / "experts.hga"


@pytest.fixture(scope="session")
def heavy(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model of 30 M weights that needs seconds for a long prompt."""
    folder = tmp_path_factory.mktemp("heavy")
    config = tiny.config(
        "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=8192,
    )  # fmt: skip
    pack(tiny.write_hf(folder / "hf", config), folder / "heavy.hga")
    return folder / "heavy.hga"


@pytest.fixture
def home(own_home: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment with a state folder of the test's own."""
    return {**own_home, "XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def start(home: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """start(*words, **Popen options) -> a process of `hga`, ended with the test at the latest."""
    begun: list[subprocess.Popen[bytes]] = []

    def run(*words: object, **options: Any) -> subprocess.Popen[bytes]:
        given: dict[str, Any] = {
            "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
            "env": home, **options,
        }  # fmt: skip
        command = [sys.executable, "-P", "-c", _PROGRAM, *map(str, words)]
        begun.append(subprocess.Popen(command, **given))
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def served(
    start: Callable[..., subprocess.Popen[bytes]],
) -> Callable[..., tuple[subprocess.Popen[bytes], int]]:
    """served(model, *flags) -> (process, port) of a server."""

    def go(model: Path, *flags: object) -> tuple[subprocess.Popen[bytes], int]:
        process = start("serve", model, "--port", "0", *flags)
        said = b""
        while not (found := re.search(rb"listening on http://[\d.]+:(\d+)[^\n]*\n", said)):
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line, said
            said += line
        return process, int(found[1])

    return go


@pytest.fixture
def hga(start: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., tuple[int, str, str]]:
    """hga(*words, **Popen options) -> (exit code, standard output, standard error)."""

    def run(*words: object, **options: Any) -> tuple[int, str, str]:
        process = start(*words, **options)
        out, err = process.communicate(timeout=90)
        return process.returncode, (out or b"").decode(), (err or b"").decode()

    return run


@pytest.fixture
def python(home: dict[str, str]) -> Callable[..., tuple[int, str, str]]:
    """python(code, *words) -> (exit code, standard output, standard error) of a script."""

    def run(code: str, *words: object) -> tuple[int, str, str]:
        command = [sys.executable, "-P", "-c", code, *map(str, words)]
        done = subprocess.run(command, env=home, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """small_disk(name, options) -> a tmpfs mounted there; skips where it cannot be."""
    mounted: list[Path] = []

    def mount(name: str, options: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode != 0:
            pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Signals, mounts and limits are those of POSIX."""
    if os.name == "nt":
        for item in items:
            if Path(item.fspath).parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="needs POSIX"))
