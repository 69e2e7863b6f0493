"""Hostile files, through the command line: always exit code 5 or 2 and one line, within bounds of
time and memory, and nothing in them is run."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

# Beyond what the loaded package takes. Half of it is what the largest metadata becomes as objects.
MOST_BYTES = 320 << 20
# The cap on a template's rendering is 5 s, twice what a loaded machine may need of it.
MOST_SECONDS = 20.0


class Refusals:
    """Commands that have to refuse what they are given; `complaints` collects those that did not,
    so that a run tells of all."""

    def __init__(self, box: object) -> None:
        self._box = box
        self.complaints: list[str] = []
        self.n = 0

    def expect(self, name: str, argv: Sequence[object], given: bytes | Path = b"") -> None:
        """Run `hga` and look at how it refused."""
        found = self._box.run(argv, given, seconds=MOST_SECONDS)
        self.n += 1
        wrong = []
        if found.code not in (2, 5):
            wrong.append(f"exit code {found.code}")
        self._judge(name, argv, found, wrong)

    def take_or_refuse(self, name: str, argv: Sequence[object]) -> bool:
        """Run `hga`; whether it took what it was given, where it may."""
        found = self._box.run(argv, seconds=MOST_SECONDS)
        self.n += 1
        if found.code != 0:
            self._judge(name, argv, found, [] if found.code in (2, 5) else [str(found.code)])
        elif "Traceback" in found.err or "Warning" in found.err:
            self.complaints.append(f"{name}, hga {argv[0]}: {found.err[-300:]!r}")
        return found.code == 0

    def _judge(self, name: str, argv: Sequence[object], found: object, wrong: list[str]) -> None:
        if not re.fullmatch(r"hga: error: [^\n]+\n", found.err):
            wrong.append("not one line")
        if "Traceback" in found.err or "internal error" in found.err:
            wrong.append("nobody planned for it")
        if len(found.err) > 1000 or re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", found.err):
            wrong.append("a message that a terminal should not see")
        if found.out:
            wrong.append(f"output {found.out[:80]!r}")
        if found.peak_bytes > MOST_BYTES:
            wrong.append(f"{found.peak_bytes >> 20} MiB")
        if wrong:
            self.complaints.append(
                f"{name}, hga {argv[0]}: {', '.join(wrong)} in {found.seconds:.1f} s: "
                f"{found.err[-300:]!r}"
            )


@pytest.fixture
def refusals(box: object) -> Refusals:
    return Refusals(box)


def check(refusals: Refusals, at_least: int) -> None:
    assert not refusals.complaints, "\n".join(refusals.complaints)
    assert refusals.n >= at_least, refusals.n


def test_the_box_holds_what_it_promises(box, sound, tmp_path) -> None:
    whole = box.run(["inspect", sound.gguf])
    assert (whole.code, whole.err) == (0, "") and "llama" in whole.out
    assert box.run(["pack", sound.folder, "-o", tmp_path / "o.hga"]).code == 0
    assert box.run(["verify", sound.packed]).code == 0
    assert box.run(["inspect", sound.session]).code == 0
    # A limit that is too small for anything shows, and so does a command without an end.
    starved = box.run(["run", sound.packed, "-f", "/dev/zero"], extra_bytes=32 << 20)
    assert starved.code == 3
    waiting = box.run(["run", sound.packed, "-p", "hello"], given=b"", seconds=0.0)
    assert waiting.code == -9


def test_gguf_files(refusals, hostile, sound, tmp_path) -> None:
    for name, make in hostile.sources.gguf_cases(hostile.forge, sound.gguf).items():
        path = make(tmp_path)
        refusals.expect(name, ["inspect", path])
        refusals.expect(name, ["pack", path, "-o", tmp_path / "o.hga"])
        assert not (tmp_path / "o.hga").exists(), name
        path.unlink()
    check(refusals, 110)


def test_settings_are_taken_or_refused(refusals, hostile, sound, tiny, tmp_path) -> None:
    path, out, n_taken = tmp_path / "x.gguf", tmp_path / "x.hga", 0
    tiny.write_gguf(tmp_path / "moe.gguf", tiny.config("qwen3_moe"))
    files = hostile.settings.cases(
        hostile.forge,
        hostile.sources,
        sound.gguf.read_bytes(),
        (tmp_path / "moe.gguf").read_bytes(),
    )
    for name, raw in files.items():
        path.write_bytes(raw)
        if refusals.take_or_refuse(name, ["pack", path, "-o", out]):
            n_taken += 1
            refusals.take_or_refuse(name, ["run", out, "-p", "hello", "-n", "2", "--temp", "0"])
            out.unlink()
        assert not out.exists(), name
    check(refusals, 120)
    assert n_taken > 5


def test_what_is_no_model(refusals, hostile, tmp_path) -> None:
    made = hostile.places.make(tmp_path)
    for name in [*hostile.places.NAMES, *map(str, made)]:
        for command in ("run", "plan", "pack", "inspect", "verify"):
            words = [command, name, *(["-p", "hello"] if command == "run" else [])]
            refusals.expect(f"{name:.20}", words)
    check(refusals, 150)


def test_safetensors_folders(refusals, hostile, copy_folder, tmp_path) -> None:
    unread = hostile.sources.UNREAD
    for name, make in hostile.sources.folder_cases(hostile.forge, copy_folder).items():
        path = make(tmp_path)
        if name not in unread:
            refusals.expect(name, ["inspect", path])
        refusals.expect(name, ["pack", path, "-o", tmp_path / "o.hga"])
        refusals.expect(name, ["verify", path])
        assert not (tmp_path / "o.hga").exists(), name
    check(refusals, 200)


def test_packed_files(refusals, hostile, sound, tmp_path) -> None:
    for name, make in hostile.stores.packed_cases(hostile.forge, sound.packed).items():
        path = make(tmp_path)
        refusals.expect(name, ["inspect", path])
        refusals.expect(name, ["verify", path])
        refusals.expect(name, ["run", path, "-p", "hello", "-n", "3"])
        path.unlink()
    check(refusals, 100)


def test_session_folders(refusals, hostile, sound, tmp_path) -> None:
    for name, make in hostile.stores.session_cases(hostile.forge, sound.session).items():
        (tmp_path / name).mkdir()
        path = make(tmp_path / name)
        refusals.expect(name, ["inspect", path])
        refusals.expect(name, ["verify", path])
        refusals.expect(name, ["sessions", "show", path.name, "--kv-dir", path.parent])
    check(refusals, 55)


@pytest.mark.slow
def test_chat_templates(refusals, hostile, sound, tmp_path) -> None:
    path, raw = tmp_path / "t.hga", sound.packed.read_bytes()
    for name, template in hostile.stores.TEMPLATES.items():
        path.write_bytes(hostile.stores.with_template(raw, hostile.forge, template))
        refusals.expect(name, ["run", path, "-p", "hello", "-n", "3", "--temp", "0"])
    check(refusals, 50)
    assert not list(tmp_path.rglob("owned")) and not Path("owned").exists()


def test_texts(refusals, hostile, sound, tmp_path) -> None:
    path = tmp_path / "in.txt"
    for name, raw in hostile.stores.texts().items():
        path.write_bytes(raw)
        refusals.expect(name, ["run", sound.packed, "-n", "3", "-f", path])
        refusals.expect(name, ["run", sound.packed, "-n", "3"], path)
        refusals.expect(name, ["run", sound.packed, "-n", "3", "--no-chat", "-f", "-"], path)
    check(refusals, 25)


def test_token_files(refusals, hostile, sound, tmp_path) -> None:
    flags = ["--attention", "dense", "--budget", "64"]
    for name, raw in hostile.stores.token_files().items():
        path = tmp_path / name
        path.write_bytes(raw)
        refusals.expect(name, ["eval", "cases", sound.packed, "--cases", path, *flags])
        words = ["--token-ids", path, "--ctx", "64", "--tail", "8", *flags]
        refusals.expect(name, ["eval", "gap", sound.packed, *words])
    check(refusals, 32)
    assert not list(tmp_path.rglob("owned")) and not Path("owned").exists()


def test_a_stream_without_an_end(refusals, sound) -> None:
    endless = Path("/dev/zero")
    refusals.expect("a file", ["run", sound.packed, "-f", endless])
    refusals.expect("a line", ["run", sound.packed], endless)
    refusals.expect("all of it", ["run", sound.packed, "-f", "-"], endless)
    refusals.expect("a model", ["run", endless, "-p", "hello"])
    refusals.expect("a checkpoint", ["pack", endless])
    check(refusals, 5)


def test_a_healthy_set_of_experts_stays_supported(tiny: SimpleNamespace) -> None:
    from hga.models.plan import UnsupportedError
    from hga.models.registry import plan_from_hf

    largest = tiny.config("qwen3_moe", num_experts=384, num_hidden_layers=61)
    plan, specs = plan_from_hf(largest)
    assert len(specs) > 3 * 384 * 61 and len(plan.layers) == 61
    with pytest.raises(UnsupportedError, match="65536000 experts"):
        plan_from_hf(tiny.config("qwen3_moe", num_experts=65536, num_hidden_layers=1000))


FORBIDDEN = frozenset(("pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml"))


def test_nothing_is_unpickled_or_evaluated(repo_root: Path) -> None:
    found = []
    for folder in ("kernels", "kvstore", "models", "runtime", "tools"):
        for path in sorted((repo_root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found += [f"{path.name}:{node.lineno}: {what}" for what in _dangers(node)]
    assert not found, found


def _dangers(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN]
    if isinstance(node, ast.ImportFrom):
        return [str(node.module)] if str(node.module).split(".")[0] in FORBIDDEN else []
    if not isinstance(node, ast.Call):
        return []
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    loads = isinstance(node.func, ast.Attribute) and node.func.attr == "load"
    torch = loads and isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
    pickles = any(
        k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords
    )
    return [name] * (name in ("eval", "exec")) + ["torch.load"] * torch + ["allow_pickle"] * pickles
