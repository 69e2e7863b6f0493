"""Workers on a cluster: what becomes of jobs when workers die, then a real Ray cluster of two nodes
(where Ray is installed: `make setup-cluster`)."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from hga.tools.batch.cluster import ClusterError, ClusterExecutor
from hga.tools.batch.executor import Job
from hga.tools.batch.inputs import Input
from hga.tools.batch.journal import JOURNAL_NAME
from hga.tools.batch.worker import Answer, AnswerError
from hga.tools.interrupt import Interrupt
from hga.tools.status import Status

SETTINGS = {"model": "m", "ctx": 100}


class Died(Exception):
    """The actor died."""


class FakeRay:
    """Calls are answered in the order they were made, one a wait; exceptions are raised by get."""

    exceptions = SimpleNamespace(RayError=Exception, RayActorError=Died)

    def __init__(self):
        self.pending = {}
        self.results = {}

    def call(self, result):
        reference = f"ref-{len(self.results)}"
        self.results[reference] = result
        return reference

    def wait(self, references, timeout):
        assert references, "nothing to wait for"
        return sorted(references, key=lambda name: int(name[4:]))[:1], []

    def get(self, reference):
        found = self.results[reference]
        if isinstance(found, Exception):
            raise found
        return found


class FakeWorker:
    """An actor: `opens` and `answers` script what its calls return; the last one repeats."""

    def __init__(self, ray, answers=(), opens=(SETTINGS,)):
        self.asked = []
        self._opens, self._answers = list(opens), list(answers)

        def opened():
            return ray.call(self._opens.pop(0) if len(self._opens) > 1 else self._opens[0])

        def answered(text):
            self.asked.append(text)
            return ray.call(self._answers.pop(0) if self._answers else Answer(text=f"re {text}"))

        self.open = SimpleNamespace(remote=opened)
        self.answer = SimpleNamespace(remote=answered)


@pytest.fixture
def answer_all(tmp_path):
    """answer_all(ray, workers, n) -> outcomes of n jobs by name."""

    def go(ray, workers, n=6, stop=None):
        executor = ClusterExecutor(ray, workers, Status(quiet=True))
        assert executor.settings() == SETTINGS
        jobs = [Job(Input(tmp_path, f"{i}", 1), "", "", f"text {i}", None) for i in range(n)]
        found = executor.run(iter(jobs), lambda job, share: None, stop or Interrupt())
        settled = [(job.input.name, outcome) for job, outcome in found]
        assert len(settled) == len(dict(settled)), "an input was settled twice"
        return dict(settled)

    return go


def texts(outcomes):
    return {name: outcome.text for name, outcome in sorted(outcomes.items())}


def test_jobs_are_shared_among_workers(answer_all):
    ray = FakeRay()
    workers = [FakeWorker(ray), FakeWorker(ray)]
    assert texts(answer_all(ray, workers)) == {f"{i}": f"re text {i}" for i in range(6)}
    assert all(len(worker.asked) >= 2 for worker in workers)


def test_a_job_whose_worker_dies_goes_to_another(answer_all):
    ray = FakeRay()
    workers = [FakeWorker(ray, [Answer(text="ok"), Died("killed")]), FakeWorker(ray)]
    outcomes = answer_all(ray, workers)
    assert len(outcomes) == 6 and all(isinstance(found, Answer) for found in outcomes.values())


def test_a_document_that_kills_workers_is_a_failure_at_last(answer_all):
    ray = FakeRay()
    outcomes = answer_all(ray, [FakeWorker(ray, [Died("out of memory\ndetails")] * 3)], n=2)
    assert isinstance(outcomes["0"], AnswerError) and outcomes["1"].text == "re text 1"
    assert str(outcomes["0"]) == "its worker died 3 times: out of memory"


def test_a_refused_document_is_a_failure(answer_all):
    ray = FakeRay()
    outcomes = answer_all(ray, [FakeWorker(ray, ["the model gave no text"])], n=2)
    assert str(outcomes["0"]) == "the model gave no text" and outcomes["1"].text == "re text 1"


def test_a_worker_with_another_model_is_not_used(answer_all):
    ray = FakeRay()
    other = FakeWorker(ray, opens=[SETTINGS | {"model": "other"}])
    assert len(answer_all(ray, [FakeWorker(ray), other])) == 6 and not other.asked


def test_workers_that_cannot_open_the_model_are_named():
    ray = FakeRay()
    workers = [FakeWorker(ray, opens=["no model 'x'"]), FakeWorker(ray, opens=[Died("gone")])]
    with pytest.raises(ClusterError, match="no worker of the cluster can answer: gone"):
        ClusterExecutor(ray, workers, Status(quiet=True)).settings()


def test_a_worker_that_never_comes_back_ends_the_run(answer_all):
    ray = FakeRay()
    worker = FakeWorker(ray, [Died("node lost")], opens=[SETTINGS, *[Died("no node")] * 5])
    with pytest.raises(ClusterError, match="can answer: no node"):
        answer_all(ray, [worker])


def test_an_interrupt_ends_the_run(answer_all):
    stop = Interrupt()
    stop.requested = True
    ray = FakeRay()
    assert answer_all(ray, [FakeWorker(ray)], stop=stop) == {}


def hga(*words):
    code = "import sys; from hga.tools.cli import main; sys.exit(main())"
    return [sys.executable, "-c", code, *map(str, words)]


def test_without_ray_the_error_names_the_command(tmp_path, monkeypatch):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('hidden by the test')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    command = hga("batch", tmp_path / "a.txt", "-o", tmp_path / "out", "--ray", "auto")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "pip install 'hga[cluster]'" in done.stderr


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one processor each."""
    pytest.importorskip("ray", reason="Ray is not installed (make setup-cluster)")
    from ray.cluster_utils import Cluster

    # Ray ends this process by a handler of its own, which it leaves behind.
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    made = Cluster()
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
        yield made
    finally:
        made.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def demo_pack(smollm2_gguf, tmp_path_factory):
    from hga.tools.pack import pack

    return pack(smollm2_gguf, tmp_path_factory.mktemp("demo") / "demo.hga").path


