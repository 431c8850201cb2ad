"""The answer to a request that cannot be served: OpenAI's error object, with the status its clients expect."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

RETRY_AFTER_S = 1
"""Clients double their wait by themselves."""


class ApiError(Exception):
    """An answer other than the one that was asked for.

    Args:
      message: one line, for people.
      kind: OpenAI's `type`.
      param: the field of the request that is at fault.
      code: for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def busy(message: str) -> ApiError:
    """429: the queue is full."""
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=_later(RETRY_AFTER_S))


def draining() -> ApiError:
    return ApiError(
        503, "the server is shutting down; ask again", kind="server_error", code="overloaded",
        headers=_later(5 * RETRY_AFTER_S),
    )  # fmt: skip


def late(deadline_s: float) -> ApiError:
    message = f"no full answer within deadline={deadline_s:g} s; ask for fewer tokens, or stream them"
    return ApiError(504, message, kind="server_error", code="deadline_exceeded")


def broken() -> ApiError:
    """500: a bug or a broken model. What it was is in the server's log only."""
    return ApiError(500, "the server failed at this request; its log says why", kind="server_error")


def broken_model(message: str) -> ApiError:
    """500: this text, and perhaps no other, is beyond the model."""
    return ApiError(500, message, kind="server_error", code="broken_model")


def no_route(request: Request) -> ApiError:
    return ApiError(404, f"no route {request.method} {request.url.path[:80]}", code="not_found")


def _later(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
