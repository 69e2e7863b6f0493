"""A model file that is cut, rewritten or replaced while it is read: an error, never a signal and
never other tokens."""

import os
import shutil
import signal
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the handler knows Linux's signal")

# The machine seems to have no memory, so that weights are mapped and not read.
MAPPED = """
import os, shutil, sys
from pathlib import Path
from types import SimpleNamespace
import psutil
if sys.argv[3] == "mapped":
    psutil.virtual_memory = lambda: SimpleNamespace(available=0, total=1 << 34, used=0)
from hga.kernels.cpu import bus_guard
if sys.argv[4] == "unguarded":
    bus_guard.install = lambda: False
from hga.runtime.container import ContainerError
from hga.runtime.engine import Engine
from hga.runtime.options import Options
path, how = Path(sys.argv[1]), sys.argv[2]
ids = [(7 * i) % 300 + 3 for i in range(200)]

def hurt():
    if how == "cut":
        os.truncate(path, 8192)
    elif how == "emptied":
        os.truncate(path, 0)
    elif how == "rewritten":
        data = bytearray(path.read_bytes())
        data[8192:] = bytes(len(data) - 8192)
        with open(path, "r+b") as file:
            file.write(data)
    elif how == "replaced":
        path.with_suffix(".new").write_bytes(b"something else")
        os.replace(path.with_suffix(".new"), path)
    elif how == "removed":
        path.unlink()

cache = Path(os.environ["XDG_CACHE_HOME"]) / "hga"
with Engine.open(path, Options(threads=2, attention="dense", ctx=512), cache) as engine:
    print(engine.model.is_mapped)
    with engine.session() as calm, engine.session() as session:
        calm.feed(ids)
        expected = [calm.step(token).argmax() for token in ids[:20]]
        if sys.argv[5] == "prefill":
            hurt()
        try:
            session.feed(ids)
            if sys.argv[5] == "decode":
                session.step(ids[0])
                hurt()
                rest = [session.step(token).argmax() for token in ids[1:20]]
                print("same" if rest == expected[1:] else "other")
            else:
                rest = [session.step(token).argmax() for token in ids[:20]]
                print("same" if rest == expected else "other")
        except ContainerError as error:
            print(error)
"""


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("model", ["small", "experts"])
@pytest.mark.parametrize(
    "how",
    ["cut", *(pytest.param(name, marks=pytest.mark.slow) for name in ("emptied", "rewritten"))],
)
def test_a_mapped_model_that_changes_is_refused(request, python, tmp_path, how, model, phase):
    path = shutil.copy(request.getfixturevalue(model), tmp_path / "m.hga")
    code, out, err = python(MAPPED, path, how, "mapped", "guarded", phase)
    assert code == 0, (code, err)
    is_mapped, said = out.splitlines()
    assert is_mapped == "True"
    assert said.startswith(str(path)) and ("has" in said or "was written to" in said), said


def test_experts_of_a_model_in_memory_are_mapped_and_looked_after(experts, python, tmp_path):
    path = shutil.copy(experts, tmp_path / "m.hga")
    code, out, err = python(MAPPED, path, "cut", "in-memory", "guarded", "decode")
    assert code == 0 and out.splitlines()[0] == "True", (code, out, err)
    assert "when it was opened" in out.splitlines()[1]


def test_without_the_guard_the_signal_ends_the_process(small, python, tmp_path):
    # What the other tests are worth.
    path = shutil.copy(small, tmp_path / "m.hga")
    code, _, _ = python(MAPPED, path, "cut", "mapped", "unguarded", "decode")
    assert code == -signal.SIGBUS


@pytest.mark.parametrize("how", ["cut", "emptied", "rewritten", "replaced", "removed"])
def test_a_model_in_memory_answers_on(small, python, tmp_path, how):
    path = shutil.copy(small, tmp_path / "m.hga")
    code, out, err = python(MAPPED, path, how, "in-memory", "guarded", "decode")
    assert (code, out) == (0, "False\nsame\n"), err


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_mapped_model_whose_name_goes_is_still_there(small, python, tmp_path, how):
    path = shutil.copy(small, tmp_path / "m.hga")
    code, out, err = python(MAPPED, path, how, "mapped", "guarded", "decode")
    assert (code, out) == (0, "True\nsame\n"), err


def test_a_source_that_is_cut_while_it_is_packed(tiny_hf, tmp_path, monkeypatch):
    from hga.tools.pack import pack
    from hga.tools.sources import SourceError

    folder = tmp_path / "source"
    shutil.copytree(tiny_hf("llama"), folder)
    weights = folder / "model.safetensors"

    def cut(done: int, total: int) -> None:
        if done > total // 3:
            os.truncate(weights, weights.stat().st_size // 2)

    with pytest.raises(SourceError, match=r"ended at|changed while"):
        pack(folder, tmp_path / "o.hga", progress=cut)
    assert not (tmp_path / "o.hga").exists()
