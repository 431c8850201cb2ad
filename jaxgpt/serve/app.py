"""The routes: OpenAI's chat completions, completions and models; /health, /metrics and the page.

A request becomes prompts, each prompt one or more streams of the backend, and these one answer, whole or streamed. When
the client leaves, its streams are cancelled.
"""

import asyncio
import contextlib
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from jaxgpt.serve import faults
from jaxgpt.serve.answers import DONE, Answer, ChatAnswer, TextAnswer, error_event, event, to_json, usage_of
from jaxgpt.serve.backend import Backend, BrokenModel, QueueFull, Unsupported
from jaxgpt.serve.bodies import ChatBody, CompletionBody, read_body
from jaxgpt.serve.choices import Choice, Piece, run_choices
from jaxgpt.serve.faults import ApiError
from jaxgpt.serve.gate import Gate, Limits, read_limited
from jaxgpt.serve.meter import Meter
from jaxgpt.serve.page_files import page_routes
from jaxgpt.serve.prompts import Prompt, chat_prompt, completion_prompts, settings_of

Result = TypeVar("Result")
STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
LAST_WORD_S = 1.0
"""For a client that does not read to take the event that says why its stream ends."""


class ClientGone(Exception):
    """Nobody waits for the answer."""


@dataclass
class State:
    """What the routes share.

    Attributes:
      n_requests: that are being answered by the model.
      is_draining: new ones are refused with 503.
    """

    backend: Backend
    limits: Limits
    meter: Meter
    n_requests: int = 0
    is_draining: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass
class Job:
    """A request that was accepted: its choices are with the backend.

    Attributes:
      n_best: of the choices of each prompt, so many of the most likely are answered; None: all.
    """

    state: State
    answer: Answer
    choices: list[Choice]
    n_prompt_tokens: int
    n_best: int | None

    def usage(self) -> dict[str, int]:
        return usage_of(self.n_prompt_tokens, sum(choice.n_tokens for choice in self.choices))

    def __post_init__(self) -> None:
        self.state.n_requests += 1
        self.state.meter.count_prompt(self.n_prompt_tokens)

    def end(self) -> None:
        """After its answer, or in place of it. Called once."""
        self.state.n_requests -= 1
        for choice in self.choices:
            choice.cancel()
            self.state.meter.count_choice(choice)


def make_app(
    backend: Backend,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    origins: tuple[str, ...] = (),
    is_loopback: bool = True,
) -> Starlette:
    """The application. Its `state.shared` is the `State`. See `Gate` for the arguments."""
    state = State(backend, limits or Limits(), Meter(backend))
    routes = [
        Route("/v1/chat/completions", _counted(state, _chat), methods=["POST"]),
        Route("/v1/completions", _counted(state, _complete), methods=["POST"]),
        Route("/v1/models", _counted(state, _list_models), methods=["GET"]),
        Route("/v1/models/{id:path}", _counted(state, _show_model), methods=["GET"]),
        Route("/health", _health, methods=["GET"]),
        Route("/metrics", _metrics, methods=["GET"]),
        *page_routes(),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Gate, api_key=api_key, origins=origins, is_loopback=is_loopback)],
        exception_handlers={HTTPException: _explain_route, ApiError: _explain},
    )
    app.router.redirect_slashes = False
    app.state.shared = state
    return app


# The routes


async def _chat(request: Request, state: State) -> Response:
    body = read_body(ChatBody, await read_limited(request, state.limits))
    _check_model(body.model, state)
    prompt = await asyncio.to_thread(chat_prompt, body, state.backend)
    answer = ChatAnswer(
        state.backend.model_name, state.backend.tokenizer,
        has_logprobs=bool(body.logprobs), has_usage_chunk=body.has_usage_chunk,
    )  # fmt: skip
    return await _respond(request, _submit(state, body, [prompt], answer), bool(body.stream))


async def _complete(request: Request, state: State) -> Response:
    body = read_body(CompletionBody, await read_limited(request, state.limits))
    _check_model(body.model, state)
    prompts = await asyncio.to_thread(completion_prompts, body, state.backend)
    answer = TextAnswer(
        state.backend.model_name, state.backend.tokenizer,
        has_logprobs=body.logprobs is not None, has_usage_chunk=body.has_usage_chunk,
    )  # fmt: skip
    return await _respond(request, _submit(state, body, prompts, answer), bool(body.stream))


async def _list_models(request: Request, state: State) -> Response:
    return JSONResponse({"object": "list", "data": [_model(state)]})


async def _show_model(request: Request, state: State) -> Response:
    _check_model(request.path_params["id"], state)
    return JSONResponse(_model(state))


async def _health(request: Request) -> Response:
    state: State = request.app.state.shared
    backend = state.backend
    status = "draining" if state.is_draining else "ok"
    found = {"status": status, "model": backend.model_name, "active": backend.n_active, "waiting": backend.n_waiting}
    return JSONResponse(found, 503 if state.is_draining else 200)