def settled(out):
    path = out / JOURNAL_NAME
    lines = path.read_text().splitlines() if path.exists() else []
    return [each for each in map(json.loads, lines) if each["line"] == "input"]


def outputs(out):
    return {path.name: path.read_text() for path in out.glob("*.md")}


def remote_workers():
    """Processes of ours that answer documents."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::RemoteWorker"):
                found.append(process.pid)
        except (psutil.NoSuchProcess, IndexError):
            continue
    return found


def test_a_killed_worker_costs_no_file_and_repeats_none(cluster, demo_pack, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for i in range(12):
        (docs / f"{i:02}.txt").write_text(f"Day {i}: the heat pump took {i * 3} kWh.\n" * 40)
    (docs / "bad.bin").write_bytes(b"\0")
    words = ("batch", docs, "-m", demo_pack, "-t", 1, "-n", 12, "-c", "2k", "--temp", 0, "--json")
    out = tmp_path / "out"
    child = subprocess.Popen(
        hga(*words, "-o", out, "--ray", cluster.address),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(settled(out)) < 3 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = remote_workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    printed, err = child.communicate(timeout=180)
    assert child.returncode == 4 and "Traceback" not in err, err
    figures = json.loads(printed.splitlines()[-1])
    assert figures["done"] == 12
    assert [failed["input"] for failed in figures["failed"]] == ["bad.bin"]
    names = [record["input"] for record in settled(out)]
    assert sorted(names) == sorted({*(f"{i:02}.txt" for i in range(12)), "bad.bin"})
    # The answers are those of this machine alone.
    alone = tmp_path / "alone"
    done = subprocess.run(hga(*words, "-o", alone), capture_output=True, text=True, timeout=180)
    assert done.returncode == 4, done.stderr
    assert outputs(out) == outputs(alone) and len(outputs(out)) == 12


def test_an_address_without_a_cluster(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (make setup-cluster)")
    (tmp_path / "a.txt").write_text("text")
    command = hga("batch", tmp_path / "a.txt", "-o", tmp_path / "out", "--ray", "127.0.0.1:9")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "--ray 127.0.0.1:9: no cluster: Connection refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1
