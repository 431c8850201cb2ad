"""What stands before every route: who may ask, from where, and how much may be sent.

A page of another site can make a browser send requests to a server on this machine. So a request that names an origin
must come from this server's own page or from an origin that was allowed, and a server on loopback answers only to
loopback's names: a foreign name that was pointed at 127.0.0.1 is refused.
"""

import asyncio
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxgpt.serve.faults import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Limits:
    """Bounds of a request.

    Attributes:
      body_bytes: of a body, counted while it is read.
      body_s: for the whole body to arrive.
      deadline_s: for an answer, from its request on, waiting included.
    """

    body_bytes: int = 1 << 20
    body_s: float = 30.0
    deadline_s: float = 600.0


N_DISCARDED = 16
"""A body that is too long is read on and discarded, up to so many times the limit: a client whose bytes nobody reads
sees its connection reset, and not the answer."""


async def read_limited(request: Request, limits: Limits) -> bytes:
    """The body.

    Raises:
      ApiError: 413 or 408.
    """
    body, n_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                n_bytes += len(part)
                if n_bytes <= limits.body_bytes:
                    body += part
                elif n_bytes > N_DISCARDED * limits.body_bytes:
                    break
        if n_bytes > limits.body_bytes:
            message = f"the body has more than {limits.body_bytes} bytes"
            raise ApiError(413, message, headers={"Connection": "close"})
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_s:g} s"
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    return bytes(body)


class Gate:
    """ASGI middleware: checks Host, Origin and key, and answers CORS for the origins that are allowed."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, origins: tuple[str, ...], is_loopback: bool):
        """
        Args:
          api_key: that /v1 and /metrics need; None: none.
          origins: pages of other sites that may call, such as https://chat.example.
        """
        self._app, self._api_key, self._origins, self._is_loopback = app, api_key, origins, is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        origin = request.headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        try:
            self._check(request, origin if is_foreign else None)
        except ApiError as error:
            await error.response()(scope, receive, self._marked(send, origin if is_foreign else None))
            return
        if is_foreign and request.method == "OPTIONS":
            headers = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "600"}
            headers["Access-Control-Allow-Headers"] = request.headers.get("access-control-request-headers", "")
            await Response(status_code=204, headers=headers)(scope, receive, self._marked(send, origin))
            return
        await self._app(scope, receive, self._marked(send, origin if is_foreign else None))

    def _check(self, request: Request, foreign_origin: str | None) -> None:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if self._is_loopback and host not in LOOPBACK:
            raise ApiError(403, "this server answers to localhost only; --host names another address", code="host")
        if foreign_origin is not None and foreign_origin not in self._origins:
            raise ApiError(403, "pages of this origin may not call; --allow-origin allows one", code="origin")
        needs_key = request.url.path.startswith("/v1/") or request.url.path == "/metrics"
        if self._api_key is None or not needs_key or request.method == "OPTIONS":
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.strip().encode(), self._api_key.encode())
        if scheme.lower() != "bearer" or not is_right:
            message = "the API key is missing or wrong; send Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _marked(self, send: Send, origin: str | None) -> Send:
        """With the headers of CORS, where a foreign page that is allowed asked."""
        if origin not in self._origins:
            return send

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Access-Control-Allow-Origin"] = origin
                headers.add_vary_header("Origin")
            await send(message)

        return marked
