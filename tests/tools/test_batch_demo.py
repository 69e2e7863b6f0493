"""`hga batch` with the demo model: killed and resumed, held to a schema, on a full disk."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hga.tools.batch.journal import JOURNAL_NAME

BAD = {
    "doc-03.png": b"\x89PNG\r\n\x1a\n\0\0",
    "doc-11.txt": b"",
    "sub/doc-20.bin": bytes(range(256)),
    "sub/doc-33.pdf": b"%PDF-1.7\nno objects",
}
SUBJECTS = ("heat pumps", "rye bread", "tide tables", "a lost umbrella", "bicycle brakes")


@pytest.fixture(scope="module")
def demo_pack(smollm2_gguf, tmp_path_factory):
    from hga.tools.pack import pack

    return pack(smollm2_gguf, tmp_path_factory.mktemp("demo") / "demo.hga").path


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """40 files, four of them bad, one of them longer than the context of the tests."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "sub").mkdir()
    for i in range(36):
        subject = SUBJECTS[i % len(SUBJECTS)]
        name = f"{'sub/' if i % 2 else ''}doc-{i:02}.{'html' if i % 5 == 0 else 'txt'}"
        text = f"Note {i}. On day {i + 1} we talked about {subject}. It costs {i * 7} euros.\n"
        (folder / name).write_text(text * (120 if i == 17 else 1 + i % 3))
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    return folder


def start(pack, docs, out, *words, **options):
    code = "import sys; from hga.tools.cli import main; sys.exit(main())"
    command = ["batch", docs, "-m", pack, "-o", out, "-n", 6, "-c", "1k", "--temp", 0, *words]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(child, timeout=180):
    out, err = child.communicate(timeout=timeout)
    assert "Traceback" not in err, err
    return child.returncode, json.loads(out.splitlines()[-1]) if out else None, err


def records(out):
    lines = (out / JOURNAL_NAME).read_bytes().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [line for line in whole if line["line"] == "input"]


def outputs(out):
    found = (path for path in out.rglob("*.md") if path.is_file())
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


def test_killed_half_way_and_resumed(demo_pack, docs, tmp_path):
    whole = tmp_path / "whole"
    code, figures, err = finish(start(demo_pack, docs, whole, "--json"))
    assert code == 4, err
    assert {failed["input"] for failed in figures["failed"]} == set(BAD)
    assert (figures["inputs"], figures["done"]) == (40, 36)
    assert figures["reduced"] == {"sub/doc-17.txt": figures["reduced"]["sub/doc-17.txt"]}
    assert figures["reused_tokens"] > 35 * 20

    out = tmp_path / "out"
    child = start(demo_pack, docs, out)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / JOURNAL_NAME).exists() and len(records(out)) >= 15:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    done = {record["input"] for record in records(out) if record["status"] == "done"}
    assert 10 <= len(done) < 36
    kept = {name: (out / name).stat().st_mtime_ns for name in outputs(out)}
    assert done <= {name.removesuffix(".md") for name in kept}
    # What the kill may leave at most: one output whose line had not been written.
    assert len(kept) - len(done) <= 1

    code, figures, err = finish(start(demo_pack, docs, out, "--resume", "--json"))
    assert code == 4, err
    assert (figures["done_earlier"], figures["done"]) == (len(done), 36 - len(done))
    # Answers do not depend on where the run was cut, and what was done was not touched.
    assert outputs(out) == outputs(whole)
    assert all((out / f"{name}.md").stat().st_mtime_ns == kept[f"{name}.md"] for name in done)
    answered = [record["input"] for record in records(out) if record["status"] == "done"]
    assert len(answered) == len(set(answered)) == 36
    assert not (out / ".unfinished").exists()


SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string", "maxLength": 24},
        "euros": {"type": "integer", "minimum": 0, "maximum": 9999},
    },
    "required": ["subject", "euros"],
    "additionalProperties": False,
}


def test_answers_are_json_of_the_schema(demo_pack, docs, tmp_path):
    few = [docs / "doc-02.txt", docs / "sub" / "doc-01.txt", docs / "doc-11.txt"]
    code = "import sys; from hga.tools.cli import main; sys.exit(main())"
    words = ["batch", *few, "-m", demo_pack, "-o", tmp_path / "out", "--out", "jsonl", "-n", 64,
             "--schema", json.dumps(SCHEMA)]  # fmt: skip
    run = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["input"] for row in rows] == ["doc-02.txt", "doc-01.txt", "doc-11.txt"]
    for row in rows[:2]:
        assert list(row["output"]) == ["subject", "euros"]
        assert isinstance(row["output"]["euros"], int)
    assert rows[2]["error"] == "no text in it"
    # Too short for the JSON to be complete: a failure, not half a value.
    words[words.index(64)] = 3
    run = [sys.executable, "-c", code, *map(str, words), "--overwrite"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4 and "reached 3 tokens before its JSON was complete" in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of files are POSIX")
def test_a_full_disk_is_exit_3_and_loses_nothing(demo_pack, docs, tmp_path):
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    out = tmp_path / "out"
    child = start(demo_pack, docs, out, "--json", preexec_fn=small_files)
    code, figures, err = finish(child)
    assert code == 3 and "bytes were to be added" in err and "--resume" in err
    assert err.count("hga: error:") == 1
    done = [record["input"] for record in records(out) if record["status"] == "done"]
    assert 0 < len(done) < 36 and figures["stop"] == "failed"
    assert (out / JOURNAL_NAME).read_bytes().endswith(b"\n")
    code, figures, err = finish(start(demo_pack, docs, out, "--resume", "--json"))
    assert code == 4 and figures["done_earlier"] == len(done), err


def test_ctrl_c_on_a_batch(demo_pack, docs, tmp_path):
    out = tmp_path / "out"
    child = start(demo_pack, docs, out, "--json")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / JOURNAL_NAME).exists() and len(records(out)) >= 6:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    code, figures, err = finish(child, timeout=60)
    assert code == 130 and "with --resume goes on" in err
    assert figures["stop"] == "interrupt" and figures["left"] > 0
    settled = figures["done"] + len(figures["failed"])
    assert settled == len(records(out)) == 40 - figures["left"]
