"""A server of 4 slots under minutes of load and abuse, and what it did: a table for docs/serving.md.

64 clients ask and check that each gets its own text; beside them are slow readers, clients that leave, half-open
connections, bodies of 10 MB, bodies that are no JSON, and at the end 1,000 connections at once. /health is asked all
the time from a process of its own.

  python -m parity_tests.serve_abuse --seconds 120
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

PROBE = """
import http.client, select, sys, time
times = []
while not select.select([sys.stdin], [], [], 0.1)[0]:
    begin = time.perf_counter()
    asked = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
    asked.request("GET", "/health")
    assert asked.getresponse().status == 200
    times.append(time.perf_counter() - begin)
times.sort()
print(len(times), *(times[int(share * (len(times) - 1))] for share in (0.5, 0.99, 1)))
"""
BAD_BODIES = (b"{", b'{"model": "\xff\xfe"}', b"[" * 200_000, b'{"a":' * 100_000, b"null", b"\x00" * 1000)
Counts = collections.Counter[str]


PATH = "/v1/chat/completions"


async def request(port: int, body: bytes, *, slow: bool = False) -> tuple[int, bytes]:
    """Status and body of the answer, over a connection of its own. A slow reader reads 64 bytes at a time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        with contextlib.suppress(ConnectionError):  # the server may have answered before the body was sent
            writer.write(head.encode() + body)
            await writer.drain()
        data = b""
        while part := await reader.read(64 if slow else 65536):
            data += part
            await asyncio.sleep(0.01 if slow else 0)
        head_bytes, _, rest = data.partition(b"\r\n\r\n")
        return int(head_bytes.split()[1]), rest
    finally:
        writer.close()


def question(text: str, **fields: object) -> bytes:
    return json.dumps({"model": "scripted", "messages": [{"role": "user", "content": text}], **fields}).encode()


async def ask(port: int, counts: Counts, end: float, number: int) -> None:
    draw = random.Random(number)
    while time.monotonic() < end:
        key = f"{number}-{draw.random()}"
        is_stream, is_slow = draw.random() < 0.5, draw.random() < 0.1
        status, data = await request(port, question(f"say {key}", stream=is_stream), slow=is_slow)
        if status != 200:
            counts[f"answered {status}"] += 1
            await asyncio.sleep(draw.random() / 5)
        elif is_stream:
            events = [part for part in data.decode().split("data: ")[1:] if "[DONE]" not in part]
            deltas = [json.loads(part.split("\n\n")[0])["choices"][0]["delta"] for part in events]
            counts["right" if "".join(d.get("content", "") for d in deltas) == key else "MIXED UP"] += 1
        else:
            said = json.loads(data)["choices"][0]["message"]["content"]
            counts["right" if said == key else "MIXED UP"] += 1


async def abuse(port: int, counts: Counts, end: float, number: int) -> None:
    draw, kept = random.Random(number), []
    while time.monotonic() < end:
        kind = draw.choice(("bad", "big", "leave", "half"))
        with contextlib.suppress(ConnectionError):
            if kind == "bad":
                status, _ = await request(port, draw.choice(BAD_BODIES))
                counts[f"bad body: {status}"] += 1
            elif kind == "big":
                status, _ = await request(port, b"x" * (10 << 20))
                counts[f"10 MB body: {status}"] += 1
            else:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                body = question("slow 200", stream=True)
                n_bytes = len(body) if kind == "leave" else len(body) + 1
                writer.write(
                    f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {n_bytes}".encode()
                )
                writer.write(b"\r\n\r\n" + body)
                counts["left early" if kind == "leave" else "half-open"] += 1
                if kind == "leave":
                    await asyncio.sleep(draw.random() / 10)
                    writer.close()
                else:
                    kept.append(writer)
        await asyncio.sleep(0.2)
    for writer in kept:
        writer.close()


async def connect_many(port: int, counts: Counts) -> None:
    """1,000 connections that send nothing, and one that asks."""
    opened = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(1000)))
    status, _ = await request(port, question("say hi"))
    counts[f"with 1000 connections open: {status}"] += 1
    for _, writer in opened:
        writer.close()


async def run(port: int, seconds: float, counts: Counts, memory_mb: list[float], pid: int) -> None:
    begin = time.monotonic()
    end = begin + seconds
    tasks = [asyncio.create_task(ask(port, counts, end, i)) for i in range(64)]
    tasks += [asyncio.create_task(abuse(port, counts, end, 1000 + i)) for i in range(4)]
    while time.monotonic() < end:
        await asyncio.sleep(seconds / 8)
        memory_mb.append(resident_mb(pid))
    await asyncio.gather(*tasks)
    await connect_many(port, counts)


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    seconds = parser.parse_args().seconds
    command = [sys.executable, "-m", "parity_tests.helpers.scripted_server", "0"]
    counts: Counts = collections.Counter()
    memory_mb: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        probe = [sys.executable, "-c", PROBE, str(port)]
        with subprocess.Popen(probe, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probing:
            asyncio.run(run(port, seconds, counts, memory_mb, server.pid))
            health = probing.communicate("over\n")[0].split()
        server.terminate()
        left = server.communicate()[0].strip()
    for name, n in sorted(counts.items()):
        print(f"{n:>8,}  {name}")
    print(f"memory, MB, in eighths of the time: {', '.join(f'{mb:.0f}' for mb in memory_mb)}")
    median_ms, high_ms, most_ms = (1000 * float(value) for value in health[1:])
    print(f"/health, {health[0]} times: median {median_ms:.0f} ms, 99 % {high_ms:.0f} ms, longest {most_ms:.0f} ms")
    print(f"after SIGTERM: {left}, exit code {server.returncode}")


if __name__ == "__main__":
    main()
