"""HTTP connections that are not waited for without end."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# From a connection, or the first byte of a further request on it, to the end of the request's head.
_HEAD_S = 20.0


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for a request's head for ever."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Some bytes came."""
        if self._idle and self._patience is None:
            self._wait()
        super().data_received(data)
        if not self._idle and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        if self.cycle is not None and not self.cycle.response_complete:
            # Whoever answers the request, which has turned out to be none, has nobody to write to.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            # There is an answer already, or half of one.
            self.transport.close()

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._patience = self.loop.call_later(_HEAD_S, self._give_up)

    def _give_up(self) -> None:
        self._patience = None
        if self._idle and not self.transport.is_closing():
            self.transport.close()
