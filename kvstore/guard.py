"""Guard: the system's errors as ours, and no work after one that leaves the state in doubt."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import StoreError
from .filelayer import Files

# The disk, a quota or a limit on the size of files.
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


class DoubtfulError(Exception):
    """Wraps an OSError after which only the disk knows what was saved."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror)
        self.cause = cause


def must(call: Callable[[int], None], fd: int) -> None:
    """Run a sync. Where it fails, even for want of space, the system may have dropped what was
    written: trying again would succeed and prove nothing."""
    try:
        call(fd)
    except OSError as error:
        raise DoubtfulError(error) from None


class Guard:
    """Called around every access to the files of one session."""

    def __init__(self, folder: Path, files: Files, n_tokens: Callable[[], int]) -> None:
        self._folder = folder
        self._files = files
        self._n_tokens = n_tokens
        self._broken: str | None = None

    @contextlib.contextmanager
    def __call__(self, what: str, needed: int = 0) -> Iterator[None]:
        """A block that does `what` and may need so many bytes on the disk. Raises StoreError: a
        full disk changes nothing, after anything else the next call refuses."""
        session = f"session {self._folder.name!r}"
        if self._broken is not None:
            raise StoreError(
                errno.EIO, f"{session} refuses work ({self._broken}): it has to be opened again"
            )
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            if error.errno in NO_SPACE:
                raise no_room(
                    error, self._folder, f"{session}: {what}", needed, self._files
                ) from None
            raise self._break(what, error) from None
        except DoubtfulError as error:
            raise self._break(what, error.cause) from None
        except (ValueError, IndexError):
            # The caller's mistake, found before anything was touched.
            raise
        except BaseException:
            self._broken = f"{what} was interrupted"
            raise

    def _break(self, what: str, error: OSError) -> StoreError:
        self._broken = f"{what} failed: {error.strerror}"
        return StoreError(
            error.errno,
            f"session {self._folder.name!r}: {what}: {error.strerror}; on the disk it is as the"
            f" last save left it, with {self._n_tokens()} tokens, and has to be opened again",
        )

    def close(self) -> None:
        """Refuse everything from now on."""
        self._broken = "it was closed"


def no_room(error: OSError, folder: Path, what: str, needed: int, files: Files) -> StoreError:
    """What to say when the disk is full."""
    try:
        free = f"{files.free_bytes(folder)} are free"
    except OSError:
        free = "fewer are free"
    limit = " below the limit on the size of files" if error.errno == errno.EFBIG else ""
    return StoreError(
        error.errno,
        f"{what} needs {needed} bytes and {free}{limit} on the disk of {folder}"
        " (--kv-dir chooses another)",
    )
