"""Ctrl-C while a reply is produced: the first is a request, the second ends, however fast."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hga.tools.interrupt import Interrupt, SecondInterrupt, Terminated, endings


@pytest.fixture(autouse=True)
def default_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_is_a_request_and_the_second_ends():
    with Interrupt() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(SecondInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="sends signals to itself from outside")
def test_two_during_one_compiled_call_are_two():
    # Python sees both signals only when the hashing is over.
    code = f"""
import hashlib, os, subprocess, sys
from hga.tools.interrupt import Interrupt, SecondInterrupt, Terminated, endings
kill = "import os, time; time.sleep(0.2); os.kill({{0}}, 2); time.sleep(0.1); os.kill({{0}}, 2)"
try:
    with Interrupt() as stop:
        child = subprocess.Popen([sys.executable, "-c", kill.format(os.getpid())])
        while child.poll() is None:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)
except SecondInterrupt:
    print("ended", {signal.SIGINT:d})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"ended {signal.SIGINT:d}\n", done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_an_ending_waits_for_the_block_and_then_ends(name):
    number = getattr(signal, name)
    with endings():
        with pytest.raises(Terminated) as caught:
            signal.raise_signal(number)
        assert caught.value.number == number
        with Interrupt() as stop:
            signal.raise_signal(number)
            assert stop.requested
        with pytest.raises(Terminated):
            stop.obey()
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with endings(), Interrupt() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.requested
        stop.obey()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name == "nt", reason="sends signals to itself")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_within_a_finalizer_is_not_lost(name, capsys):
    number = getattr(signal, name)

    class Loaded:
        def __del__(self) -> None:
            signal.raise_signal(number)
            time.sleep(0)

    class HalfDone:
        def __del__(self) -> None:
            raise AttributeError("as if it had been cut short")

    with pytest.raises(KeyboardInterrupt) as caught, endings():
        Loaded()
        HalfDone()
        time.sleep(10)
    assert not isinstance(caught.value, Terminated) or caught.value.number == number
    assert capsys.readouterr().err == ""


def test_other_trouble_of_finalizers_is_told_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Broken:
        def __del__(self) -> None:
            raise AttributeError("a bug")

    with endings():
        Broken()
    assert [str(each.exc_value) for each in told] == ["a bug"]
