"""The server's process: uvicorn on one event loop, connections that send nothing closed, and a shutdown that drains.

After SIGTERM or Ctrl-C new requests get 503, those that are being answered get their answers, and then the process
leaves; a second signal ends it at once. Signals are jaxgpt's (`jaxgpt.signals`), not uvicorn's.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxgpt import signals
from jaxgpt.errors import InputError

HEADERS_S = 20.0
"""For a new connection to send the headers of its first request; after a request it is KEEP_ALIVE_S."""
KEEP_ALIVE_S = 30
DRAIN_S = 30.0
POLL_S = 0.05
DRAINING = signals.Phase("finishing the answers that are on their way; {again} to quit at once", 0, is_deferred=True)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1, where a connection that sends no request is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._silence = self.loop.call_later(HEADERS_S, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._silence.cancel()  # else the timer keeps the connection's buffers alive
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's, without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Starlette) -> Server:
    config = uvicorn.Config(
        app, http=BoundedProtocol, ws="none", lifespan="off", log_level="warning", access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S, timeout_graceful_shutdown=1, limit_concurrency=2000, server_header=False,
        h11_max_incomplete_event_size=64 << 10, proxy_headers=False, backlog=2048,
    )  # fmt: skip
    return Server(config)


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      InputError: the address cannot be used.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host={host} --port={port} cannot be listened on: {reason}; choose another") from error
    # Connections inherit it; asyncio sets it only for sockets that it made. Without it
    # the kernel keeps the second piece of an answer until the client acknowledges the first, 40 ms later.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


async def serve(app: Starlette, listening: socket.socket, *, drain_s: float = DRAIN_S) -> None:
    """Serves until a signal comes, then drains."""
    server = make_server(app)
    watch = asyncio.create_task(_drain_at_signal(app, server, drain_s))
    try:
        await server.serve(sockets=[listening])
    finally:
        watch.cancel()


async def _drain_at_signal(app: Starlette, server: Server, drain_s: float) -> None:
    state, loop = app.state.shared, asyncio.get_running_loop()
    while not signals.received():
        await asyncio.sleep(POLL_S)
    state.is_draining = True
    end = loop.time() + drain_s
    while state.n_requests and loop.time() < end:
        await asyncio.sleep(POLL_S)
    server.should_exit = True
