"""Names that lead to no model: devices, pipes, links, folders, and names that are none."""

import os
import socket
from pathlib import Path
from typing import Final

NAMES: Final = (
    *("", ".", "/", "//", "-", "~nobody/x", "/dev/null", "/dev/zero", "/dev/full", "/dev/random"),
    *("/proc/self/fd/0", "http://x/y.gguf", "file:///etc/passwd", "a\x1b[31m\n.gguf"),
    *("a" * 5000, "a/" * 3000, "\udcff\udcfe.gguf", "demo ", "demo/"),
)
"""What somebody may write; what of it exists is on every Linux."""


def make(folder: Path) -> list[Path]:
    """Files and folders that are no models, named as if they were."""
    names = ("pipe.gguf", "pipe.hga", "folder.gguf", "folder.hga", "empty.gguf", "empty.hga",
             "loop.gguf", "dangling.gguf", "text.gguf", "archive.hga", "one", "socket.gguf",
             "nothing", "config-a-pipe")  # fmt: skip
    paths = {name: folder / name for name in names}
    for name in ("pipe.gguf", "pipe.hga"):
        os.mkfifo(paths[name])
    for name in ("folder.gguf", "folder.hga", "nothing", "config-a-pipe"):
        paths[name].mkdir()
    os.mkfifo(paths["config-a-pipe"] / "config.json")
    paths["empty.gguf"].touch()
    paths["empty.hga"].touch()
    paths["loop.gguf"].symlink_to("loop.gguf")
    paths["dangling.gguf"].symlink_to("/nonexistent")
    paths["text.gguf"].write_text("GGUF, or so it says")
    paths["archive.hga"].write_bytes(b"PK\3\4" + bytes(100))
    paths["one"].write_bytes(b"\0")
    # A path of a socket has at most 107 bytes.
    here = os.getcwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind("socket.gguf")
    finally:
        os.chdir(here)
    return list(paths.values())
