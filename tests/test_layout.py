"""The tree, the packaging metadata and the documents agree with one another.

The top-level folders are mapped into the PEP 420 namespace `hga` by a list in pyproject.toml, so a
folder left off that list works in a checkout and is missing from the wheel: these tests compare
the two, and build a wheel to be sure.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "kvstore", "models", "runtime", "tools")
MAX_LINES = 400


@cache
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules(folder: str) -> list[Path]:
    """The Python files of one top-level folder, relative to the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))


def documents() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def test_every_folder_with_modules_is_a_listed_package() -> None:
    found = {
        ".".join(("hga", *path.parent.parts)) for folder in FOLDERS for path in modules(folder)
    }
    listed = pyproject()["tool"]["setuptools"]["packages"]
    assert sorted(found) == sorted(listed)
    assert len(listed) == len(set(listed))


def test_package_dir_maps_the_top_level_folders_and_nothing_else() -> None:
    mapping = pyproject()["tool"]["setuptools"]["package-dir"]
    assert mapping == {f"hga.{folder}": folder for folder in FOLDERS}


def test_hga_stays_a_namespace() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "hga").exists(), "hga is a namespace: modules belong in the five folders"


def test_tests_and_bench_are_not_packages() -> None:
    for folder in ("tests", "bench"):
        assert not list((ROOT / folder).rglob("__init__.py"))


def test_test_modules_have_unique_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_files_stay_short() -> None:
    long = {}
    for folder in (*FOLDERS, "tests", "bench"):
        for path in modules(folder):
            n_lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
            if n_lines > MAX_LINES:
                long[str(path)] = n_lines
    assert not long, f"more than {MAX_LINES} lines: {long}"


def test_modules_say_what_they_own() -> None:
    silent = []
    for folder in FOLDERS:
        for path in modules(folder):
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            if tree.body and ast.get_docstring(tree) is None:
                silent.append(str(path))
    assert not silent, f"modules without a docstring: {silent}"


def test_no_machine_paths() -> None:
    # Built from parts, so that this file does not match itself.
    homes = "|".join(("root", "work", "Users", "home/[a-z]", "farm"))
    pattern = re.compile(rf"(?<![\w.$~/}}-])/(?:{homes})[/.]")
    texts = [*documents(), ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run"]
    texts += [ROOT / path for folder in (*FOLDERS, "tests", "bench") for path in modules(folder)]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "paths of somebody's machine:\n" + "\n".join(found)


def test_links_between_documents_resolve() -> None:
    link = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)[^)]*\)")
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in documents()
        for target in link.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert not broken


def test_readme_shows_the_two_set_up_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make run" in readme and "make test" in readme


def test_command_line_entry_points_exist() -> None:
    for name, target in pyproject()["project"]["scripts"].items():
        module, function = target.split(":")
        folder, *rest = module.removeprefix("hga.").split(".")
        path = ROOT.joinpath(folder, *rest).with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in defined, f"{name} = {target}: no function {function} in {path.name}"


def test_wheel_holds_every_module_and_the_commands(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "wheel"
    source.mkdir()
    (source / "docs").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "docs/hga.1"):
        shutil.copy(ROOT / name, source / name)
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--quiet", "--wheel-dir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

    (wheel,) = out.glob("hga-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (entry_points,) = (name for name in held if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
        (metadata,) = (name for name in held if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()
    files = (
        path.relative_to(source) for folder in FOLDERS for path in (source / folder).rglob("*")
    )
    expected = {f"hga/{path.as_posix()}" for path in files if (source / path).is_file()}
    assert {name for name in held if name.startswith("hga/")} == expected
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert any(name.endswith(".data/data/share/man/man1/hga.1") for name in held)
    for line in ("hga =", "hga-run =", "hga-pack ="):
        assert line in commands
