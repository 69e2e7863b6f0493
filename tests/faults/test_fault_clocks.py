"""Wall clocks that jump back and forth by decades, and files with dates that no clock would give:
durations, locks, caches and journals go by something else, and dates are only shown."""

import ast
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest

# At every look the wall clock is up to thirty years off, either way; the monotonic one is right.
WILD = """
import datetime, random, sys, time
draw, YEAR = random.Random(7), 31556952
real = time.time, time.localtime, time.gmtime, time.strftime
def now():
    return max(0.0, real[0]() + draw.uniform(-30, 30) * YEAR)
time.time, time.time_ns = now, lambda: int(now() * 1e9)
time.localtime = lambda seconds=None: real[1](now() if seconds is None else seconds)
time.gmtime = lambda seconds=None: real[2](now() if seconds is None else seconds)
time.strftime = lambda form, t=None: real[3](form, real[1](now()) if t is None else t)
class Wild(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(now(), tz)
datetime.datetime = Wild
from hga.tools.cli import main
sys.exit(main())
"""
DATES = {"1901": -2_177_452_800, "1970": 0, "2100": 4_102_444_800}


@pytest.fixture
def wild(home):
    """wild(*words, **Popen options) -> a process of `hga` whose wall clock jumps."""
    begun = []

    def start(*words, **options):
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-P", "-c", WILD, *map(str, words)]
        begun.append(subprocess.Popen(command, env=home, text=True, **{**given, **options}))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def outcome(process):
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0 and "Traceback" not in err, err
    return out, err


def tokens(text):
    return json.loads(text.splitlines()[-1])["tokens"]


def set_dates(folder, seconds):
    """Date everything in a folder so; skips what its file system cannot date."""
    for path in [folder, *folder.rglob("*")]:
        try:
            os.utime(path, (seconds, seconds))
        except (OSError, OverflowError):
            pytest.skip(f"the file system has no date {seconds}")


def test_a_session_under_a_clock_that_jumps(wild, hga, small, tmp_path):
    words = ["-n", "8", "--temp", "0", "--json", "--quiet", "--kv-dir", tmp_path]
    calm, wildly = [], []
    for text in ("hello", "and then?", "so?"):
        code, out, err = hga("run", small, "-p", text, "--session", "calm", *words)
        assert code == 0, err
        calm.append(tokens(out))
        wildly.append(tokens(outcome(wild("run", small, "-p", text, "--session", "w", *words))[0]))
        set_dates(tmp_path / "w", DATES["2100" if len(calm) % 2 else "1970"])
    assert wildly == calm
    assert hga("verify", tmp_path / "w")[0] == 0
    out, _ = outcome(wild("sessions", "list", "--kv-dir", tmp_path))
    assert {line.split()[0] for line in out.splitlines()[1:]} == {"calm", "w"}


@pytest.mark.parametrize("date", DATES)
def test_sessions_of_any_date_are_listed(hga, small, tmp_path, date):
    words = ["-p", "hello", "-n", "3", "--kv-dir", tmp_path, "--session"]
    assert hga("run", small, *words, "now")[0] == 0
    shutil.copytree(tmp_path / "now", tmp_path / "then")
    set_dates(tmp_path / "then", DATES[date])
    code, out, err = hga("sessions", "list", "--kv-dir", tmp_path)
    assert code == 0, err
    order = [line.split()[0] for line in out.splitlines()[1:]]
    assert order == (["now", "then"] if DATES[date] <= 0 else ["then", "now"])
    code, out, err = hga("sessions", "list", "--kv-dir", tmp_path, "--json")
    found = {each["name"]: each["modified"] for each in json.loads(out)["sessions"]}
    assert found["then"].startswith(date) and found["then"] != found["now"], found
    assert hga("run", small, *words, "then")[0] == 0


def test_a_date_that_no_calendar_has_is_none():
    from hga.tools.sessions import _date

    assert _date("%Y", time.gmtime, 0.0) == "1970"
    for seconds in (float(1 << 56), -float(1 << 60), 1e300):
        assert _date("%Y", time.gmtime, seconds) is None
        assert _date("%Y", time.localtime, seconds) is None


