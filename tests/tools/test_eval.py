"""Perplexity, gap and cases: conventions on a fake model, inputs that are refused."""

import json
import math

import numpy as np
import pytest

from hga.tools import cli
from hga.tools.arms import DENSE, Arm
from hga.tools.errors import UsageError
from hga.tools.losses import nll_of, perplexity
from hga.tools.retrieval import retrieval
from hga.tools.status import Status
from hga.tools.token_files import Case, load_cases, load_ids

QUIET = Status(quiet=True)


def loss(engine, session, ids, target):
    """The fake model's loss, from its formula."""
    logits = session.logits_of(ids).astype(float)
    return math.log(np.exp(logits).sum()) - logits[target]


def test_perplexity_scores_the_second_half_of_each_chunk(fake_engine):
    engine = fake_engine()
    ids = [(i * 7) % 200 for i in range(50)]
    found = perplexity(engine, ids, 16, None, "half", DENSE, QUIET)
    session = engine.sessions[0]
    session.attention = "dense"
    expected = []
    for chunk in range(3):
        window = [256, *ids[chunk * 16 + 1 : chunk * 16 + 16]]
        expected.append(
            [loss(engine, session, window[: i + 1], window[i + 1]) for i in range(8, 15)]
        )
    assert found["tokens_scored"] == 3 * 7
    assert found["nll"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert found["chunks"] == pytest.approx([np.mean(chunk) for chunk in expected], abs=1e-12)
    assert found["ppl"] == pytest.approx(math.exp(found["nll"]))


def test_all_positions_and_fewer_chunks(fake_engine):
    ids = list(range(100))
    found = perplexity(fake_engine(), ids, 20, 2, "all", DENSE, QUIET)
    assert found["tokens_scored"] == 2 * 19 and len(found["chunks"]) == 2
    routed = perplexity(fake_engine(), ids, 20, 2, "all", Arm("hga", "auto"), QUIET)
    assert routed["tokens_scored"] == 2 * 19 and routed["nll"] > found["nll"]


def test_too_short_a_text_is_refused(fake_engine):
    with pytest.raises(UsageError, match=r"10 tokens, less than one chunk of 16"):
        perplexity(fake_engine(), list(range(10)), 16, None, "half", DENSE, QUIET)


def test_ppl_command(hga_eval, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("abcdefghijklmnop" * 4)
    code, found, err = hga_eval("ppl", "-f", path, "--ctx", 16, "--chunks", 9, "-v")
    assert code == 0 and set(found) == {"ppl", "nll", "tokens_scored", "chunks"}
    assert "holds 4 chunks of 16 tokens; 9 asked" in err and "[4] " in err


def test_losses_are_float64_and_stable():
    logits = np.array([[1e4, 1e4, -1e4], [0, 0, 0]], np.float32)
    assert nll_of(logits, [0, 2]) == pytest.approx([math.log(2), math.log(3)], abs=1e-12)


def test_gap_of_dense_is_nothing_and_of_others_is_not(hga_eval, tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(60) % 300)
    words = ("gap", "--token-ids", path, "--ctx", 50, "--tail", 20)
    code, found, _ = hga_eval(*words, "--attention", "dense,hga", "--budget", "1%,64")
    assert code == 0 and (found["ctx"], found["tail"]) == (50, 20)
    rows = found["rows"]
    assert [(row["attention"], row["budget"]) for row in rows] == [
        ("dense", None), ("hga", "1%"), ("hga", "64"),
    ]  # fmt: skip
    assert rows[0]["gap"] == 0.0 and rows[1]["gap"] > 1.0 and rows[1]["gap_ci"] >= 0.0
    assert set(rows[0]) == {
        "attention", "budget", "gap", "gap_ci", "attended_mean", "bytes_per_token",
        "index_bytes_per_token", "mass_recall", "gap_segments",
    }  # fmt: skip
    assert (rows[0]["bytes_per_token"], rows[1]["index_bytes_per_token"]) == (1000, 10)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 3), int), "one-dimensional array of integers"),
        (np.zeros(100), "one-dimensional array of integers"),
        (np.full(100, 320), "token id 320; the vocabulary has 320"),
        (np.full(100, -1), "token id -1"),
        (np.arange(20), "holds 20 tokens, --ctx asks for 50"),
    ],
)
def test_token_ids_are_checked(hga_eval, tmp_path, array, said):
    path = tmp_path / "ids.npy"
    np.save(path, array)
    code, found, err = hga_eval("gap", "--token-ids", path, "--ctx", 50, "--tail", 20)
    assert code == 2 and found is None and said in err and len(err.splitlines()) == 1


