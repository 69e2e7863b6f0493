"""A box for hostile input: commands of hga under a limit of memory and time, with what they took.

As a program it loads the package once and forks a child for each request, so that hundreds of
commands cost seconds; `Box` is the side that asks. A child's limit of address space counts from
what it had when it was forked, its peak of resident memory likewise.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EXTRA_BYTES = 1 << 30
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: code as the shell sees it, below 0 for a signal; `peak_bytes` of
    resident memory beyond what the loaded package takes."""

    code: int
    out: str
    err: str
    peak_bytes: int
    seconds: float


class Box:
    """Runs commands one at a time; `with` ends the program behind it."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        """`folder` is for its files, `environ` its whole environment."""
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environ,
        )  # fmt: skip

    def run(
        self,
        argv: Sequence[object],
        given: bytes | Path = b"",
        extra_bytes: int = EXTRA_BYTES,
        seconds: float = SECONDS,
    ) -> Outcome:
        """`hga` with these words; `given` on standard input."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            place = Path(name)
            source = given if isinstance(given, Path) else place / "in"
            if isinstance(given, bytes):
                source.write_bytes(given)
            for name in ("out", "err"):
                (place / name).touch()
            request = {
                "argv": [str(word) for word in argv], "in": str(source),
                "out": str(place / "out"), "err": str(place / "err"),
                "extra_bytes": extra_bytes, "seconds": seconds,
            }  # fmt: skip
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            out, err = ((place / n).read_bytes().decode("utf-8", "replace") for n in ("out", "err"))
        return Outcome(out=out, err=err, **answer)

    def __enter__(self) -> "Box":
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _child(request: dict[str, object]) -> None:
    """Become the command; never returns."""
    for fd, (name, flags) in enumerate(
        (("in", os.O_RDONLY), ("out", os.O_WRONLY | os.O_CREAT), ("err", os.O_WRONLY | os.O_CREAT))
    ):
        opened = os.open(str(request[name]), flags, 0o600)
        os.dup2(opened, fd)
        os.close(opened)
    # Buffers that the parent's streams may hold are none of the child's.
    sys.stdin, sys.stdout, sys.stderr = (
        open(fd, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    limit = _address_space() + int(str(request["extra_bytes"]))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = 70
    try:
        from hga.tools.cli import main

        code = main([str(word) for word in request["argv"]])  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def _serve(request: dict[str, object]) -> dict[str, object]:
    begin = time.monotonic()
    before = _resident()
    pid = os.fork()
    if pid == 0:
        _child(request)
    deadline = begin + float(str(request["seconds"]))
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "peak_bytes": max(0, usage.ru_maxrss * 1024 - before),
        "seconds": time.monotonic() - begin,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _program() -> None:
    # All that a refusal may need, so that no child imports it again.
    import lz4.frame  # noqa: F401
    import ml_dtypes  # noqa: F401
    import tokenizers  # noqa: F401

    import hga.runtime.engine
    import hga.runtime.template_sandbox
    import hga.tools.cli
    import hga.tools.inspect
    import hga.tools.pack
    import hga.tools.resolve
    import hga.tools.run
    import hga.tools.sources.gguf
    import hga.tools.sources.hf
    from hga.kernels import ops
    from hga.tools.folders import cache_folder

    # Loaded, not run: threads would not survive a fork.
    ops.choose_cpu(cache_folder() / "kernels")
    import hga.kernels.cpu.forward  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    _program()
