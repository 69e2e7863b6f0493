"""MODEL to a packed file, and `hga pack`.

A packed file is taken as it is. A GGUF file or a safetensors folder is packed once into the cache,
under a name made of its contents; `demo` and `gemma` are fetched first. Invariant: what `resolve`
returns was validated by opening it.
"""

import argparse
import errno
import time
from pathlib import Path

from hga.tools.demo import BUNDLES, ensure
from hga.tools.errors import OK, UsageError
from hga.tools.fingerprint import fingerprint
from hga.tools.folders import cache_folder, expand
from hga.tools.status import Status, size

DEFAULT_MODEL = "demo"
_POLL_S = 0.5


def resolve(model: str | None, status: Status, *, accept_terms: bool = False) -> Path:
    """The packed file of MODEL (None: the demo), made first where it does not exist yet."""
    path = source_of(model or DEFAULT_MODEL, status, accept_terms=accept_terms)
    if path.is_file():
        from hga.runtime.container import is_packed

        if is_packed(path):
            return path
    return _cached_pack(path, status)


def source_of(model: str, status: Status, *, accept_terms: bool = False) -> Path:
    """The file or folder that MODEL names; a name of ours is fetched. Raises UsageError where
    there is nothing of that name."""
    if model in BUNDLES:
        return ensure(model, status, accept_terms=accept_terms)
    path = expand(model)
    if not path.exists():
        raise UsageError(
            f"no model {model!r}: expected a packed file, a GGUF file, a safetensors folder, "
            f"or one of {', '.join(BUNDLES)}"
        )
    if not (path.is_file() or path.is_dir()):
        # A pipe or a device may have no end.
        raise UsageError(f"{model} is neither a file nor a folder")
    return path


def _cached_pack(source: Path, status: Status) -> Path:
    from hga.runtime.container_index import VERSION

    folder = cache_folder() / "packs"

    def check() -> None:
        from hga.tools.sources import open_source

        open_source(source).close()

    with status.bar(f"reading {source.name}", "bytes", delay_s=0.5) as report:
        name = fingerprint(source, folder / "fingerprints.json", report, check)
    target = folder / f"{_stem(source)}-{name[:16]}-v{VERSION}.hga"
    if target.is_file() and _opens(target, status):
        return target
    while not _pack(source, target, "auto", status, wait=True):
        if target.is_file() and _opens(target, status):
            break
    return target


def _stem(source: Path) -> str:
    """A source's name without a file's suffix; a folder's name may hold dots."""
    return source.stem if source.is_file() else source.resolve().name


def _opens(path: Path, status: Status) -> bool:
    """Whether a pack of our cache is whole; a damaged one is made again, not complained about."""
    from hga.runtime.container import ContainerError, ModelFile

    try:
        ModelFile.open(path).close()
    except ContainerError as error:
        status.notice(f"packing again: {error}")
        path.unlink()
        return False
    return True


def _pack(source: Path, target: Path, fmt: str, status: Status, *, wait: bool) -> bool:
    """Pack and print the report; with `wait`, false after a pause where another process is at
    it."""
    from hga.tools.pack import pack

    told = not wait

    def progress(done: int, total: int) -> None:
        # First heard when the source has passed every check: a refusal stays one line.
        nonlocal told
        if not told:
            told = True
            status.notice(f"packing {source.name} into {target}")
        report(done, total)

    try:
        with status.bar(f"packing {source.name}", "bytes") as report:
            done = pack(source, target, fmt, progress)
    except KeyboardInterrupt:
        status.notice("what is packed so far is kept: the same command goes on from there")
        raise
    except BlockingIOError:
        if not wait:
            raise
        status.detail("another process is packing this model: waiting")
        time.sleep(_POLL_S)
        return False
    for notice in done.notices:
        status.notice(notice)
    lines = done.lines()
    # Losses are for everybody to see, the table of exact tensors for those who ask.
    for line in lines if done.changed or not wait else lines[-1:]:
        status.notice(line)
    status.notice(
        f"packed {size(done.source_nbytes)} into {size(done.nbytes)} in {done.seconds:.1f} s"
        + (f", {size(done.resumed_nbytes)} of it earlier" if done.resumed_nbytes else "")
    )
    return True


def pack_command(source: str, values: argparse.Namespace, status: Status) -> int:
    """The command `hga pack`; returns the exit code."""
    path = source_of(source, status, accept_terms=values.accept_gemma_terms)
    target = values.output or Path(f"{_stem(path)}.hga")
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; -o names a file", str(target))
    if target.exists() and not target.is_file():
        # The rename at the end would put a file in the place of a device.
        raise UsageError(f"-o {target} is not a regular file")
    if path.is_file():
        from hga.runtime.container import is_packed

        if is_packed(path):
            raise UsageError(f"{path} is a packed file already: pack takes its source")
    _pack(path, target, values.format, status, wait=False)
    status.notice(f"{target}")
    return OK
