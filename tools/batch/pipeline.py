"""Reading ahead and writing behind the model, on a thread with an event loop of its own.

Invariant: at most READ_AHEAD files, and READ_AHEAD_BYTES unless a single file has more, are in
memory before the model takes them; what it answered is written and journalled in the order it was
given, one after another.
"""

import asyncio
import errno
import os
import queue
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import aiofiles

from hga.tools.batch.documents import MAX_FILE_BYTES
from hga.tools.batch.inputs import Input
from hga.tools.batch.journal import Journal, Record
from hga.tools.batch.outputs import Outputs
from hga.tools.interrupt import Interrupt

READ_AHEAD: Final = 8
READ_AHEAD_BYTES: Final = 32 << 20
_WRITE_BEHIND: Final = 8
_POLL_S: Final = 0.2

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that could not be read."""

    input: Input
    reason: str


def _open_regular(path: str, flags: int) -> int:
    """A descriptor of a file that is one still: a pipe put in its place since the inputs were
    listed would be waited for without end, by Ctrl-C too."""
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file any more")
    return fd


class _End:
    """All inputs were read."""


class Pipeline(Generic[Item]):
    """Iterate it for what `load` made of each input, in order, or Unread; give what came of them
    to `store`. Close it, or leave its `with` block, to wait for what is still to be written."""

    def __init__(
        self,
        inputs: Iterable[Input],
        load: Callable[[Input, bytes, Callable[[], bool]], Item],
        outputs: Outputs,
        journal: Journal,
        stop: Interrupt,
    ) -> None:
        """load: called on threads of the loop with a file, its bytes, and what tells that nobody
        waits for it any more; stop: ends the iteration."""
        self._inputs = inputs
        self._load = load
        self._outputs = outputs
        self._journal = journal
        self._stop = stop
        self._closing = False
        self._ready: queue.SimpleQueue[tuple[Item | Unread, int] | Exception | type[_End]] = (
            queue.SimpleQueue()
        )
        self._n_held = self._held_bytes = 0
        self._pending: deque[Future[None]] = deque()
        self._loop = asyncio.new_event_loop()
        self._room = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._reading = asyncio.run_coroutine_threadsafe(self._read_all(), self._loop)

    def __iter__(self) -> Iterator[Item | Unread]:
        while not self._stop.requested:
            try:
                ready = self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                self._raise_failures()
                continue
            if isinstance(ready, Exception):
                raise ready
            if not isinstance(ready, tuple):
                return
            item, n_bytes = ready
            yield item
            asyncio.run_coroutine_threadsafe(self._release(n_bytes), self._loop)

    def store(self, record: Record, text: str | None = None) -> None:
        """Write an answer to its output, where it has one, and the record to the journal; raises
        the OSError of an earlier call."""
        self._pending.append(
            asyncio.run_coroutine_threadsafe(self._store(record, text), self._loop)
        )
        while len(self._pending) > _WRITE_BEHIND:
            self._pending.popleft().result()
        self._raise_failures()

    def flush(self) -> None:
        """Wait until all is written; raises the first OSError."""
        while self._pending:
            self._pending.popleft().result()

    def join(self, names: Iterable[str]) -> None:
        """Write the one file of all answers of these inputs, where that is asked for."""
        self.flush()
        joined = self._outputs.join(names, self._journal.records)
        asyncio.run_coroutine_threadsafe(joined, self._loop).result()

    def close(self) -> None:
        """Stop reading, finish what is being written and end the thread."""
        self._closing = True
        self._reading.cancel()
        for future in self._pending:
            # A failure was raised already, or is being raised by what led here.
            future.exception()
        self._pending.clear()
        asyncio.run_coroutine_threadsafe(self._settle(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "Pipeline[Item]":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _raise_failures(self) -> None:
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    async def _read_all(self) -> None:
        try:
            for each in self._inputs:
                held = min(each.n_bytes, MAX_FILE_BYTES)
                await self._take_room(held)
                self._ready.put((await self._read(each), held))
            self._ready.put(_End)
        except Exception as error:
            self._ready.put(error)

    async def _take_room(self, n_bytes: int) -> None:
        def has_room() -> bool:
            fits = self._n_held < READ_AHEAD and self._held_bytes + n_bytes <= READ_AHEAD_BYTES
            return fits or self._n_held == 0

        async with self._room:
            await self._room.wait_for(has_room)
            self._n_held += 1
            self._held_bytes += n_bytes

    async def _release(self, n_bytes: int) -> None:
        async with self._room:
            self._n_held -= 1
            self._held_bytes -= n_bytes
            self._room.notify_all()

    async def _read(self, each: Input) -> Item | Unread:
        try:
            async with aiofiles.open(each.path, "rb", opener=_open_regular) as file:
                # One byte more than is read of any file tells that there is more.
                data = await file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            return Unread(each, error.strerror or str(error))
        return await asyncio.to_thread(self._load, each, data, self._abandoned)

    def _abandoned(self) -> bool:
        return self._closing or self._stop.requested

    async def _store(self, record: Record, text: str | None) -> None:
        async with self._writing:
            if record.output and text is not None:
                await self._outputs.write(record.input, text)
            await asyncio.to_thread(self._journal.append, record)

    async def _settle(self) -> None:
        """Let tasks that were cancelled end, and the threads with them."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()
