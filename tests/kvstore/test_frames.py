"""Frames given out by the host on a device's behalf: which cells go, and where the rest finds
room."""

import numpy as np

from hga.kvstore.frames import Frames
from hga.kvstore.geometry import Geometry, LayerShape

GEOMETRY = Geometry((LayerShape(2, 32, False), LayerShape(2, 32, True)))
N_CELLS = 64


def test_the_least_recently_used_go_and_the_token_at_hand_overflows() -> None:
    size = GEOMETRY.cell_bytes(1)
    frames = Frames(GEOMETRY, 16 * N_CELLS, 10 * 2 * size, 40)
    cells, used = np.zeros((2, N_CELLS), np.int64), np.zeros((2, N_CELLS), np.int32)
    last = {}

    def token(now: int, wanted: list[int], head: int = 1) -> None:
        """As a kernel and the host do it."""
        used[head, wanted] = now
        missing = np.array([c for c in wanted if not cells[head, c]])
        if len(missing):
            given = frames.give(1, head, cells, missing, used, now)
            assert len(set(given.tolist())) == len(missing)
            assert np.array_equal(cells[head, missing], given)
        last.update(dict.fromkeys(wanted, now))

    token(1, [1, 2, 3])
    token(2, [4, 5, 6, 7])
    token(3, [1, 8, 9, 10])
    held = np.flatnonzero(cells[1]).tolist()
    assert held == list(range(1, 11)) and not cells[0].any()
    token(4, [20, 21, 22])
    gone = set(held) - set(np.flatnonzero(cells[1]).tolist())
    # 2 and 3 are oldest, one of the second token's follows.
    assert {2, 3} < gone and len(gone) == 3 and gone - {2, 3} < {4, 5, 6, 7}
    assert not frames.has_overflows
    token(5, list(range(30, 43)))
    assert frames.has_overflows and np.flatnonzero(cells[1]).tolist() == list(range(30, 43))
    addresses = cells[1, 30:43]
    for i, address in enumerate(addresses.tolist()):
        frames.contents(1, np.array([address]))
        inside = address - int(frames.records[1]["frames"])
        assert 10 * size <= inside < 20 * size or i >= 10
    frames.release(cells)
    assert np.count_nonzero(cells[1]) == 10 and not frames.has_overflows
    frames.forget(1, 1, cells, np.array([30, 31, 41]))
    assert np.flatnonzero(cells[1, :42]).tolist() == list(range(32, 40))
    token(6, [1, 2])
    assert np.count_nonzero(cells[1]) == 10
    frames.count_hits(1, np.array([3, 4]))
    reads = frames.cell_reads
    assert (reads.hits, reads.reads, reads.overflows) == (7, 3 + 4 + 3 + 3 + 13 + 2, 3)