def test_pickles_and_other_files_are_refused(tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UsageError, match="not a numpy file"):
        load_ids(path)
    path.write_bytes(b"hello")
    with pytest.raises(UsageError, match="not a numpy file"):
        load_ids(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError):
        load_ids(path)
    np.savez(tmp_path / "x.npz", needle_a=np.arange(100))
    with pytest.raises(UsageError):
        load_ids(tmp_path / "x.npz")


def cases_file(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"other": np.arange(3)}, "no array named needle_"),
        ({"needle_a": np.arange(100)}, "holds no answer_a"),
        ({"needle_a": np.arange(100), "answer_a": np.arange(2)}, "answer_a .* not an integer"),
        ({"needle_a": np.arange(100), "answer_a": 64}, "answer from 1 to 63"),
        ({"needle_a": np.arange(100), "answer_a": 0}, "answer from 1 to 63"),
        ({"needle_a": np.arange(64), "answer_a": 2}, "more than 64 tokens"),
    ],
)
def test_case_files_are_checked(tmp_path, arrays, said):
    with pytest.raises(UsageError, match=said):
        load_cases(cases_file(tmp_path / "c.npz", **arrays))


def test_cases_command(hga_eval, tmp_path):
    # The fake model always expects the next number, so a count up to the end is a hit.
    up = np.arange(90)
    odd = np.concatenate([np.arange(87), [5, 6, 7]])
    early = np.concatenate([[9, 9], np.arange(88)])
    path = cases_file(
        tmp_path / "c.npz",
        needle_up=up, answer_up=3, needle_odd=odd, answer_odd=3, needle_in=odd, answer_in=2,
        needle_early=early, answer_early=63,
    )  # fmt: skip
    code, found, _ = hga_eval("cases", "--cases", path, "--attention", "dense,hga", "--recall")
    assert code == 0
    costs = {"attended_mean": 12.0, "bytes_per_token": 1000, "mass_recall": 0.5}
    score = {"hits": 3, "total": 4, "missed": ["odd"]}
    assert found["rows"] == [
        {"attention": "dense", "budget": None, "index_bytes_per_token": 0, **score, **costs},
        {"attention": "hga", "budget": "auto", "index_bytes_per_token": 10, **score, **costs},
    ]
    code, _, err = hga_eval("cases", "--cases", path, "--ctx", 80)
    assert code == 2 and "90 tokens, --ctx is 80" in err


def test_the_tail_is_decoded_under_each_rule(fake_engine):
    engine = fake_engine()
    used = []
    made = engine.session

    def session():
        new = made()
        step = new.step
        new.step = lambda token: (used.append((new.attention, new.budget)), step(token))[1]
        return new

    engine.session = session
    retrieval(engine, [Case("a", list(range(70)), 1)], [DENSE, Arm("hga", "2%")], QUIET)
    assert used == [("dense", "auto")] * 63 + [("hga", "2%")] * 63


@pytest.mark.oracle
def test_demo_perplexity_is_that_of_llama_cpp(smollm2_gguf, shared_dir, tmp_path, capsys,
                                              monkeypatch):  # fmt: skip
    from hga.tools.pack import pack

    reference = json.loads(
        (shared_dir / "reference" / "smollm2-135m-instruct-q4_1.json").read_text()
    )
    text = tmp_path / "text"
    text.write_bytes((shared_dir / "texts" / "addresses.txt").read_bytes()[:40_000])
    packed = pack(smollm2_gguf, tmp_path / "demo.hga").path
    words = ["eval", "ppl", str(packed), "-f", str(text), "--ctx", "512", "--chunks", "4"]
    assert cli.main([*words, "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    losses = np.array(reference["nll"])
    assert found["tokens_scored"] == losses.size
    assert found["nll"] == pytest.approx(losses.mean(), abs=0.005)
    assert found["chunks"] == pytest.approx(losses.mean(axis=1), abs=0.02)
