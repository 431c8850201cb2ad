"""What the tests of `prepare` share: running it, looking at what it wrote, and a server that misbehaves."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jaxgpt.data.shards import open_dataset, verify
from jaxgpt.data.tokenizer import tokenizer_from_json
from jaxgpt.errors import InputError
from jaxgpt.prepare import __main__ as prepare

DOCUMENTS = [f"Document {i}, which says: {'tick ' * (i % 7)}{chr(960 + i)}.\n" * (1 + i % 3) for i in range(40)]


BAD_LENGTH = "abc"
COMMIT = "ab" * 20
"""What a `Server` says that main is."""


def run(*args) -> int:
    return prepare.main([str(arg) for arg in args])


def refused(*args) -> str:
    with pytest.raises(InputError) as error:
        run(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def texts(directory) -> dict[str, str]:
    """The text of each split, decoded from the shards, after the checks that training makes."""
    data = open_dataset(directory)
    verify(data)
    tokenizer = tokenizer_from_json(data.tokenizer_json)
    return {s.name: tokenizer.decode(s.read(0, s.n_tokens)) for s in (data.train, data.val)}


def manifest(directory) -> dict:
    return json.loads(Path(directory, "manifest.json").read_text())


def write_jsonl(path, documents=DOCUMENTS, field="text"):
    Path(path).write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in documents))


def leftovers(directory=".") -> list[str]:
    return sorted(str(p) for p in Path(directory).rglob("*") if p.suffix in (".tmp", ".part") or p.name == "lock")


def write_parquet(path, documents, column="text"):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"id": list(range(len(documents))), column: documents}), path, row_group_size=7)


class Server:
    """Serves `files` on 127.0.0.1. `plan` holds what to do with the next requests; after it, all goes well."""

    def __init__(self, files: dict[str, bytes], plan=()):
        self.files, self.plan, self.log = files, list(plan), []
        self.sums: dict[str, str] = {}  # SHA-256 that the server claims, where it is not the content's
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def do_HEAD(self):
                outer.answer_head(self)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def answer_head(self, request):
        """What the hub says about a file; not logged, and no part of the plan."""
        name = request.path.rpartition("/")[2]
        content = self.files.get(name)
        request.close_connection = True
        request.send_response(200 if content is not None else 404)
        if content is not None:
            pinned = re.search("/resolve/([0-9a-f]{40})/", request.path)
            request.send_header("X-Repo-Commit", pinned[1] if pinned else COMMIT)
            request.send_header("X-Linked-ETag", f'"{self.sums.get(name) or hashlib.sha256(content).hexdigest()}"')
        else:
            request.send_header("X-Error-Code", "EntryNotFound")
        request.send_header("Content-Length", str(len(content or b"")))
        request.end_headers()

    def answer(self, request):
        wanted = request.headers.get("Range")
        self.log.append((request.path.rpartition("/")[2], wanted))
        action = self.plan.pop(0) if self.plan else "serve"
        request.close_connection = True
        content = self.files.get(request.path.rpartition("/")[2])
        if content is None or isinstance(action, int):
            request.send_response(404 if content is None else action)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        begin = int(wanted[6:-1]) if wanted and action != "ignore range" else 0
        if begin >= len(content):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if begin else 200)
        if begin:
            shift = 1 if action == "wrong range" else 0
            request.send_header("Content-Range", f"bytes {begin + shift}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", BAD_LENGTH if action == "bad length" else str(len(content) - begin))
        request.end_headers()
        body = content[begin:]
        request.wfile.write(body[: len(body) // 2] if action == "cut" else body)
