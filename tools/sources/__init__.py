"""Checkpoints as they are found: a GGUF file or a Hugging Face safetensors folder.

`open_source` checks everything that a file claims about itself (sizes, offsets, names, shapes)
before the first value is read, and hands out rows of raw values.
"""

from pathlib import Path

from .source import Source, SourceError, SourceTensor

__all__ = ["Source", "SourceError", "SourceTensor", "open_source"]


def open_source(path: str | Path) -> Source:
    """Open a GGUF file or a folder with config.json and safetensors.

    Raises FileNotFoundError if there is nothing, SourceError for a damaged checkpoint,
    ConfigError or UnsupportedError (hga.models.plan) for a configuration that cannot be run.
    """
    path = Path(path)
    if path.is_dir():
        from .hf import open_hf

        return open_hf(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not path.is_file():
        raise SourceError(f"{path}: expected a regular file or a folder")
    if path.suffix == ".safetensors" or path.name == "config.json":
        raise SourceError(
            f"{path}: a single file of a Hugging Face checkpoint; give the folder, {path.parent}"
        )
    from .gguf import open_gguf

    return open_gguf(path)
