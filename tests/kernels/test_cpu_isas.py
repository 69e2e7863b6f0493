"""The kernel case list on the instruction sets below the host's best, each in a process of its own.

An instruction set is fixed when the kernels are imported, so these run the other test modules again
with HGA_TEST_ISA.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hga.kernels import system
from hga.kernels.cpu import target
from hga.kernels.system import MACHINE

HERE = Path(__file__).parent
MODULES = ("products", "elementwise", "half", "attention", "routing")


ISAS = ("avx2", "generic") if MACHINE == "x86_64" else ("generic",)


@pytest.fixture(scope="module")
def runs(kernel_cache: Path, kernel_isa: str | None) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """A test run per instruction set, side by side: most of their time is compilation."""
    assert kernel_isa is None
    files = [str(HERE / f"test_cpu_{name}.py") for name in MODULES]
    started = {}
    for isa in ISAS:
        environment = {"HGA_TEST_ISA": isa, "HGA_TEST_KERNEL_CACHE": str(kernel_cache)}
        started[isa] = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
            cwd=HERE.parents[1],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("isa", ISAS)
def test_cases_pass_on(isa: str, runs: dict[str, subprocess.Popen[str]]) -> None:
    if isa == "avx2" and target.detect() == "generic":
        pytest.skip("this processor has no AVX2")
    output, _ = runs[isa].communicate(timeout=540)
    assert runs[isa].returncode == 0, output[-6000:]
    assert " passed" in output and "skipped" not in output


def test_an_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown instruction set 'sse9'"):
        target.select(tmp_path, "sse9")


def select_in_a_process(tmp_path: Path, body: str) -> str:
    """Standard output of a script that has `target`, `cache` and `select` at hand."""
    script = (
        "from pathlib import Path; from hga.kernels.cpu import target;"
        f"cache = Path({str(tmp_path)!r}); {body}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("isa", ISAS)
def test_a_forced_instruction_set_is_the_one_in_force(tmp_path: Path, isa: str) -> None:
    body = (
        f"print(target.select(cache, {isa!r})[1], target.detect(), target.shortfall(), sep='; ');"
    )
    assert select_in_a_process(tmp_path, body) == f"None; {isa}; {isa} kernels, as asked for"


def test_each_instruction_set_has_a_cache_of_its_own(tmp_path: Path) -> None:
    bodies = ["print(target.select(cache)[0])", "print(target.select(cache, 'generic')[0])"]
    folders = {select_in_a_process(tmp_path, body) for body in bodies}
    assert len(folders) == 2
    assert all(Path(folder).is_dir() for folder in folders)


def test_a_cache_that_cannot_be_written_is_replaced_and_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    out = select_in_a_process(
        blocked, "f, p = target.select(cache); print(f.is_dir(), f.is_relative_to(cache), p)"
    )
    assert out.startswith("True False compiled kernels cannot be kept (")
    assert out.endswith("they are compiled at every start")


def test_the_target_is_chosen_before_kernels_are_imported(tmp_path: Path) -> None:
    body = (
        "target.select(cache); import hga.kernels.cpu.simd;\n"
        "try: target.select(cache)\n"
        "except RuntimeError as error: print(error)"
    )
    assert "before kernels are imported" in select_in_a_process(tmp_path, body)


def test_an_instruction_set_of_another_machine_is_refused(tmp_path: Path) -> None:
    other = "avx2" if MACHINE == "aarch64" else "neon"
    with pytest.raises(ValueError, match=f"instruction set '{other}' is not that of {MACHINE}"):
        target.select(tmp_path, other)


@pytest.mark.parametrize(
    ("machine", "products", "isa", "dot", "note"),
    [
        ("aarch64", ("dotprod", "i8mm"), "neon", "i8mm", None),
        ("aarch64", ("dotprod",), "neon", "dotprod", None),
        ("aarch64", (), "neon", "", "this processor has no dot products of bytes: plain neon"),
        ("riscv64", (), "generic", "", "generic kernels: there are none for riscv64"),
    ],
)
def test_what_other_machines_get(
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    products: tuple[str, ...],
    isa: str,
    dot: str,
    note: str | None,
) -> None:
    from numba import config

    monkeypatch.setattr(config, "CPU_NAME", None)
    monkeypatch.setattr(target, "MACHINE", machine)
    monkeypatch.setattr(target, "arm_products", lambda: products)
    assert (target.detect(), target.dot_products()) == (isa, dot)
    said = target.shortfall()
    assert (said is None) if note is None else said.startswith(note)


def test_numbers_of_system_calls_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 32-bit program on a 64-bit system has others, and so has a machine that is not known."""
    found = {}
    for name, size in (("aarch64", 1 << 62), ("aarch64", 1 << 31), ("mips64", 1 << 62)):
        monkeypatch.setattr(platform, "machine", lambda name=name: name)
        monkeypatch.setattr(sys, "maxsize", size)
        monkeypatch.setattr(system, "MACHINE", system._machine())
        found[system.MACHINE] = system.futex_number(), system.sched_setattr_number()
    assert found == {"aarch64": (98, 274), "aarch64 (32 bits)": (0, 0), "mips64": (0, 0)}
