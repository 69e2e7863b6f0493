"""hga on aarch64 in emulation (qemu-user) on a Debian or Ubuntu of another processor.

    python bench/aarch64.py ROOM               the kernels' cases and a tiny model, end to end
    python bench/aarch64.py ROOM --cpu cortex-a72 --tests tests/kernels/test_cpu_products.py

ROOM is a folder (1 GB) for the emulator, an aarch64 Python with its libraries and the packages, all
fetched through apt and pip the first time; nothing is installed on the machine. --cpu is qemu's:
`max` has both dot products of bytes, `neoverse-n1` the signed one, `cortex-a72` none. The model is
tests/simulated_platform.py's job; its tokens are compared with those of this machine. Correctness
only: emulation takes ten to fifty times as long, and orders memory as this machine does.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
TESTS = tuple(
    f"tests/kernels/test_{name}.py"
    for name in ("cpu_half", "cpu_products", "cpu_elementwise", "cpu_attention", "cpu_routing",
                 "checksum", "cpu_pool")
)  # fmt: skip
_PYTHON = "3.11"
_GLIBC = ("2014", "_2_17", "_2_27", "_2_28", "_2_31", "_2_34")
# What the tests need that hga does not.
_MORE = ("pytest", "pytest-timeout", "hypothesis", "gguf")
_COMPARED = ("tokens", "prompt_tokens", "reused_tokens", "kv")


def main() -> int:
    """Set up what is missing, then run; the exit code is 0 where all passed."""
    values = parser().parse_args()
    room = values.room.resolve()
    python = set_up(room)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(room / "ours"), str(room / "site")]),
        "PYTHONSAFEPATH": "1",
        "QEMU_CPU": values.cpu,
        "HGA_TEST_ISA": "neon",
        "HGA_TEST_KERNEL_CACHE": str(room / "kernels"),
        **{f"XDG_{kind}_HOME": str(room / kind.lower()) for kind in ("CACHE", "STATE", "CONFIG")},
    }
    failed = 0
    tests = values.tests or (() if values.model else TESTS)
    for test in tests:
        print(f"== {test} on {values.cpu}", flush=True)
        words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "7200", test]
        failed |= subprocess.run([python, *words], env=environment, cwd=ROOT).returncode
    if values.model or not values.tests:
        print(f"== a tiny model on {values.cpu}", flush=True)
        failed |= compare_models(python, environment)
    return int(failed != 0)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("room", type=Path, metavar="ROOM")
    made.add_argument("--cpu", default="max", help="processor that qemu emulates (default: max)")
    made.add_argument("--tests", nargs="+", default=[], metavar="FILE", help="these tests alone")
    made.add_argument("--model", action="store_true", help="the tiny model alone")
    return made


# --- the emulated machine ------------------------------------------------------------------------


def set_up(room: Path) -> str:
    """Fetch what is missing; the path of a program that is the emulated Python."""
    python = room / "python"
    links = room / "ours" / "hga"
    links.mkdir(parents=True, exist_ok=True)
    for folder in ("kernels", "kvstore", "models", "runtime", "tools"):
        if not (links / folder).is_symlink():
            (links / folder).symlink_to(ROOT / folder)
    if python.exists():
        return str(python)
    fetch_emulator(room)
    fetch_python(room)
    fetch_packages(room)
    # Named by its own path, so that processes it starts by sys.executable are emulated too.
    python.write_text(
        "#!/bin/sh\n"
        f"PYTHONHOME={room}/arm64/usr exec {room}/qemu/usr/bin/qemu-aarch64-static -L {room}/arm64"
        f' -0 {python} {room}/arm64/usr/bin/python{_PYTHON} "$@"\n',
        encoding="utf-8",
    )
    python.chmod(0o755)
    return str(python)


def fetch_emulator(room: Path) -> None:
    """qemu-user, unpacked beside this machine's packages."""
    with tempfile.TemporaryDirectory(dir=room) as folder:
        subprocess.run(["apt-get", "download", "qemu-user-static"], cwd=folder, check=True)
        unpack(Path(folder), room / "qemu")


def fetch_python(room: Path) -> None:
    """Python and its libraries for aarch64, by an apt that knows of no other architecture and
    of nothing installed."""
    apt = room / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "Dir::State": apt, "Dir::State::Lists": apt / "lists",
        "Dir::State::status": apt / "status", "Dir::Cache": apt / "cache",
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "root",
    }  # fmt: skip
    words = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*words, "update"], check=True)
    wanted = ["--no-install-recommends", "install", f"python{_PYTHON}", "libstdc++6"]
    subprocess.run([*words, "-y", "--download-only", *wanted], check=True)
    unpack(apt / "cache" / "archives", room / "arm64")


def unpack(folder: Path, into: Path) -> None:
    """The files of all packages of a folder."""
    for package in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(into)], check=True)


def fetch_packages(room: Path) -> None:
    """hga's requirements as wheels for aarch64."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    kinds = [f"--platform=manylinux{version}_aarch64" for version in _GLIBC]
    options = [*kinds, "--only-binary=:all:", f"--python-version={_PYTHON}", "--implementation=cp"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    words = [*pip, "--target", str(room / "site"), *options, *project["dependencies"], *_MORE]
    subprocess.run(words, check=True)


# --- a model -------------------------------------------------------------------------------------


def helper(name: str) -> ModuleType:
    """A module of the tests."""
    path = ROOT / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def compare_models(emulated: str, environment: dict[str, str]) -> int:
    """The job of tests/test_platforms.py here and there; 1 where a command fails or figures
    differ."""
    tiny, platforms = helper("tiny_checkpoints"), helper("test_platforms")
    found = {}
    with tempfile.TemporaryDirectory() as top:
        source = tiny.write_hf(Path(top) / "tiny", tiny.config("llama"), "f32", 1)
        for name, python in (("here", sys.executable), ("emulated", emulated)):
            folder = Path(top) / name
            folder.mkdir()
            words = platforms.commands(source, folder)
            job, result = folder / "job.json", folder / "result.json"
            job.write_text(json.dumps(platforms.job_of(words, folder, result)), encoding="utf-8")
            state = {"XDG_STATE_HOME": str(folder / "state")}
            own = {**(environment if name == "emulated" else os.environ), **state}
            program = str(ROOT / "tests" / "simulated_platform.py")
            subprocess.run([python, "-P", program, "linux", str(job)], env=own, check=True)
            ran = json.loads(result.read_text(encoding="utf-8"))
            found[name] = dict(zip(words, ran["ran"], strict=True))
            assert ran["failed"] == [], ran["failed"]
    wrong = 0
    for name, each in found["emulated"].items():
        here = found["here"][name]
        same = each["code"] == here["code"] == 0
        if "--json" in words[name] and words[name][0] == "run":
            pair = [json.loads(ran["out"].splitlines()[-1]) for ran in (each, here)]
            same = same and all(pair[0][key] == pair[1][key] for key in _COMPARED)
            print(f"{name:<10}{'same' if same else 'DIFFERENT'}  {pair[0]['backend']}: "
                  f"{pair[0]['tokens']}, here {pair[1]['tokens']}")  # fmt: skip
        else:
            print(f"{name:<10}{'same' if same else 'DIFFERENT'}  exit code {each['code']}")
        wrong |= not same
    return wrong


if __name__ == "__main__":
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        sys.exit("aarch64.py: needs apt-get and dpkg: a Debian or an Ubuntu")
    sys.exit(main())
