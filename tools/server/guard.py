"""What stands before the application: who may ask, from where, and how much.

Plain ASGI, so that a body is counted as it arrives. docs/security.md has the reasons.
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from hga.tools.server.counts import Counts
from hga.tools.server.problems import ApiError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What answers without a key: the page, which holds no secret, and whether the server lives.
_OPEN = ("/", "/chat.js", "/chat.css", "/health")


@dataclass(frozen=True, slots=True)
class Rules:
    """key: what a client has to send, None: nothing; loopback: names of other hosts are refused;
    most_bytes: the longest body."""

    key: str | None
    loopback: bool
    most_bytes: int


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    return host in _LOOPBACK or host.startswith("127.")


class Guard:
    """Refuses a request before the application reads it."""

    def __init__(self, app: App, rules: Rules, counts: Counts) -> None:
        self._app, self._rules, self._counts = app, rules, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check_host(headers)
            self._check_key(scope, headers)
            self._check_kind(scope, headers)
            await self._app(scope, self._counted(headers, receive), send)
        except ApiError as error:
            self._counts.add(error)
            more = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            await JSONResponse(error.body(), error.status, more)(scope, receive, send)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        # A page on the web may give its own name our address; the name betrays it.
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.split(":")[0]
        if self._rules.loopback and not is_loopback(name):
            raise ApiError(403, f"host {host[:60]!r} is not this machine's", code="wrong_host")

    def _check_key(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        key = self._rules.key
        if key is None or scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            return
        given = headers.get(b"authorization", b"")
        expected = b"Bearer " + key.encode()
        if not hmac.compare_digest(given, expected):
            raise ApiError(
                401,
                "a valid API key is needed: Authorization: Bearer KEY",
                kind="authentication_error",
                code="invalid_api_key",
            )

    def _check_kind(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        # A form of another site can send text/plain unasked, but no JSON.
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            raise ApiError(415, "expected Content-Type: application/json", code="wrong_type")

    def _counted(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        most, total = self._rules.most_bytes, 0
        error = ApiError(413, f"the body is longer than {most:,} bytes", code="request_too_large")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            raise error

        async def counted() -> MutableMapping[str, Any]:
            nonlocal total
            event = await receive()
            total += len(event.get("body", b""))
            if total > most:
                raise error
            return event

        return counted
