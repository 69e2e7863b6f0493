"""The command `hga serve`: open the model, listen, serve until a signal."""

import argparse
import errno
import os
import signal
import socket
import sys
from contextlib import closing

from hga.tools.errors import OK, UsageError, message
from hga.tools.run import engine_options, open_engine
from hga.tools.status import Status

# Replies under way get so long to finish after SIGTERM or Ctrl-C.
_GRACE_S = 5
_MAX_HEADER_BYTES = 32 << 10


def serve(model: str | None, values: argparse.Namespace, status: Status) -> int:
    """The command; returns the exit code."""
    try:
        import uvicorn

        from hga.tools.server.app import Service, build_app
        from hga.tools.server.protocol import PatientProtocol
    except ImportError as error:
        raise UsageError(
            f"hga serve needs the package {error.name}, which is not installed: "
            "pip install 'hga[serve]'"
        ) from None
    from hga.tools.server.guard import Rules, is_loopback
    from hga.tools.server.worker import ModelWorker

    key = values.api_key
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key and key):
        raise UsageError("--api-key: expected printable ASCII characters without spaces around")
    listener = _listen(values.host, values.port)
    with (
        closing(listener),
        open_engine(model, engine_options(values), values, status) as engine,
        closing(ModelWorker(engine, values.queue)) as worker,
    ):
        # Built here, before threads could ask for them at once.
        engine.tokenizer, engine.template, engine.grammars  # noqa: B018
        name = values.alias or (model or "demo" if not _is_path(model) else engine.path.stem)
        loopback = is_loopback(values.host)
        service = Service(engine, worker, name, values.timeout)
        app = build_app(
            service,
            Rules(key, loopback, values.max_body),
            list(values.cors),
            lambda error: status.error(message(error)),
        )
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        if not loopback and key is None:
            status.notice(
                f"{host} can be reached by others, and no key is asked for: --api-key sets one"
            )
        status.notice(
            f"{name}: context {engine.ctx:,} tokens; {engine.backend}; attention "
            f"{engine.options.attention}\n"
            f"listening on http://{shown}:{port} (chat page there, OpenAI interface under /v1)"
        )
        config = uvicorn.Config(
            app,
            # What goes wrong is told by us, in one line.
            log_level="critical",
            access_log=False,
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_GRACE_S,
            h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            limit_concurrency=values.queue + 192,
        )
        # The server puts this back, and raises the signal once more, when it has stopped.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        uvicorn.Server(config).run([listener])
    return OK


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; UsageError where the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from None
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        helps = " (--port chooses another)" if error.errno == errno.EADDRINUSE else ""
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}{helps}") from None
    return listener


def _is_path(model: str | None) -> bool:
    return model is not None and (os.sep in model or "." in model)
