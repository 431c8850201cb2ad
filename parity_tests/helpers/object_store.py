"""An S3 server in a thread, and a proxy before it that kills a process between two requests, or answers instead."""

import contextlib
import http.client
import logging
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jaxgpt.stores import Store

BUCKET = "bucket-of-tests"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}  # fmt: skip


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A server with one bucket; its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("PUT", f"/{BUCKET}")
        assert connection.getresponse().status == 200
        connection.close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextlib.contextmanager
def environment_of(address: str, cache: Any) -> Iterator[None]:
    """os.environ, for an endpoint with credentials and a cache of its own."""
    before = dict(os.environ)
    os.environ.update(CREDENTIALS | {"AWS_ENDPOINT_URL": address, "XDG_CACHE_HOME": str(cache)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def content(location: str) -> dict[str, int]:
    """Name -> size of the objects below a location."""
    return {name: entry.size_bytes for name, entry in Store(location).list().items()}


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error."""


class Proxy:
    """Forwards requests to a server, and counts them.

    Attributes:
      address: of the proxy.
      requests: method and path of each one.
      kill_at: the number of the request at which `victim` is killed, from 1; 0: none.
      is_after: kill when the server has done it, not before it has seen it.
      answer: status and body that are given instead of the server's; status 0 cuts the connection.
    """

    def __init__(self, server: str):
        self.requests: list[str] = []
        self.kill_at, self.is_after, self.victim = 0, False, 0
        self.answer: tuple[int, bytes] | None = None
        self._server, self._lock = server.removeprefix("http://"), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                with contextlib.suppress(OSError):  # the victim is gone
                    proxy._handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = QuietServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = _read_body(handler)
        with self._lock:
            self.requests.append(f"{handler.command} {handler.path}")
            is_due = len(self.requests) == self.kill_at
        if is_due and not self.is_after:
            self._kill(handler)
            return
        if self.answer:
            status, answer = self.answer
            if not status:
                handler.close_connection = True
                handler.connection.close()
                return
            _respond(handler, status, {"Content-Type": "application/xml"}, answer)
            return
        connection = http.client.HTTPConnection(self._server, timeout=60)
        left_out = ("transfer-encoding", "expect", "content-length")
        headers = {key: value for key, value in handler.headers.items() if key.lower() not in left_out}
        connection.request(handler.command, handler.path, body, headers | {"Content-Length": str(len(body))})
        response = connection.getresponse()
        answer = response.read()
        if is_due:
            self._kill(handler)
        else:
            _respond(handler, response.status, dict(response.getheaders()), answer)
        connection.close()

    def _kill(self, handler: BaseHTTPRequestHandler) -> None:
        os.kill(self.victim, signal.SIGKILL)
        handler.close_connection = True


def _read_body(handler: BaseHTTPRequestHandler) -> bytes:
    if "chunked" not in handler.headers.get("Transfer-Encoding", ""):
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    parts = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    while handler.rfile.readline().strip():
        pass
    return b"".join(parts)


def _respond(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response_only(status)
    length = headers.get("Content-Length", str(len(body))) if handler.command == "HEAD" else str(len(body))
    for key, value in headers.items():
        if key.lower() not in ("content-length", "transfer-encoding", "connection"):
            handler.send_header(key, value)
    handler.send_header("Content-Length", length)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
