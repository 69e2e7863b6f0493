"""Threads that read ask for a short slice, and keep what else the system knows of them."""

import ctypes
import os
import threading

import pytest

from hga.kernels.system import sched_setattr_number
from hga.kvstore.thread_slice import _SLICE_NS, _Attributes, shorten_slice

pytestmark = pytest.mark.skipif(
    not sched_setattr_number(),
    reason="slices are asked for on Linux alone",
)


def attributes() -> _Attributes:
    """What the system knows of this thread; sched_getattr follows sched_setattr."""
    found = _Attributes()
    number = sched_setattr_number() + 1
    size = ctypes.sizeof(found)
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(found), size, 0) == 0
    return found


def in_a_thread(do) -> None:
    """Run in a thread of its own, whose slice goes with it."""
    failed = []

    def run() -> None:
        try:
            do()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_a_slice_is_short_where_the_system_knows_slices() -> None:
    def check() -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        before = attributes()
        assert shorten_slice()
        after = attributes()
        assert (after.policy, after.nice) == (before.policy, 3)
        # Before Linux 6.12 the system names none.
        assert after.runtime == (_SLICE_NS if before.runtime else 0)

    in_a_thread(check)


def test_another_policy_is_left_alone() -> None:
    def check() -> None:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        assert not shorten_slice()
        assert attributes().policy == os.SCHED_BATCH

    in_a_thread(check)
