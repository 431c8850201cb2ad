"""The server under load and abuse: answers are not mixed up, /health answers, slots are freed, SIGTERM drains."""

# ruff: noqa: E402 - the libraries are an extra
import asyncio
import json
import signal
import socket
import subprocess
import sys
import time

import pytest

for library in ("starlette", "uvicorn", "pydantic", "prometheus_client", "openai"):
    pytest.importorskip(library, reason=f"no {library}; the extras serve and dev have it")

import httpx

from jaxgpt.errors import InputError
from jaxgpt.serve import server as server_module
from jaxgpt.serve.gate import Limits
from jaxgpt.serve.server import open_socket
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.scripted_server import scripted_server

HEALTH_S = 0.5
"""Without other work it is some 10 ms; what blocks the loop blocks it for as long as an answer takes."""


@pytest.fixture(scope="module")
def served():
    with scripted_server() as found:
        yield found


@pytest.fixture(scope="module")
def strict():
    """A server that waits for nobody."""
    with scripted_server(limits=Limits(deadline_s=0.5, body_s=1.5)) as found:
        yield found


def body_of(question, **fields):
    return {"model": "scripted", "messages": [{"role": "user", "content": question}], **fields}


def raw(served, content):
    """A connection that has sent this."""
    host, _, port = served[0].removeprefix("http://").partition(":")
    opened = socket.create_connection((host, int(port)), timeout=30)
    opened.sendall(content)
    return opened


def head_of(n_bytes):
    return f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {n_bytes}\r\n\r\n".encode()


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


async def crowd(address, n_clients, n_each):
    """Each client asks for its own texts, whole or streamed. Returns (wanted, answered), and the refusals' waits."""
    answered, refused = [], []
    async with httpx.AsyncClient(base_url=address, timeout=30, limits=httpx.Limits(max_connections=None)) as client:

        async def ask(i):
            for j in range(n_each):
                key = f"client{i}x{j}" * 3
                answer = await client.post("/v1/chat/completions", json=body_of(f"say {key}", stream=bool(i % 2)))
                if answer.status_code == 429:
                    refused.append(answer.headers["retry-after"])
                    continue
                assert answer.status_code == 200
                answered.append((key, said(answer)))

        await asyncio.gather(*(ask(i) for i in range(n_clients)))
    return answered, refused


PROBE = """
import http.client, select, sys, time
times = []
while not select.select([sys.stdin], [], [], 0.02)[0]:
    begin = time.perf_counter()
    asked = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    asked.request("GET", "/health")
    assert asked.getresponse().status == 200
    times.append(time.perf_counter() - begin)
print(sorted(times)[len(times) // 2])
"""


def said(answer):
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json()["choices"][0]["message"]["content"]
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert chunks[-1]["finish_reason"] == "stop"
    return "".join(chunk["delta"].get("content", "") for chunk in chunks)


