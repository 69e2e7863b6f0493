"""The gap over segments and lengths: paired differences, shared prefills, intervals, pictures."""

import json
import math

import numpy as np
import pytest

from hga.tools import plots
from hga.tools.arms import DENSE, Arm, Costs
from hga.tools.cli import main
from hga.tools.errors import UsageError
from hga.tools.gap import GapPlan, loss_gaps, segment_starts
from hga.tools.intervals import over_batches, over_segments, student_t
from hga.tools.status import Status

QUIET = Status(quiet=True)
HGA = Arm("hga", "64")


def test_one_prefill_per_segment_serves_lengths_and_arms(fake_engine):
    engine = fake_engine()
    ids = [(i * 7) % 200 for i in range(120)]
    found = loss_gaps(engine, ids, GapPlan((20, 40), 8, 3), [HGA, DENSE], QUIET)
    session = engine.sessions[0]
    # The longer length goes on from the prefix of the shorter one.
    assert [len(fed) for fed in session.fed] == [12, 20] * 3
    assert [fed[0] for fed in session.fed[::2]] == [ids[0], ids[40], ids[80]]
    short, long = found["depths"]
    assert (short["ctx"], long["ctx"], long["segments"]) == (20, 40, 3)
    for depth in (short, long):
        hga, dense = depth["rows"]
        assert dense["gap"] == dense["gap_ci"] == 0.0 and len(hga["gap_segments"]) == 3
        assert hga["gap"] == pytest.approx(np.mean(hga["gap_segments"])) and hga["gap"]
        assert hga["gap_ci"] == pytest.approx(over_segments(hga["gap_segments"]))


def test_every_segment_begins_as_the_text_does(fake_engine):
    engine = fake_engine()
    ids = [256, *range(99)]
    loss_gaps(engine, ids, GapPlan((20,), 8, 2), [DENSE], QUIET)
    # BOS is in the timeline already.
    assert engine.sessions[0].fed == [[256, *range(11)], [*range(80, 91)]]
    assert engine.sessions[0].tokens == [256, *range(80, 91)]


@pytest.mark.parametrize(
    ("n_tokens", "segments", "said"),
    [(39, 1, "holds 39 tokens, --ctx asks for 40"), (60, 4, "60 tokens hold 3 of --ctx 40")],
)
def test_segments_must_fit(n_tokens, segments, said):
    with pytest.raises(UsageError, match=said):
        segment_starts(n_tokens, GapPlan((40,), 8, segments))


def test_intervals():
    assert student_t(1) == 12.706 and student_t(40) == pytest.approx(2.0211, abs=1e-3)
    assert over_segments([1.0, 3.0]) == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2))
    rng = np.random.default_rng(0)
    noise = rng.normal(size=4096)
    # A series in which every value comes 64 times tells no more than its distinct values.
    assert over_batches(noise) == pytest.approx(2 / 64, rel=0.5)
    assert over_batches(np.repeat(noise[:64], 64)) > 4 * over_batches(noise)
    for n in (2, 3, 5, 31, 33):
        assert over_batches(rng.normal(size=n)) > 0


def test_costs_are_means_per_decoded_token(fake_engine):
    session = fake_engine().session()
    costs = Costs()
    assert costs.row()["bytes_per_token"] is None
    for n in (1, 3):
        session.reset_stats()
        for token in range(n):
            session.step(token)
        session.stats.attended_mean = 10.0 * n
        costs.add(session.stats)
    assert costs.row() == {
        "attended_mean": 25.0, "bytes_per_token": 1000, "index_bytes_per_token": 10,
        "mass_recall": None,
    }  # fmt: skip


def gap_words(tmp_path, *more):
    path = tmp_path / "ids.npy"
    np.save(path, np.arange(300) % 300)
    return ("gap", "--token-ids", path, "--tail", 20, *more)


def test_table_and_picture(hga_eval, tmp_path):
    picture = tmp_path / "gap.png"
    words = gap_words(
        tmp_path, "--ctx", "100,50", "--segments", 3, "--budget", "1%,64", "--plot", picture,
        "--attention", "hga,dense",
    )  # fmt: skip
    code, found, err = hga_eval(*words)
    assert code == 0 and [depth["ctx"] for depth in found["depths"]] == [50, 100]
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = err.splitlines()[-7:]
    assert table[0].split()[:4] == ["ctx", "attention", "budget", "gap"] and "±" in table[1]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--ctx", "50", "--plot", "x.gif"), "expected a name ending in .png"),
        (("--ctx", "50", "--plot", "missing/x.png"), "there is no folder missing"),
        (("--ctx", "50,20"), "--tail 20 does not lie between 2 and --ctx 20"),
        (("--ctx", "50", "--segments", "99"), "whose tails of 20 do not overlap"),
        (("--ctx", "50", "--segments", "0"), "expected a whole number from 1"),
        (("--ctx", "50", "--attention", "hga,nonsense"), "unknown attention 'nonsense'"),
        ((), "--ctx LIST is needed"),
    ],
)
def test_refusals(hga_eval, tmp_path, more, said):
    code, found, err = hga_eval(*gap_words(tmp_path, *more))
    assert code == 2 and found is None and said in err and len(err.splitlines()) == 1


def test_missing_matplotlib_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'hga\[plot\]'"):
        plots.check(tmp_path / "x.png")
    plots.check(None)


def test_int8_is_compared_with_full_width(smollm2_gguf, tmp_path, capsys):
    from hga.tools.pack import pack

    model = pack(smollm2_gguf, tmp_path / "demo.hga").path
    text = tmp_path / "text.txt"
    text.write_text("The whale is the largest animal that the sea holds. " * 40)
    words = ["eval", "gap", str(model), "-f", str(text), "--ctx", "100", "--tail", "20"]
    words += ["--segments", "2", "--attention", "dense", "--quiet"]
    found = {}
    for kv_type in ("bf16", "q8"):
        assert main([*words, "--kv-type", kv_type]) == 0
        found[kv_type] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found[kv_type]["kv_type"] == kv_type
    assert found["q8"]["dense_nll"] == found["bf16"]["dense_nll"]
    full, half = (found[kv_type]["rows"][0] for kv_type in ("bf16", "q8"))
    assert full["gap"] == 0 and 0 < abs(half["gap"]) < 0.05
    assert half["bytes_per_token"] == pytest.approx(full["bytes_per_token"] / 2)


def test_a_routed_prompt_is_compared_with_an_exact_one(hga_eval, tmp_path):
    words = gap_words(tmp_path, "--ctx", 100, "--segments", 2, "--attention", "dense,hga")
    code, exact, _ = hga_eval(*words)
    assert code == 0 and exact["prefill"] == "exact" and exact["rows"][0]["gap"] == 0
    code, routed, _ = hga_eval(*words, "--prefill", "hga")
    assert code == 0 and routed["prefill"] == "hga"
    # Dense decoding is an arm of its own there.
    assert [row["attention"] for row in routed["rows"]] == ["dense", "hga"]
    assert routed["dense_nll"] == exact["dense_nll"]
    code, _, err = hga_eval(*words, "--prefill", "some")
    assert code == 2 and len(err.splitlines()) == 1
