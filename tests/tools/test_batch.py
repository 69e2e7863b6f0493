"""`hga batch` as a command over a small engine: outputs, exit codes, resuming, reports."""

import contextlib
import json
import os
import signal

import pytest

from hga.tools import cli
from hga.tools.batch import executor
from hga.tools.batch.journal import JOURNAL_NAME


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.md", "sub/a.txt"):
        (folder / name).write_text(f"about {name}")
    return folder


@pytest.fixture
def batch(fake_engine, say, monkeypatch, capsys, own_folders, tmp_path):
    """batch(*words, replies=...) -> (exit code, JSON or None, stderr); .session: the last one."""

    def go(*words, replies=None, out=None, **options):
        engine = fake_engine(replies or [say(f"reply {i}") for i in range(50)], ctx=2000, **options)
        go.engine = engine

        @contextlib.contextmanager
        def opened(*given):
            yield engine

        monkeypatch.setattr(executor, "open_engine", opened)
        code = cli.main(["batch", *map(str, words), "-o", str(out or go.out)])
        printed, err = capsys.readouterr()
        go.session = engine.sessions[0] if engine.sessions else None
        return code, json.loads(printed) if printed else None, err

    go.out = tmp_path / "out"
    return go


def files(out):
    return {
        path.relative_to(out).as_posix(): path.read_text()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != JOURNAL_NAME
    }


def journal(out):
    return [json.loads(line) for line in (out / JOURNAL_NAME).read_text().splitlines()]


def test_one_output_for_each_file_and_a_report(batch, docs):
    code, figures, err = batch(docs, "--json")
    assert not (batch.out / ".unfinished").exists()
    assert code == 0 and files(batch.out) == {
        "a.txt.md": "reply 0\n", "b.md.md": "reply 1\n", "sub/a.txt.md": "reply 2\n",
    }  # fmt: skip
    assert "3 inputs: 3 done, in 0:00" in err and "2 of them" not in err
    prefix = len(batch.session.fed[0])
    assert figures["done"] == 3 and figures["reused_tokens"] == 2 * prefix > 0
    assert figures["prompt_tokens"] == 3 * prefix + sum(map(len, batch.session.fed[1:]))
    assert figures["failed"] == [] and figures["stop"] == "done" and figures["left"] == 0
    assert [line["line"] for line in journal(batch.out)] == ["settings", "input", "input", "input"]


def test_bad_files_are_reported_and_the_rest_is_done(batch, docs):
    (docs / "bad.bin").write_bytes(b"\0\1")
    (docs / "empty.md").write_text("")
    (docs / "gone").symlink_to("nowhere")
    (docs / "latin.txt").write_bytes("Le café est agréable, à côté de la forêt.".encode("latin-1"))
    (docs / "z.png").write_bytes(b"\x89PNG....")
    code, figures, err = batch(docs, "--json")
    assert code == 4 and len(files(batch.out)) == 4
    assert figures["failed"] == [
        {"input": "gone", "reason": "a link that leads nowhere"},
        {"input": "bad.bin", "reason": "binary file: a zero byte at offset 0"},
        {"input": "empty.md", "reason": "no text in it"},
        {"input": "z.png", "reason": "binary file: PNG image"},
    ]
    assert "8 inputs: 4 done, 4 failed" in err and "  z.png: binary file: PNG image" in err
    assert "latin.txt: read as cp1252" in err


def test_a_document_that_cannot_be_answered_does_not_stop_the_others(batch, docs, say):
    (docs / "b.md").write_text("long " * 1000)
    code, figures, _ = batch(docs, "--json", "--long", "fail", "-n", 100)
    assert code == 4 and figures["done"] == 2
    (failed,) = figures["failed"]
    assert failed["input"] == "b.md"
    assert "5,000 tokens, and the context of 2,000" in failed["reason"]
    code, figures, err = batch(docs, "--json", "-n", 100, "--overwrite")
    assert code == 0 and figures["reduced"]["b.md"] >= 3
    assert f"b.md: {figures['reduced']['b.md']} parts" in err


def test_a_cut_reply_is_said(batch, docs, say):
    code, figures, err = batch(docs, "--json", "-n", 3)
    assert code == 0 and figures["cut"] == ["a.txt", "b.md", "sub/a.txt"]
    assert "cut where the reply reached -n:" in err


@pytest.mark.parametrize("form", ["md", "jsonl"])
def test_all_answers_in_one_file(batch, docs, say, form):
    (docs / "bad.bin").write_bytes(b"\0\1")
    assert batch(docs, "--out", form)[0] == 4
    name = f"results.{form}"
    (made,) = files(batch.out).items()
    assert made[0] == name
    if form == "md":
        assert made[1].startswith("## a.txt\n\nreply 0\n\n## b.md\n\nreply 1\n\n## bad.bin")
    else:
        rows = [json.loads(line) for line in made[1].splitlines()]
        assert [row["input"] for row in rows] == ["a.txt", "b.md", "bad.bin", "sub/a.txt"]
        assert rows[0]["output"] == "reply 0" and "zero byte" in rows[2]["error"]
    # Changed inputs take their old place.
    (docs / "a.txt").write_text("something else")
    assert batch(docs, "--out", form, "--resume", replies=[say("once more")])[0] == 4
    again = files(batch.out)[name]
    assert "reply 0" not in again and again.index("once more") < again.index("reply 1")


