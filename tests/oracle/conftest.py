"""Packed checkpoints, opened engines and their figures, for comparison with other programs."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hga.runtime.engine import Engine
from hga.runtime.options import Options
from hga.tools import cli
from hga.tools.losses import nll_of
from hga.tools.pack import pack


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model says of the tokens that follow: loss in nats and most likely token, [n]."""

    nll: np.ndarray
    top1: np.ndarray


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """packed(source) -> packed file with every value of the source, made once per run."""
    made: dict[Path, Path] = {}

    def make(source: Path) -> Path:
        if source not in made:
            made[source] = tmp_path_factory.mktemp("packed") / f"{source.stem}.hga"
            assert pack(source, made[source]).changed == ()
        return made[source]

    return make


@pytest.fixture(scope="session")
def open_engine(packed: Callable[[Path], Path], kernel_cache: Path) -> Callable[..., Engine]:
    """open_engine(source, **options) -> an Engine to be closed, dense unless asked otherwise."""

    def opened(source: Path, **options: Any) -> Engine:
        options = {"attention": "dense", **options}
        return Engine.open(packed(source), Options(**options), cache_dir=kernel_cache)

    return opened


@pytest.fixture(scope="session")
def score() -> Callable[..., Scores]:
    """score(engine, ids, first) -> Scores of ids[first + 1:], from an empty context: positions
    before `first` as a prompt, the others with their logits."""

    def scored(engine: Engine, ids: Sequence[int], first: int) -> Scores:
        nll, top1, done = [], [], first + 1
        with engine.session() as session:
            if first:
                session.feed(ids[:first])
            for logits in session.score(ids[first:-1]):
                nll.append(nll_of(logits, ids[done : done + len(logits)]))
                top1.append(logits.argmax(1))
                done += len(logits)
        return Scores(np.concatenate(nll), np.concatenate(top1))

    return scored


@pytest.fixture
def hga_ppl(
    packed: Callable[[Path], Path],
    kernel_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., dict[str, Any]]:
    """hga_ppl(source, text file, *flags) -> what `hga eval ppl --attention dense` prints."""
    monkeypatch.setattr("hga.tools.run.cache_folder", lambda: kernel_cache)

    def go(source: Path, text: Path, *flags: str) -> dict[str, Any]:
        words = ["eval", "ppl", "-m", packed(source), "--file", text, "--attention", "dense"]
        code = cli.main([str(word) for word in (*words, *flags)])
        out, err = capsys.readouterr()
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return go