def test_64_clients_on_4_slots_get_their_own_answer_or_429():
    """/health is asked by a process of its own: the clients keep this one busy. Faults: C102."""
    started, address = start_process()
    probe = [sys.executable, "-c", PROBE, address.rpartition(":")[2]]
    with started, subprocess.Popen(probe, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probing:
        answered, refused = asyncio.run(crowd(address, 64, 2))
        median_s = float(probing.communicate("over\n")[0])
        started.terminate()
        assert started.communicate()[0] == "left\n"
    assert len(answered) + len(refused) == 128
    assert answered and all(key == text for key, text in answered)
    assert refused and set(refused) == {"1"}
    assert median_s < HEALTH_S


@pytest.mark.parametrize("is_stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_slots(served, is_stream):
    """Faults: C101."""
    content = json.dumps(body_of("slow 500", stream=is_stream, n=2)).encode()
    head = head_of(len(content)).replace(b"completions", b"chat/completions")
    opened = raw(served, head + content)
    assert wait_for(lambda: served[1].n_active == 2)
    opened.close()
    assert wait_for(lambda: served[1].n_active == 0, 5), "still generating, for nobody"
    assert served[2].n_requests == 0
    assert "jaxgpt_disconnects_total" in httpx.get(f"{served[0]}/metrics").text


def test_a_deadline_ends_an_answer(strict):
    begin = time.perf_counter()
    answer = httpx.post(f"{strict[0]}/v1/chat/completions", json=body_of("slow 500"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    streamed = httpx.post(f"{strict[0]}/v1/chat/completions", json=body_of("slow 500", stream=True))
    assert streamed.text.rpartition("event: error\ndata: ")[2].startswith('{"error":{"message":"no full answer')
    assert time.perf_counter() - begin < 15  # the whole answers take 20
    assert wait_for(lambda: strict[1].n_active == 0)


def test_bodies_that_are_too_long_or_never_come(strict):
    """Faults: C100, C103."""
    with raw(strict, head_of(10 << 20) + b"x" * (10 << 20)) as opened:
        assert b" 413 " in opened.recv(100)
    with raw(strict, head_of(17 << 20) + b"x" * ((16 << 20) + 1)) as opened:
        assert b" 413 " in opened.recv(100)
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with raw(strict, chunked + b"100001\r\n" + b"x" * 0x100001 + b"\r\n0\r\n\r\n") as opened:
        assert b" 413 " in opened.recv(100)
    with raw(strict, head_of(100)) as opened:
        assert b" 408 " in opened.recv(100)
    with raw(strict, b"\x16\x03\x01 no HTTP \xff\r\n\r\n") as opened:
        assert b" 400 " in opened.recv(100)


def test_a_connection_without_a_request_is_closed(served, monkeypatch):
    """Faults: C103."""
    monkeypatch.setattr(server_module, "HEADERS_S", 0.2)
    with raw(served, b"POST /v1/completions HTTP/1.1\r\nHost:") as opened:
        assert opened.recv(100) == b""


def test_a_port_in_use_is_one_line(served):
    """Faults: C104."""
    port = int(served[0].rpartition(":")[2])
    with pytest.raises(InputError, match=rf"--host=127\.0\.0\.1 --port={port} cannot be listened on: .*in use"):
        open_socket("127.0.0.1", port)
    with pytest.raises(InputError, match=r"--host=no\.such\.host\.invalid"):
        open_socket("no.such.host.invalid", 0)


def test_small_pieces_are_sent_at_once():
    """Nagle's algorithm is off: with it, an answer on a connection that is kept comes 40 ms late."""
    with open_socket("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_metrics_count(served):
    before = httpx.get(f"{served[0]}/metrics").text
    httpx.post(f"{served[0]}/v1/completions", json={"model": "scripted", "prompt": "say hello"})
    after = httpx.get(f"{served[0]}/metrics").text

    def value(text, name):
        return float(next((line.split()[-1] for line in text.splitlines() if line.startswith(name)), 0))

    for name, n in (
        ("generated_tokens_total", 5),
        ("prompt_tokens_total", 10),
        ('requests_total{route="complete",status="200"', 1),
    ):
        assert value(after, f"jaxgpt_{name}") - value(before, f"jaxgpt_{name}") == n, name


def start_process():
    command = [sys.executable, "-m", "parity_tests.helpers.scripted_server", "0"]
    started = subprocess.Popen(
        command, cwd=REPO, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    return started, f"http://127.0.0.1:{int(started.stdout.readline())}"


def test_sigterm_drains():
    started, address = start_process()
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body_of("slow 40", stream=True)) as streamed:
        lines = streamed.iter_lines()
        next(lines)
        started.send_signal(signal.SIGTERM)
        assert wait_for(lambda: httpx.get(f"{address}/health").status_code == 503)
        refused = httpx.post(f"{address}/v1/chat/completions", json=body_of("hi"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert "retry-after" in refused.headers
        assert "data: [DONE]" in list(lines), "the answer that was on its way did not end"
    out, errors = started.communicate(timeout=60)
    assert (started.returncode, out) == (0, "left\n")
    assert errors == "SIGTERM: finishing the answers that are on their way; send it again to quit at once\n"


def test_a_second_sigterm_quits_at_once():
    started, address = start_process()
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body_of("slow 500", stream=True)) as streamed:
        lines = streamed.iter_lines()  # while it is referenced, the connection stays
        next(lines)
        started.send_signal(signal.SIGTERM)
        assert wait_for(lambda: httpx.get(f"{address}/health").status_code == 503)
        started.send_signal(signal.SIGTERM)
        _, errors = started.communicate(timeout=60)
    assert started.returncode == 0 and errors.endswith("SIGTERM: quit at once\n")
