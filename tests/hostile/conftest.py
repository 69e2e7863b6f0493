"""The box that hostile files are opened in, and sound files to spoil."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from hga.kvstore.store import SessionStore
from hga.kvstore.store_layout import BlockShape
from hga.runtime.saved import encode_text
from hga.tools.pack import pack

_HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def hostile(load_module: Callable[[Path], ModuleType]) -> SimpleNamespace:
    """The modules of this folder by name: box, forge, places, …"""
    names = ("box", "forge", "places", "settings", "sources", "stores")
    return SimpleNamespace(**{name: load_module(_HERE / f"{name}.py") for name in names})


@pytest.fixture(scope="session")
def sound(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint that is as it should be, in every form: gguf, folder, packed, session."""
    root = tmp_path_factory.mktemp("sound")
    tiny.write_gguf(root / "sound.gguf", tiny.config("llama"))
    folder = tiny.write_hf(root / "sound", tiny.config("llama"))
    pack(folder, root / "sound.hga")
    shape = BlockShape(((2, 256),), 100)
    SessionStore.create(root / "session", shape, {"a": 1}, encode_text("")).close()
    return SimpleNamespace(
        gguf=root / "sound.gguf", folder=folder, packed=root / "sound.hga", session=root / "session"
    )


@pytest.fixture(scope="session")
def copy_folder(sound: SimpleNamespace) -> Callable[[Path], Path]:
    """copy_folder(path): the sound safetensors folder once more."""

    def copy(folder: Path) -> Path:
        shutil.copytree(sound.folder, folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def box(
    hostile: SimpleNamespace, own_home: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[object]:
    """The box, with caches and sessions of its own."""
    if sys.platform != "linux":
        pytest.skip("forks, and limits address space, as Linux does")
    with hostile.box.Box(tmp_path_factory.mktemp("box"), own_home) as opened:
        yield opened
