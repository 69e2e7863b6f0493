"""What a command says besides its result: notices, progress bars, the line after a turn.

Everything goes to standard error. Bars and colour appear on a terminal alone; `TERM=dumb` and
`NO_COLOR` are honoured, and `--quiet` leaves errors only.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TextIO

from hga.tools.errors import STDOUT, printable

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[int, int], None]
"""Called with (done, total) in the unit of the bar; cheap enough to call for every token."""

Figures = Callable[[str, float, str], None]
"""Called with (label, share of the whole from 0 to 1, figures)."""

Unit = Literal["tokens", "bytes", "steps"]
_REFRESH_S = 0.1


class Status:
    """The one writer on standard error of a command."""

    def __init__(
        self, *, quiet: bool = False, verbose: int = 0, stream: TextIO | None = None
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self.verbose = verbose
        self.terminal = is_terminal(self._stream)
        self._board: _Board | None = None
        self._colour = allows_colour(self._stream)

    @property
    def quiet(self) -> bool:
        """Whether only errors are said."""
        return self._quiet

    @property
    def shows_bars(self) -> bool:
        """Whether `bar` draws anything."""
        return self.terminal and not self._quiet

    def notice(self, text: str) -> None:
        """A line that the user should see; dropped by --quiet."""
        if not self._quiet:
            # It may carry a name that somebody else chose.
            self._line(printable(text.expandtabs(4)))

    def detail(self, text: str) -> None:
        """A line for -v."""
        if self.verbose and not self._quiet:
            self._line(printable(text.expandtabs(4)))

    def faint(self, text: str) -> None:
        """A notice that should not draw the eye: the figures after a turn."""
        if not self._quiet:
            self._line(f"\x1b[2m{text}\x1b[0m" if self._colour else text)

    def say(self, text: str) -> None:
        """A line that the user asked for by a command; --quiet does not drop it."""
        self._line(printable(text.expandtabs(4)))

    def error(self, text: str) -> None:
        """The one line of a failure; never dropped."""
        self._line(f"hga: error: {text}")

    def ask(self, question: str) -> str:
        """The user's answer to a question on the terminal, without its line end."""
        self._stream.write(question)
        self._stream.flush()
        return sys.stdin.readline().strip()

    @contextmanager
    def bar(self, label: str, unit: Unit, *, delay_s: float = 0.0) -> Iterator[Report]:
        """A progress bar while the block runs, first drawn when it has run for `delay_s`."""
        if not self.shows_bars:
            yield _ignore
            return
        bar = _Bar(label, unit, self._stream, delay_s)
        try:
            yield bar.report
        finally:
            bar.close()

    @contextmanager
    def board(self) -> Iterator[Figures]:
        """A bar whose label and figures change as the work goes on, with the time left; lines that
        are written meanwhile stand above it."""
        if not self.shows_bars:
            yield lambda label, share, figures: None
            return
        self._board = board = _Board(self._stream)
        try:
            yield board.show
        finally:
            board.close()
            self._board = None

    def _line(self, text: str) -> None:
        if self._board is not None:
            self._board.close()
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except OSError:
            # Nobody reads the notices, or they cannot be kept; what is on standard output, and
            # the exit code, still matter.
            abandon(self._stream)


def abandon(stream: TextIO) -> None:
    """Point a stream that cannot be written at nothing, with what it still holds."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, stream.fileno())
        os.close(sink)
    except (OSError, ValueError):
        pass


def flush_output() -> None:
    """Write out what standard output holds; an OSError that it raises names it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        error.filename = STDOUT
        abandon(sys.stdout)
        raise


class _Board:
    """One line of a terminal, drawn from the caller's thread as `_Bar` is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begin = time.monotonic()
        self._due = self._begin
        self._progress: Progress | None = None

    def show(self, label: str, share: float, figures: str) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _REFRESH_S
        elapsed = now - self._begin
        if share > 0 and elapsed > 1:
            figures += f", {span(elapsed * (1 - share) / share)} left"
        if self._progress is None:
            self._progress = _new_progress(self._stream)
            self._task = self._progress.add_task(label, total=1.0, figures=figures)
            self._progress.start()
        self._progress.update(self._task, description=label, completed=share, figures=figures)
        self._progress.refresh()

    def close(self) -> None:
        """Take it off the screen; `show` draws it again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Bar:
    """A rich progress bar drawn from the caller's thread: a refresh thread of its own would
    disturb kernels that spin at their barriers."""

    def __init__(self, label: str, unit: Unit, stream: TextIO, delay_s: float) -> None:
        self._label = label
        self._unit: Unit = unit
        self._stream = stream
        self._begin = time.monotonic()
        self._due = self._begin + delay_s
        self._progress: Progress | None = None

    def report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total:
            # What comes next may write to the terminal: a full bar makes room at once.
            self.close()
            return
        if now < self._due:
            return
        self._due = now + _REFRESH_S
        elapsed = now - self._begin
        figures = _figures(self._unit, done, total, elapsed)
        if done:
            figures += f", {span(elapsed * (total - done) / done)} left"
        if self._progress is None:
            self._progress = _new_progress(self._stream)
            self._task = self._progress.add_task(
                self._label, total=total, completed=done, figures=figures
            )
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total, figures=figures)
        self._progress.refresh()

    def close(self) -> None:
        """Take the bar off the screen; a later report draws it again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _new_progress(stream: TextIO) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(file=stream),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that understands cursor movement."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def allows_colour(stream: TextIO) -> bool:
    """Whether styles may be written to a stream: a terminal, and NO_COLOR is not set."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def size(n_bytes: float) -> str:
    """Bytes for people: `98.4 MiB`, in the powers of 1024 that --mem takes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def span(seconds: float) -> str:
    """A duration for people: `0:42`, `1:05:00`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def rate(count: int, seconds: float) -> float | None:
    """Count per second, None where nothing was timed."""
    return count / seconds if count > 0 and seconds > 0 else None


def _figures(unit: Unit, done: int, total: int, elapsed: float) -> str:
    speed = done / elapsed if elapsed > 0 else 0.0
    if unit == "bytes":
        return f"{size(done)} of {size(total)}, {size(speed)}/s"
    if unit == "tokens":
        return f"{done:,} of {total:,} tokens, {speed:,.0f} tok/s"
    return f"{done:,} of {total:,}"


def _ignore(done: int, total: int) -> None:
    pass
