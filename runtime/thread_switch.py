"""ThreadSwitch: fewer threads for single tokens while other programs take the processors.

Threads of a token meet some hundred times. Where another program has one of the processors, every
meeting may wait for a time slice of it, and fewer threads are several times as fast. How busy the
machine is with others is looked at now and then; where it is, all numbers of threads are timed for
a few tokens, and the best is kept until the others are gone, or for a while. The number of threads
changes no token.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

# Tokens and seconds between looks: the system counts in hundredths of a second.
_LOOK, _LEAST_LOOK_S = 32, 0.2
# Tokens of a trial of each number of threads; the first is not counted: workers may have slept.
_TRIAL = 5
# Tokens until the choice is tried again: doubled as long as it proves right.
_HOLD, _LONGEST_HOLD = 128, 2048
# Processors that others use: from here on they are in the way, below it they are gone.
_BUSY, _QUIET = 0.25, 0.12
# What fewer threads have to gain.
_LEAST_GAIN = 0.1


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds since some time: of the clock, and of work of all processors and of this process."""

    wall: float
    all: float
    own: float


def usage() -> Usage:
    """What has been used so far. What a virtual machine did not get counts as others' work."""
    import psutil

    t = psutil.cpu_times()
    idle = t.idle + getattr(t, "iowait", 0.0)
    return Usage(time.perf_counter(), sum(t[:8]) - idle, time.process_time())


class ThreadSwitch:
    """Ask `n` before a token, tell `note` its seconds."""

    def __init__(self, n_threads: int, usage: Callable[[], Usage] = usage) -> None:
        """n_threads: the most, and what it begins with; usage: the function of that name."""
        candidates = (n_threads, n_threads - 1, n_threads // 2, 1)
        self._choices = sorted({n for n in candidates if n >= 1}, reverse=True)
        self.n = self._chosen = n_threads
        self._usage, self._since = usage, usage()
        # Tokens since the last trial, and until the next may come.
        self._token, self._hold = 0, 0
        # Of each number of threads, while they are tried.
        self._seconds: dict[int, list[float]] = {}
        self._left: list[int] = []

    def note(self, seconds: float) -> None:
        """A token took so long; `n` may change for the next."""
        if len(self._choices) == 1:
            return
        if self._left:
            self._try(seconds)
            return
        self._token += 1
        if self._token % _LOOK:
            return
        now = self._usage()
        wall = now.wall - self._since.wall
        if wall < _LEAST_LOOK_S:
            return
        others = (now.all - self._since.all - (now.own - self._since.own)) / wall
        self._since = now
        if others < _QUIET:
            self.n = self._chosen = self._choices[0]
            self._hold = 0
        elif others > _BUSY and self._token >= self._hold:
            self._left, self._seconds = list(self._choices), {n: [] for n in self._choices}
            self.n = self._left[0]

    def _try(self, seconds: float) -> None:
        self._seconds[self.n].append(seconds)
        if len(self._seconds[self.n]) < _TRIAL:
            return
        self._left.pop(0)
        if self._left:
            self.n = self._left[0]
            return
        found = {n: median(times[1:]) for n, times in self._seconds.items()}
        best, most = min(found, key=lambda n: found[n]), self._choices[0]
        if found[best] > (1 - _LEAST_GAIN) * found[most]:
            best = most
        same = best == self._chosen and self._hold > 0
        self._hold = min(2 * self._hold, _LONGEST_HOLD) if same else _HOLD
        self.n = self._chosen = best
        self._token, self._since = 0, self._usage()