def test_a_batch_is_not_begun_over_another_one(batch, docs):
    batch(docs)
    before = files(batch.out)
    code, _, err = batch(docs)
    assert code == 2 and len(err.splitlines()) == 1 and "--resume goes on" in err
    assert files(batch.out) == before and batch.session is None
    assert batch(docs, "--overwrite")[0] == 0
    (batch.out / JOURNAL_NAME).unlink()
    code, _, err = batch(docs)
    assert code == 2 and "exists and no journal says" in err
    assert batch(docs, "--overwrite")[0] == 0
    code, _, err = batch(docs, "--overwrite", "--resume")
    assert code == 2 and "exclude each other" in err


def test_resume_does_what_is_left_changed_or_gone(batch, docs, say):
    assert batch(docs)[0] == 0
    code, figures, err = batch(docs, "--resume", "--json", replies=[say("never")])
    assert (code, figures["done"], figures["done_earlier"]) == (0, 0, 3)
    assert not batch.session.fed and "3 inputs: 0 done, 3 done earlier" in err
    (docs / "new.txt").write_text("new")
    (docs / "b.md").write_text("changed")
    (batch.out / "sub" / "a.txt.md").unlink()
    replies = [say("again b"), say("first new"), say("again a")]
    code, figures, err = batch(docs, "--resume", "--json", replies=replies)
    assert (code, figures["done"], figures["done_earlier"]) == (0, 3, 1)
    assert figures["redone"] == {
        "b.md": "the file has changed", "sub/a.txt": "its output is gone",
    }  # fmt: skip
    assert files(batch.out) == {
        "a.txt.md": "reply 0\n", "b.md.md": "again b\n", "new.txt.md": "first new\n",
        "sub/a.txt.md": "again a\n",
    }  # fmt: skip
    assert "b.md: the file has changed" in err


def test_resume_with_other_settings_says_which_and_does_it_again(batch, docs, tmp_path):
    batch(docs)
    prompt = tmp_path / "prompt"
    prompt.write_text("Count the words.")
    for words, names in (
        (("-n", 9), "predict"),
        (("--temp", 0.5), "temperature"),
        (("--task", prompt), "after, before, lead"),
    ):
        _, figures, _ = batch(docs, "--resume", "--json", *words)
        assert figures["redone"]["a.txt"].startswith("other settings (")
        assert names.split(", ")[0] in figures["redone"]["a.txt"]
    _, figures, _ = batch(docs, "--resume", "--json", "--task", prompt)
    assert figures["done_earlier"] == 3


def test_failed_inputs_are_tried_again_and_stale_outputs_go(batch, docs):
    (docs / "c.txt").write_bytes(b"\0")
    assert batch(docs)[0] == 4
    (docs / "c.txt").write_text("now text")
    (docs / "b.md").write_bytes(b"now \0 binary")
    code, figures, _ = batch(docs, "--resume", "--json")
    assert code == 4 and figures["done"] == 1
    assert [failed["input"] for failed in figures["failed"]] == ["b.md"]
    assert sorted(files(batch.out)) == ["a.txt.md", "c.txt.md", "sub/a.txt.md"]


def test_ctrl_c_keeps_what_is_done(batch, docs, fake_engine, monkeypatch, say):
    made = fake_engine.session

    def session(self, name=None):
        new, count = made(self, name), [0]

        def press(token):
            count[0] += token == ord("!")
            if count[0] == 1:
                count[0] += 1
                os.kill(os.getpid(), signal.SIGINT)

        new.on_token = press
        return new

    monkeypatch.setattr(fake_engine, "session", session)
    before = signal.getsignal(signal.SIGINT)
    replies = [say("fine"), say("stop! here and more"), say("never")]
    code, figures, err = batch(docs, "--json", replies=replies)
    assert code == 130 and files(batch.out) == {"a.txt.md": "fine\n"}
    assert (figures["stop"], figures["done"], figures["left"]) == ("interrupt", 1, 2)
    assert "1 of 3 inputs are done; the same command with --resume goes on" in err
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(fake_engine, "session", made)
    code, figures, _ = batch(docs, "--resume", "--json")
    assert (code, figures["done"], figures["done_earlier"]) == (0, 2, 1)


def test_what_is_wrong_with_the_command_line(batch, docs, tmp_path, capsys, own_folders):
    assert cli.main(["batch", str(docs)]) == 2 and "-o OUTDIR is missing" in capsys.readouterr().err
    assert cli.main(["batch", "-o", "x"]) == 2 and "DIR_OR_FILES" in capsys.readouterr().err
    code, _, err = batch(tmp_path / "absent")
    assert code == 2 and "no file or folder" in err and not batch.out.exists()
    code, _, err = batch(docs, out=docs / "a.txt")
    assert code == 2 and "not a folder" in err
    code, _, err = batch(docs, "--task", "absent")
    assert code == 2 and "no task 'absent'" in err


def test_quiet_leaves_the_figures_alone(batch, docs):
    code, figures, err = batch(docs, "--quiet", "--json")
    assert code == 0 and err == "" and figures["done"] == 3


def test_the_output_folder_may_lie_within_the_inputs(batch, docs):
    code, figures, err = batch(docs, "--json", out=docs / "summaries")
    assert code == 0 and figures["inputs"] == 3
    code, figures, err = batch(docs, "--json", "--resume", out=docs / "summaries")
    assert figures["inputs"] == 3 and "left out, the output folder: summaries" in err