def test_a_lock_holds_whatever_the_date(wild, hga, heavy, tmp_path):
    words = ["--session", "s", "--kv-dir", tmp_path, "-n", "8"]
    first = wild("run", heavy, *words, stdin=subprocess.PIPE)
    first.stdin.write("hello\n")
    first.stdin.flush()
    assert first.stdout.read(1)
    for seconds in (DATES["1970"], DATES["2100"]):
        os.utime(tmp_path / "s" / "lock", (seconds, seconds))
        code, _, err = hga("run", heavy, "-p", "hello", *words)
        assert code == 1 and f"in use by process {first.pid}" in err, err
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert hga("run", heavy, "-p", "hello", *words)[0] == 0


def test_another_checkpoint_with_the_same_size_and_date_is_packed_anew(hga, tiny, tmp_path):
    # A clock that is put back may give a file the date of the one before it.
    folder = tiny.write_hf(tmp_path / "hf", tiny.config("llama"))
    words = ["run", folder, "-p", "hello", "-n", "8", "--temp", "0", "--json"]
    first = hga(*words)
    weights = folder / "model.safetensors"
    before = weights.stat()
    other = tiny.write_hf(tmp_path / "other", tiny.config("llama"), seed=1)
    with open(weights, "r+b") as file:
        file.write((other / "model.safetensors").read_bytes())
    os.utime(weights, ns=(before.st_mtime_ns, before.st_mtime_ns))
    after = weights.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (
        before.st_size, before.st_mtime_ns, before.st_ino
    )  # fmt: skip
    second = hga(*words)
    assert first[0] == second[0] == 0, (first[2], second[2])
    assert tokens(first[1]) != tokens(second[1])


def test_a_batch_goes_by_contents(wild, hga, small, tmp_path):
    inputs, out = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    for n in range(3):
        (inputs / f"{n}.txt").write_text(f"document {n}")
    words = ["batch", inputs, "-m", small, "-o", out, "-n", "4", "--json"]
    process = wild(*words)
    process.communicate(timeout=90)
    for n, seconds in enumerate((DATES["1970"], DATES["2100"], DATES["1901"])):
        os.utime(inputs / f"{n}.txt", (seconds, seconds))
    set_dates(out, DATES["2100"])
    found = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    statuses = [line["status"] for line in found if line["line"] == "input"]
    assert len(statuses) == 3
    done = statuses.count("done")
    again = wild(*words, "--resume")
    text, err = again.communicate(timeout=90)
    assert again.returncode in (0, 4) and "Traceback" not in err, err
    assert json.loads(text.splitlines()[-1])["done_earlier"] == done, text


def test_a_server_under_a_clock_that_jumps(wild, small):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    process = wild("serve", small, "--port", "0", "--timeout", "60")
    said = ""
    while not (found := re.search(r"listening on http://[\d.]+:(\d+)", said)):
        line = process.stderr.readline()
        assert line, said
        said += line
    body = json.dumps({"prompt": "hello", "max_tokens": 4, "temperature": 0})
    texts = set()
    with closing(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)) as connection:
        # One connection, kept alive between requests.
        for _ in range(5):
            connection.request(
                "POST", "/v1/completions", body, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200, text
            texts.add(json.loads(text)["choices"][0]["text"])
            time.sleep(0.1)
    assert len(texts) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


# Dates that are shown, or told to clients; and folders without a lock that their age lets go.
OF_THE_WALL = {
    "kvstore/lock.py", "runtime/kv_folder.py", "runtime/template_sandbox.py", "tools/demo.py",
    "tools/server/app.py", "tools/server/replies.py", "tools/sessions.py",
}  # fmt: skip


def test_nothing_else_looks_at_the_wall_clock(repo_root):
    found = set()
    for folder in ("kernels", "kvstore", "models", "runtime", "tools"):
        for path in (repo_root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    name = f"{node.value.id}.{node.attr}"
                    wall = name in ("time.time", "time.time_ns", "time.localtime", "time.gmtime")
                    if wall or name in ("time.strftime", "datetime.now", "datetime.utcnow"):
                        found.add(path.relative_to(repo_root).as_posix())
    assert found == OF_THE_WALL


def test_bars_and_boards_go_by_the_monotonic_clock(monkeypatch):
    import io

    from hga.tools.status import Status

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def never():
        raise AssertionError("the wall clock")

    monkeypatch.setattr(time, "time", never)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    status = Status(stream=stream)
    with status.bar("packing", "bytes") as report:
        for done in range(0, 101, 10):
            report(done, 100)
            time.sleep(0.02)
    with status.board() as show:
        show("1/2 a", 0.5, "5 tok/s")
    assert "packing" in stream.getvalue()
