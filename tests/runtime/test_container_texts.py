"""Texts of a packed file: damaged or oversized lz4 frames are refused, not unpacked."""

import lz4.frame
import pytest

from hga.runtime.container import ContainerError
from hga.runtime.container_layout import decompress


@pytest.mark.parametrize("size", [0, 99, 101, 1 << 20])
def test_a_text_of_another_size_than_stated_is_refused(size: int) -> None:
    payload = lz4.frame.compress(b"x" * 100)
    assert decompress(payload, 100, "t") == b"x" * 100
    with pytest.raises(ContainerError, match="text t"):
        decompress(payload, size, "t")


def test_a_text_bomb_is_not_unpacked() -> None:
    payload = lz4.frame.compress(bytes(64 << 20))
    with pytest.raises(ContainerError, match="expected 10 bytes"):
        decompress(payload, 10, "t")
    for damaged in (payload[:-9], b"", b"no frame", payload + b"x"):
        with pytest.raises(ContainerError):
            decompress(damaged, 64 << 20, "t")
