"""Whether --mem is kept: runs of `hga run` inside memory cgroups of 1.03 times their budgets.

    python bench/memory.py MODEL.hga -f TEXT --ctx 64k --mem 450m,600m,900m --predict 57000

What the cgroup charges is resident memory and page cache, from the start of the process to its
end; a run that needs more is killed by the system and says so. Where no cgroup can be made (version
1 or 2; it takes the right to make one) resident memory is sampled instead, and a run that has more
is killed here. Prints a line per budget and one JSON object.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from hga.runtime.options import parse_size

_ROOT = Path("/sys/fs/cgroup")
# Limit, peak and membership of a memory cgroup.
_V1 = ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
_V2 = ("memory.max", "memory.peak")
SLACK = 1.03
_SAMPLE_S = 0.01
_HGA = "from hga.tools.cli import main; raise SystemExit(main())"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: peak of what was charged to it, `how` that was told."""

    code: int
    peak_bytes: int
    out: str
    err: str
    how: str


def own_group() -> tuple[Path, tuple[str, str]]:
    """The folder of this process's memory cgroup and the names of its files."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/"), _V1
    return _ROOT / line.split(":", 2)[2].lstrip("/"), _V2


def new_group(limit: int) -> tuple[Path, str]:
    """A cgroup with this limit, and the name of the file that tells its peak; OSError where there
    can be none."""
    parent, (limit_file, peak_file) = own_group()
    group = parent / f"hga-bench-{os.getpid()}-{time.monotonic_ns()}"
    group.mkdir()
    try:
        if not (group / peak_file).exists():
            raise FileNotFoundError(f"{group} has no {peak_file}")
        (group / limit_file).write_text(str(limit))
    except OSError:
        group.rmdir()
        raise
    return group, peak_file


def run_inside(limit: int, command: list[str], env: dict[str, str] | None = None) -> Outcome:
    """Run a command that may have so many bytes of memory."""
    with contextlib.suppress(OSError):
        group, peak_file = new_group(limit)
        try:
            enter = f'echo $$ > {group / "cgroup.procs"} && exec "$@"'
            shell = ["sh", "-c", enter, "sh", *command]
            done = subprocess.run(shell, capture_output=True, text=True, env=env)
            peak = int((group / peak_file).read_text())
            return Outcome(done.returncode, peak, done.stdout, done.stderr, "cgroup")
        finally:
            group.rmdir()
    return _sampled(limit, command, env)


def _sampled(limit: int, command: list[str], env: dict[str, str] | None) -> Outcome:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
        seen, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, seen.memory_info().rss)
            if peak > limit:
                process.kill()
            time.sleep(_SAMPLE_S)
        out.seek(0), err.seek(0)
        return Outcome(process.wait(), peak, out.read(), err.read(), "samples")


def measure(
    model: Path,
    text: Path,
    mem: int,
    flags: list[str],
    env: dict[str, str] | None = None,
) -> tuple[dict[str, object], Outcome]:
    """A run with a budget, under a limit a little above it: its figures, and how it ended."""
    words = ["run", str(model), "-f", str(text), "--no-chat", "--json", "--quiet"]
    words += ["--mem", str(mem), "--temp", "0", *flags]
    command = [sys.executable, "-P", "-c", _HGA, *words]
    done = run_inside(int(SLACK * mem), command, env)
    row: dict[str, object] = {
        "mem": mem, "exit_code": done.code, "peak_share": round(done.peak_bytes / mem, 4),
        "how": done.how,
    }  # fmt: skip
    if done.code == 0:
        figures = json.loads(done.out.splitlines()[-1])
        names = ("prompt_tokens", "decode_tps", "kv", "kv_hit_rate", "peak_rss", "tokens")
        row |= {name: figures[name] for name in names}
        row["decoded_tokens"] = len(figures["tokens"])
    return row, done


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--ctx", type=parse_size, default=65536)
    parser.add_argument("--mem", default="300m,600m,1g")
    parser.add_argument("--predict", type=int, default=64)
    parser.add_argument("--budget", default="2%")
    values = parser.parse_args()
    flags = ["-n", str(values.predict), "--ctx", str(values.ctx), "--budget", values.budget]
    rows, answers = [], set()
    for text in values.mem.split(","):
        row, done = measure(
            values.model, values.file, parse_size(text), [*flags, "--prefill", "hga"]
        )
        answers.add(str(row.pop("tokens"))) if "tokens" in row else print(done.err, file=sys.stderr)
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(json.dumps({"ctx": values.ctx, "same_tokens": len(answers) == 1, "rows": rows}))


if __name__ == "__main__":
    main()
