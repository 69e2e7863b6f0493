"""The application: routes, streams, and the way from a request to the model's thread and back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from hga.runtime.sampler import defaults
from hga.tools.server import wire
from hga.tools.server.guard import Guard, Rules
from hga.tools.server.problems import ApiError
from hga.tools.server.replies import ChatForm, Form, TextForm, event_line
from hga.tools.server.worker import Done, Event, Job, ModelWorker

if TYPE_CHECKING:
    from hga.runtime.engine import Engine

_PAGE = {
    "/": ("chat.html", "text/html; charset=utf-8"),
    "/chat.js": ("chat.js", "text/javascript; charset=utf-8"),
    "/chat.css": ("chat.css", "text/css; charset=utf-8"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_RETRY_S = "2"
# A request's body has to be there so soon after its head.
_BODY_S = 30


class Service:
    """What the routes share: the engine, its worker and the model's name."""

    def __init__(self, engine: "Engine", worker: ModelWorker, name: str, timeout_s: float) -> None:
        self.engine, self.worker, self.name = engine, worker, name
        self._timeout_s = timeout_s
        self._defaults = defaults(engine.generation)
        self._begin = int(time.time())

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = wire.decode(await self._body(request), wire.ChatRequest)
        wanted = await asyncio.to_thread(wire.chat, body, self.engine, self._defaults)
        return await self._answer(request, wanted, ChatForm(self.name))

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = wire.decode(await self._body(request), wire.CompletionRequest)
        wanted = await asyncio.to_thread(wire.completion, body, self.engine, self._defaults)
        return await self._answer(request, wanted, TextForm(self.name))

    async def _body(self, request: Request) -> bytes:
        # A full queue is no reason to read, and to render, what cannot be served.
        self.worker.require_room()
        try:
            return await asyncio.wait_for(request.body(), _BODY_S)
        except ClientDisconnect:
            raise ApiError(499, "the client has gone", kind="cancelled") from None
        except TimeoutError:
            raise ApiError(
                408, f"the body was not there after {_BODY_S} s", kind="timeout", code="timeout"
            ) from None

    async def models(self, request: Request) -> Response:
        """GET /v1/models and /v1/models/ID."""
        found = {
            "id": self.name,
            "object": "model",
            "created": self._begin,
            "owned_by": "hga",
            "context_length": self.engine.ctx,
        }
        name = request.path_params.get("name")
        if name is None:
            return JSONResponse({"object": "list", "data": [found]})
        if name != self.name:
            raise ApiError(404, f"there is no model {name[:60]!r}", code="model_not_found")
        return JSONResponse(found)

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        worker = self.worker
        text = worker.counts.text(worker.n_waiting, worker.busy, self.engine.resident_bytes())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _answer(self, request: Request, wanted: wire.Wanted, form: Form) -> Response:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

        def emit(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(wanted, emit, time.monotonic() + self._timeout_s)
        self.worker.submit(job)
        coming = _Coming(job, events, asyncio.create_task(_disconnected(request)))
        try:
            # The first event is awaited here, so that what goes wrong early has its own status.
            first = await coming.next()
            if wanted.stream:
                return StreamingResponse(
                    _lines(coming, form, first),
                    media_type="text/event-stream",
                    headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
                )
            pieces, event = [], first
            while isinstance(event, str):
                pieces.append(event)
                event = await coming.next()
        except BaseException:
            coming.close()
            raise
        coming.close()
        return JSONResponse(form.whole("".join(pieces), event))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Coming:
    """The events of a job while its client is there."""

    def __init__(self, job: Job, events: asyncio.Queue[Event], gone: asyncio.Task[None]) -> None:
        self.job, self._events, self._gone = job, events, gone

    async def next(self) -> str | Done:
        """The next event; raises its ApiError where it is one, or where the client has gone."""
        coming = asyncio.ensure_future(self._events.get())
        left = max(0.0, self.job.until - time.monotonic())
        try:
            await asyncio.wait(
                (coming, self._gone), timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if not coming.done():
                coming.cancel()
        if not coming.done() or coming.cancelled():
            self.job.cancelled.set()
            error = self.job.given_up()
            assert error is not None
            # The worker counts it when it comes to the job.
            error.counted = True
            raise error
        event = coming.result()
        if isinstance(event, ApiError):
            raise event
        return event

    def close(self) -> None:
        """Nobody waits for the reply any more; one that has ended does not mind."""
        self.job.cancelled.set()
        self._gone.cancel()


async def _lines(coming: _Coming, form: Form, first: str | Done) -> AsyncIterator[bytes]:
    """A reply as server-sent events; closing it cancels the job."""
    try:
        head, event = form.begin(), first
        if head is not None:
            yield event_line(head)
        while isinstance(event, str):
            yield event_line(form.piece(event))
            event = await coming.next()
        yield event_line(form.end(event))
        if coming.job.wanted.usage_in_stream:
            yield event_line(form.usage(event))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield event_line(error.body())
        yield b"data: [DONE]\n\n"
    finally:
        coming.close()


async def _page(request: Request) -> Response:
    name, kind = _PAGE[request.url.path]
    data = files("hga.tools.server").joinpath("page", name).read_bytes()
    return Response(data, media_type=kind, headers=_PAGE_HEADERS)


def build_app(
    service: Service, rules: Rules, origins: list[str], report: Callable[[Exception], None]
) -> Any:
    """The ASGI application. origins: of pages on other sites that may ask; report: told of what
    nobody planned."""
    counts = service.worker.counts

    async def api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        if not error.counted:
            counts.add(error)
        more = {"Retry-After": _RETRY_S} if error.status in (429, 503) else None
        return JSONResponse(error.body(), error.status, more)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return await api_error(request, ApiError(error.status_code, text))

    async def any_error(request: Request, error: Exception) -> Response:
        report(error)
        return await api_error(request, ApiError(500, "internal error", kind="server_error"))

    routes = [
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/completions", service.complete, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.models),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
        *(Route(path, _page) for path in _PAGE),
    ]
    middleware = []
    if origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
            )
        )
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={ApiError: api_error, HTTPException: http_error, Exception: any_error},
    )
    return Guard(app, rules, counts)
