"""macOS and Windows, simulated (simulated_platform.py): every module imports, and the program
packs, runs, saves and reads from disk by what takes the place of what is missing, with the same
tokens.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux is what simulates")

PLATFORMS = ("linux", "darwin", "win32")
# Of sessions; Windows keeps the first three for itself.
NAMES = ["con", "NUL.1", "trip.", "trip", "console", "a.b"]
LONG = "Count the words of this sentence. " * 40


def modules() -> list[str]:
    """All of ours but those of the CUDA backend, which nothing imports at start."""
    paths = [p for f in ("kernels", "kvstore", "models", "runtime", "tools")
             for p in sorted((ROOT / f).rglob("*.py"))]  # fmt: skip
    names = [".".join(("hga", *p.relative_to(ROOT).with_suffix("").parts)) for p in paths]
    foreign = (".triton.", ".cuda_")
    return [n.removesuffix(".__init__") for n in names if not any(f in n for f in foreign)]


def commands(source: Path, folder: Path) -> dict[str, list[str]]:
    pack = str(folder / "tiny.hga")
    run = ["run", pack, "--no-chat", "--temp", "0", "-n", "8", "--json", "-c", "1k"]
    disk = ["--kv", "disk", "--kv-dir", str(folder / "kv")]
    return {
        "help": ["--help"],
        "doctor": ["doctor", "--json", "--kv-dir", str(folder / "kv")],
        "pack": ["pack", str(source), "-o", pack],
        "verify": ["verify", pack],
        "run": [*run, "-p", "Once upon a time"],
        "long": [*run, "-p", LONG],
        "disk": [*run, *disk, "-p", LONG],
        "mapped": [*run, *disk, "--io", "mmap", "-p", LONG],
        "session": [*run, "--session", "trip", "-p", LONG],
        "again": [*run, "--session", "trip", "-p", "And then"],
        "sessions": ["sessions", "list", "--json"],
        "fork": ["sessions", "fork", "trip", "other"],
        "removed": ["sessions", "rm", "trip"],
    }


def job_of(words: dict[str, list[str]], folder: Path, result: Path) -> dict[str, object]:
    """What simulated_platform.py takes; bench/aarch64.py gives it the same."""
    session = folder / "state" / "hga" / "sessions" / "other"
    told = {"modules": modules(), "commands": [*words.values()], "lock": str(session)}
    return {**told, "names": NAMES, "result": str(result)}


@pytest.fixture(scope="module")
def ran(
    tiny_hf: Callable[..., Path], own_home: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], SimpleNamespace]:
    """ran(platform): what came of the job, by command; done once."""
    done: dict[str, SimpleNamespace] = {}

    def run(platform: str) -> SimpleNamespace:
        if platform not in done:
            folder = tmp_path_factory.mktemp(platform)
            words = commands(tiny_hf("llama"), folder)
            job, result = folder / "job.json", folder / "result.json"
            job.write_text(json.dumps(job_of(words, folder, result)), encoding="utf-8")
            program = str(Path(__file__).with_name("simulated_platform.py"))
            state = {"XDG_STATE_HOME": str(folder / "state")}
            child = subprocess.run(
                [sys.executable, "-P", program, platform, str(job)],
                env={**own_home, **state}, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=120,
            )  # fmt: skip
            assert child.returncode == 0, child.stderr.decode("utf-8", "replace")[-4000:]
            found = json.loads(result.read_text(encoding="utf-8"))
            by_name = dict(zip(words, found["ran"], strict=True))
            done[platform] = SimpleNamespace(**{**found, "ran": by_name, "folder": folder})
        return done[platform]

    return run


def figures(ran: SimpleNamespace, name: str) -> dict[str, object]:
    return json.loads(ran.ran[name]["out"].splitlines()[-1])


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_module_imports_and_every_command_works(ran, platform: str) -> None:
    found = ran(platform)
    assert found.failed == []
    wrong = {name: each for name, each in found.ran.items() if each["code"] != 0}
    assert not wrong


@pytest.mark.parametrize("platform", PLATFORMS[1:])
@pytest.mark.parametrize("name", ["run", "long", "disk", "mapped", "session", "again"])
def test_the_tokens_are_the_same(ran, platform: str, name: str) -> None:
    expected, found = figures(ran("linux"), name), figures(ran(platform), name)
    assert len(found["tokens"]) == 8
    for key in ("tokens", "prompt_tokens", "reused_tokens", "kv"):
        assert found[key] == expected[key]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_session_goes_on_where_it_was(ran, platform: str) -> None:
    first, again = figures(ran(platform), "session"), figures(ran(platform), "again")
    assert again["reused_tokens"] >= first["prompt_tokens"]


# A few words of every line that `hga doctor` prints of what a platform lacks.
FALLBACKS = {
    "linux": (),
    "darwin": ("futex", "O_DIRECT", "posix_fadvise", "posix_fallocate", "guard", "io_uring"),
    "win32": (
        *("futex", "preadv", "O_DIRECT", "posix_fadvise", "posix_fallocate", "flock", "synced"),
        *("renamed", "guard", "io_uring"),
    ),
}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_doctor_names_the_platform_and_every_fallback(ran, platform: str) -> None:
    found = json.loads(ran(platform).ran["doctor"]["out"])
    name = {"linux": "Linux ", "darwin": "macOS ", "win32": "Windows "}[platform]
    assert found["system"]["name"].startswith(name)
    lines, words = found["system"].get("fallbacks", []), FALLBACKS[platform]
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))
    assert found["disk"]["random_8_KiB_bytes_per_s"] > 0
    if platform != "linux":
        assert found["disk"]["past_the_page_cache"] is False


@pytest.mark.parametrize(
    ("platform", "name", "io", "notice"),
    [
        ("darwin", "disk", "threads", "read through the page cache"),
        ("darwin", "mapped", "mmap", None),
        ("win32", "disk", "threads", "reads go through the interpreter"),
        ("win32", "mapped", "threads", "files are not mapped, threads read instead"),
    ],
)
def test_a_run_says_how_it_reads(ran, platform: str, name: str, io: str, notice: str | None):
    found = ran(platform)
    assert figures(found, name)["io"] == io
    assert notice is None or notice in found.ran[name]["err"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_nothing_is_left_behind(ran, platform: str) -> None:
    """Files that are in use, or lie in folders in use, cannot be moved or removed on Windows."""
    folder = ran(platform).folder
    assert [*(folder / "kv").iterdir()] == []
    names = [path.name for path in (folder / "state" / "hga" / "sessions").iterdir()]
    assert names == ["other"]
    assert not [path for path in folder.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_files_are_locked(ran, platform: str) -> None:
    session, written = ran(platform).locked
    assert session.startswith("session 'other' is in use by this process (")
    assert written == "another process is writing this file"
    assert (ran(platform).seen["byte_locks"] > 0) == (platform == "win32")


def test_macos_flushes_the_drive(ran) -> None:
    assert ran("darwin").seen["full_syncs"] > 0 == ran("linux").seen["full_syncs"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_names_that_no_file_can_have_are_refused(ran, platform: str) -> None:
    assert ran(platform).refused_names == (NAMES[:3] if platform == "win32" else [])
