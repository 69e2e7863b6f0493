"""What may import what, and what an import may cost.

Three guards: the arrows between the folders (by the syntax tree, so that they hold without a
linter); modules of one platform and of the extras stay optional; `hga --help` loads no numeric
library. Imports are tried in a child process, whose module table starts clean.
"""

import ast
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# importer -> what of ours it may import; a dotted name admits that module alone.
ARROWS = {
    "kernels": {"kernels"},
    "models": {"models"},
    "kvstore": {"kvstore", "kernels"},
    "runtime": {"runtime", "kvstore", "kernels", "models.plan"},
    "tools": {"tools", "runtime", "kvstore", "kernels", "models"},
}

# Absent on some platform, or brought by an extra: none may be needed to import our modules.
OPTIONAL = (
    *("fcntl", "resource", "termios", "tty", "pty", "readline", "pwd", "grp"),
    *("liburing", "torch", "triton", "ray", "transformers", "gguf"),
)
# Functions and constants of `os` that Linux has and another platform lacks.
LINUX_ONLY = ("posix_fallocate", "posix_fadvise", "sched_getaffinity", "preadv", "O_DIRECT")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("hga", *parts)).removesuffix(".__init__")


def our_modules() -> list[Path]:
    return sorted(path for folder in ARROWS for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file; relative ones are made absolute.

    `from a import b` yields both a.b and, where b may be a mere attribute, nothing else: callers
    compare prefixes. A literal given to import_module counts as well.
    """
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            literal = node.args[0]
            if (
                name in ("import_module", "__import__")
                and isinstance(literal, ast.Constant)
                and isinstance(literal.value, str)
            ):
                yield node.lineno, literal.value


def may_import(folder: str, name: str) -> bool:
    """Whether a module of a folder may import this dotted name; foreign names always."""
    if name != "hga" and not name.startswith("hga."):
        return name.partition(".")[0] not in (*ARROWS, "tests", "bench")
    inner = name.removeprefix("hga.") + "."
    return any(inner.startswith(allowed + ".") for allowed in ARROWS[folder])


def test_arrows_between_folders() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in our_modules()
        for line, name in imported(path)
        if not may_import(path.relative_to(ROOT).parts[0], name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("folder", "name", "allowed"),
    [
        ("kernels", "numpy", True),
        ("kernels", "hga.kernels.formats", True),
        ("kernels", "hga.models.plan", False),
        ("models", "hga.kernels", False),
        ("kvstore", "hga.runtime.engine", False),
        ("runtime", "hga.models.plan.ModelPlan", True),
        ("runtime", "hga.models.plan", True),
        ("runtime", "hga.models.llama", False),
        ("runtime", "hga.models", False),
        ("runtime", "hga.tools.cli", False),
        ("tools", "hga.models.llama", True),
        ("tools", "hga", False),
        ("tools", "runtime.engine", False),
        ("kernels", "tests", False),
    ],
)
def test_the_arrow_rule_itself(folder: str, name: str, allowed: bool) -> None:
    assert may_import(folder, name) is allowed


def test_import_scan_sees_every_way_to_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "runtime" / "deep" / "module.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        textwrap.dedent(
            """
            import hga.tools.cli as cli
            from hga.models import llama
            from . import near
            from ..engine import Engine
            def late():
                from hga.kvstore.route import Route
                importlib.import_module("hga.tools.run")
            """
        ),
        encoding="utf-8",
    )
    assert sorted(name for _, name in imported(path)) == [
        "hga.kvstore.route.Route",
        "hga.models.llama",
        "hga.runtime.deep.near",
        "hga.runtime.engine.Engine",
        "hga.tools.cli",
        "hga.tools.run",
    ]


def test_third_party_imports_are_declared() -> None:
    """Whatever our modules import comes with `pip install hga` or with a user's extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = list(project["dependencies"])
    for extra in ("gpu", "uring", "cluster", "plot", "serve"):
        requirements += extras[extra]
    declared = {re.match(r"[\w.-]+", line)[0].replace("-", "_").lower() for line in requirements}
    declared.add("llvmlite")  # numba's own requirement, of the version that it needs
    foreign = {
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in our_modules()
        for line, name in imported(path)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top not in declared | {"hga"}
    }
    assert not foreign


def child(code: str, *arguments: str, seconds: float = 500) -> str:
    """Runs code in a fresh interpreter and returns its standard output; fails on a bad exit. The
    time allows for kernels that have to be compiled on a busy machine: it is none of the claims."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Third-party packages choose for themselves what their platform offers: they are loaded first,
# then the names are hidden, so that what is tried is our code alone.
HIDE = """
    import contextlib, importlib, os, sys
    import subprocess, multiprocessing, asyncio, pathlib, tempfile, shutil, getpass, mmap
    for name in (
        "numpy", "numba", "llvmlite.ir", "safetensors", "tokenizers", "jinja2", "jinja2.sandbox",
        "lz4.frame", "psutil", "aiofiles", "rich.console", "rich.progress", "prompt_toolkit",
        "prompt_toolkit.shortcuts", "msgspec", "xxhash", "platformdirs", "ml_dtypes",
    ):
        importlib.import_module(name)
    hidden, linux_only = sys.argv[1].split(","), sys.argv[2].split(",")
    assert not any(name.startswith("hga.") for name in sys.modules)

    class Hider:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in hidden:
                raise ModuleNotFoundError(f"hidden by the test: {name}", name=name)
            return None

    for name in list(sys.modules):
        if name.partition(".")[0] in hidden:
            del sys.modules[name]
    sys.meta_path.insert(0, Hider())
    for name in linux_only:
        if hasattr(os, name):
            delattr(os, name)
"""


def test_every_module_imports_without_optional_and_linux_only_modules() -> None:
    names = [
        module_name(path)
        for path in our_modules()
        # The CUDA backend's modules: nothing else imports them at start.
        if "triton" not in path.relative_to(ROOT).parts and not path.stem.startswith("cuda_")
    ]
    code = textwrap.dedent(HIDE) + textwrap.dedent(
        """
        # Kernels compile when imported: they are kept where engines look for them.
        from hga.kernels.cpu import target
        from hga.tools.folders import cache_folder
        target.select(cache_folder() / "kernels")
        failed = []
        for name in sys.argv[3].split(","):
            try:
                importlib.import_module(name)
            except Exception as error:
                failed.append(f"{name}: {type(error).__name__}: {error}")
        print("\\n".join(failed))
        """
    )
    failed = child(code, ",".join(OPTIONAL), ",".join(LINUX_ONLY), ",".join(names)).strip()
    assert not failed, f"cannot be imported on a platform that lacks such modules:\n{failed}"


def test_the_hiding_hides() -> None:
    code = textwrap.dedent(HIDE) + textwrap.dedent(
        """
        for name in hidden:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                continue
            raise SystemExit(f"{name} was importable")
        """
    )
    child(code, ",".join(OPTIONAL), ",".join(LINUX_ONLY))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_is_cheap(arguments: list[str]) -> None:
    """`hga --help` answers without loading numbers, tokenizers, templates or a terminal UI."""
    code = """
        import sys
        sys.argv[0] = "hga"
        from hga.tools.cli import main
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
        heavy = {"numpy", "numba", "llvmlite", "tokenizers", "jinja2", "rich", "prompt_toolkit"}
        print("loaded:", *sorted(heavy & set(sys.modules)))
        sys.exit(code)
    """
    shown, _, loaded = child(code, *arguments).rpartition("loaded:")
    assert shown.strip()
    assert not loaded.split()


@pytest.mark.parametrize("folder", sorted(ARROWS))
def test_modules_are_imported_once_under_one_name(folder: str) -> None:
    """With PYTHONSAFEPATH the bare folder names are nobody's modules, even in the checkout."""
    code = "import importlib.util, sys; print(importlib.util.find_spec(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, folder], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "None", done.stdout + done.stderr
