"""Whether --mem is kept: runs of `hga run` inside memory cgroups of 1.03 times their budgets.

    python bench/memory.py MODEL.hga -f TEXT --ctx 65536 --mem 300m,600m,1g

What the cgroup charges is resident memory and page cache, from the start of the process to its
end; a run that needs more is killed by the system and says so. Needs Linux and the right to make a
cgroup (version 1 or 2). Prints a line per budget and one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from hga.runtime.options import parse_size

_ROOT = Path("/sys/fs/cgroup")
# Limit, peak and membership of a memory cgroup.
_V1 = ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
_V2 = ("memory.max", "memory.peak")
_SLACK = 1.03
_HGA = "from hga.tools.cli import main; raise SystemExit(main())"


def own_group() -> tuple[Path, tuple[str, str]]:
    """The folder of this process's memory cgroup and the names of its files."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return _ROOT / "memory" / path.lstrip("/"), _V1
    return _ROOT / line.split(":", 2)[2].lstrip("/"), _V2


def run_inside(limit: int, command: list[str]) -> tuple[int, int, str]:
    """Exit code, peak charge in bytes and standard output of a command with a memory limit."""
    parent, (limit_file, peak_file) = own_group()
    group = parent / f"hga-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / limit_file).write_text(str(limit))
        enter = f'echo $$ > {group / "cgroup.procs"} && exec "$@"'
        shell = ["sh", "-c", enter, "sh", *command]
        done = subprocess.run(shell, stdout=subprocess.PIPE, text=True)
        return done.returncode, int((group / peak_file).read_text()), done.stdout
    finally:
        group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("--ctx", type=int, default=65536)
    parser.add_argument("--mem", default="300m,600m,1g")
    parser.add_argument("--predict", type=int, default=64)
    parser.add_argument("--budget", default="2%")
    values = parser.parse_args()
    rows = []
    for text in values.mem.split(","):
        mem = parse_size(text)
        words = ["run", str(values.model), "-f", str(values.file), "--no-chat", "--json", "--quiet"]
        words += ["-n", str(values.predict), "--ctx", str(values.ctx), "--mem", str(mem)]
        words += ["--budget", values.budget, "--prefill", "hga", "--temp", "0"]
        code, peak, out = run_inside(
            int(_SLACK * mem),
            [sys.executable, "-c", _HGA, *words],
        )
        row: dict[str, object] = {"mem": text, "exit_code": code, "peak_share": peak / mem}
        if code == 0:
            figures = json.loads(out.splitlines()[-1])
            names = ("prompt_tokens", "decode_tps", "kv", "kv_hit_rate", "peak_rss", "tokens")
            row |= {name: figures[name] for name in names}
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "tokens"}), flush=True)
    answers = {str(row["tokens"]) for row in rows if "tokens" in row}
    print(json.dumps({"ctx": values.ctx, "same_tokens": len(answers) == 1, "rows": rows}))


if __name__ == "__main__":
    main()