async def _metrics(request: Request) -> Response:
    return Response(request.app.state.shared.meter.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(state: State) -> dict[str, Any]:
    """With two fields that OpenAI's has not: whether it chats, and its context in tokens."""
    backend = state.backend
    found = {"id": backend.model_name, "object": "model", "created": state.created, "owned_by": "jaxgpt"}
    return {**found, "is_chat": backend.is_chat, "context_tokens": backend.n_context}


def _check_model(name: str, state: State) -> None:
    if name != state.backend.model_name:
        message = f"model={name[:80]!r} is not here; this server has {state.backend.model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


# From a body to an answer


def _submit(state: State, body: ChatBody | CompletionBody, prompts: list[Prompt], answer: Answer) -> Job:
    """Hands every text of the request to the backend, or none.

    Raises:
      ApiError: 400 too many texts or not supported; 429.
    """
    backend = state.backend
    n_drawn = body.n_drawn if isinstance(body, CompletionBody) else body.n_choices
    if len(prompts) * n_drawn > backend.n_capacity:
        raise faults.bad_request(
            f"{len(prompts)} prompts x n={n_drawn} are more than the {backend.n_capacity} texts that this server "
            "generates and queues; ask for fewer", "n",
        )  # fmt: skip
    is_echo = isinstance(body, CompletionBody) and bool(body.echo)
    choices: list[Choice] = []
    asked = [(prompt, settings_of(body, prompt, backend)) for prompt in prompts]
    try:
        for prompt, settings in asked:
            for sample in range(n_drawn):
                stream = backend.submit(prompt.ids, replace(settings, sample=sample))
                choices.append(
                    Choice(
                        len(choices),
                        prompt,
                        stream,
                        backend.tokenizer,
                        body.stops,
                        is_echo=is_echo,
                        is_prompt_scored=settings.is_prompt_scored,
                    )
                )
    except (QueueFull, Unsupported) as error:
        for choice in choices:
            choice.cancel()
        if isinstance(error, Unsupported):
            raise faults.bad_request(f"{error.name} is not supported by this model", error.name) from error
        raise faults.busy("the queue is full; ask again") from error
    n_prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
    return Job(state, answer, choices, n_prompt_tokens, body.n_choices if n_drawn > body.n_choices else None)


async def _respond(request: Request, job: Job, is_stream: bool) -> Response:
    if is_stream:
        return _EventStream(job)
    deadline_s = job.state.limits.deadline_s
    try:
        async with asyncio.timeout(deadline_s):
            return await _unless_gone(request.receive, _collect(job))
    except TimeoutError:
        raise faults.late(deadline_s) from None
    finally:
        job.end()


async def _collect(job: Job) -> Response:
    """The whole answer."""
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in job.choices}

    async def keep(choice: Choice, piece: Piece) -> None:
        pieces[choice.index].append(piece)

    await run_choices(job.choices, keep)
    chosen = job.choices
    if job.n_best is not None:
        groups: dict[int, list[Choice]] = {}
        for choice in job.choices:
            groups.setdefault(id(choice.prompt), []).append(choice)
        chosen = [choice for group in groups.values() for choice in sorted(group, key=_cost)[: job.n_best]]
    texts = []
    for choice in chosen:
        parts = pieces[choice.index]
        tokens = [placed for piece in parts for placed in piece.tokens]
        texts.append((choice, Piece("".join(piece.text for piece in parts), tokens)))
    return Response(to_json(job.answer.whole(texts, job.usage())), media_type="application/json")


def _cost(choice: Choice) -> float:
    """Nats per token."""
    return -choice.logprob / max(choice.n_tokens, 1)


class _EventStream(Response):
    """The answer as server-sent events, each as soon as its text is there."""

    def __init__(self, job: Job):
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _unless_gone(receive, self._stream(send))
        except ClientGone:
            self._job.state.meter.count_disconnect()
        finally:
            self._job.end()

    async def _stream(self, send: Send) -> None:
        """However the generation ends, the stream ends with an event that says so."""

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        end, deadline_s = DONE, self._job.state.limits.deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                await self._write_choices(write)
        except TimeoutError:
            end = error_event(faults.late(deadline_s).body)
        except BrokenModel as error:
            end = error_event(faults.broken_model(str(error)).body)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            end = error_event(faults.broken().body)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S if end is not DONE else deadline_s):
                await write(end)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_choices(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        answer, job = self._job.answer, self._job

        async def emit(choice: Choice, piece: Piece) -> None:
            if piece.text or piece.tokens:
                await write(event(answer.chunk(choice, piece)))

        for choice in job.choices:
            if (first := answer.first_chunk(choice)) is not None:
                await write(event(first))
        await run_choices(job.choices, emit)
        for choice in job.choices:
            await write(event(answer.last_chunk(choice)))
        if (usage := answer.usage_chunk(job.usage())) is not None:
            await write(event(usage))


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result; it is cancelled when the client disconnects.

    Raises:
      ClientGone
    """

    async def wait_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    gone, job = asyncio.create_task(wait_gone()), asyncio.create_task(work)
    try:
        await asyncio.wait({gone, job}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGone
        return job.result()
    finally:
        gone.cancel()
        job.cancel()
        await asyncio.gather(gone, job, return_exceptions=True)


# What goes wrong


def _counted(
    state: State, route: Callable[[Request, State], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """The route with its answers counted, and everything that it raises turned into an answer."""

    async def answer(request: Request) -> Response:
        try:
            if state.is_draining:
                raise faults.draining()
            response = await route(request, state)
        except ApiError as error:
            response = error.response()
        except BrokenModel as error:
            response = faults.broken_model(str(error)).response()
        except (ClientGone, ClientDisconnect):
            state.meter.count_disconnect()
            response = Response(status_code=499)  # nobody reads it
        except Exception:
            traceback.print_exc(file=sys.stderr)
            response = faults.broken().response()
        state.meter.count_answer(route.__name__.strip("_"), response.status_code)
        return response

    return answer


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _explain_route(request: Request, error: Exception) -> Response:
    """Starlette's 404 and 405."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return faults.no_route(request).response()
    message = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return ApiError(error.status_code, message, headers=error.headers).response()
