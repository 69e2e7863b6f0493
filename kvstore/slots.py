"""Slots: which places of which segments are free, and which of them hold committed blocks.

Invariant: a slot that either head file names, or that a block not yet committed was written to, is
never handed out again. A segment that another session shares, by a hard link, is never written.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

Place = tuple[int, int]
"""Segment number and slot."""

# The first segments double up to LATER_SLOTS; MOST_SLOTS is what a segment may have (store_layout).
FIRST_SLOTS, LATER_SLOTS, MOST_SLOTS = 4, 32, 1024


def next_size(sizes: Iterable[int]) -> int:
    """Slots of a new segment beside others of these sizes: few for a short conversation, 4096
    tokens from the fourth on, and later a quarter of what there is: a long context takes a quarter
    more of the disk at most, and open files by its logarithm."""
    sizes = list(sizes)
    small = min(FIRST_SLOTS << min(len(sizes), 8), LATER_SLOTS)
    return min(max(small, sum(sizes) // 4), MOST_SLOTS)


def sizes_for(n_blocks: int) -> list[int]:
    """Slots of the segments that a session of so many blocks makes, one after another."""
    sizes: list[int] = []
    while sum(sizes) < n_blocks:
        sizes.append(next_size(sizes))
    return sizes


def find_free(
    segments: Mapping[int, int],
    taken: Mapping[int, Collection[int]],
    writable: Callable[[int], bool],
) -> Place | None:
    """The first place that is not taken, in the order of segment numbers; None if there is none.

    segments: number of slots by segment number; taken: slots by segment number. writable is asked
    about a segment that has room.
    """
    for segment in sorted(segments):
        inside = taken.get(segment, ())
        if len(inside) < segments[segment] and writable(segment):
            return segment, next(s for s in range(segments[segment]) if s not in inside)
    return None
