"""A server on 127.0.0.1 that speaks the Hugging Face hub's API as far as fetching and pushing models needs it.

Weights are in LFS: asking for one is redirected to another host (localhost instead of 127.0.0.1), as to the hub's CDN.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

COMMIT = "c0ffee" * 6 + "c0de"
TOKEN = "hf_right"


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer:
    """Repositories by OWNER/NAME (datasets/OWNER/NAME): name of a file -> content.

    Attributes:
      plan: what to do with the next requests for content ("cut", "drip", "hang", a status); after it, all goes well.
      plan_head, plan_put: the same for questions about files, and for weights that arrive.
      private, gated: names of repositories that need `TOKEN`, and that even it cannot read.
      log: method, path and Range of each request.
      tokens: host and Authorization of each request.
      lied: name of a file -> size that the hub claims.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.branches = {"main": COMMIT}
        self.plan: list = []
        self.plan_head: list = []
        self.plan_put: list = []
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.lied: dict[str, int] = {}
        self.log: list[tuple[str, str, str | None]] = []
        self.tokens: list[tuple[str, str | None]] = []
        self.uploaded: dict[str, bytes] = {}
        self.commits: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                with contextlib.suppress(OSError):
                    outer.answer(self)

            do_HEAD = do_GET = do_POST = do_PUT = handle_one

            def log_message(self, *args) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._is_over = threading.Event()
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._is_over.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, method: str) -> list[str]:
        return [path.rpartition("/")[2] for made, path, _ in self.log if made == method]

    # Answers

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, method = unquote(urlsplit(request.path).path), request.command
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if path == "/api/agent-harnesses":  # huggingface_hub asks for it once, to name itself
            return self.send(request, 404)
        self.log.append((method, path, request.headers.get("Range")))
        self.tokens.append((request.headers.get("Host", ""), request.headers.get("Authorization")))
        if found := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path):
            self.resolve(request, *found.groups())
        elif found := re.fullmatch("/cdn/([0-9a-f]{64})", path):
            contents = {
                hashlib.sha256(c).hexdigest(): c for files in self.repositories.values() for c in files.values()
            }
            self.send_content(request, contents | self.uploaded, found[1])
        elif found := re.fullmatch("/upload/([0-9a-f]{64})", path):
            if not self.misbehave(request, self.plan_put.pop(0) if self.plan_put else "serve"):
                self.uploaded[found[1]] = body
                self.send(request, 200)
        elif found := re.fullmatch("/api/(datasets/.+?)/revision/(.+)", path):
            self.list_files(request, *found.groups())
        else:
            self.api(request, method, path, body)
        return None

    def list_files(self, request, name: str, revision: str) -> None:
        """What the hub says about a revision of a data set."""
        if self.misbehave(request, self.plan_head.pop(0) if self.plan_head else "serve"):
            return
        if name not in self.repositories or revision not in self.branches:
            what = "Repo" if name not in self.repositories else "Revision"
            self.refuse(request, 404, f"{what}NotFound", f"{what} not found")
            return
        files = [{"rfilename": file} for file in self.repositories[name]]
        about = {"id": name.removeprefix("datasets/"), "sha": self.branches[revision], "siblings": files}
        self.send(request, 200, {**about, "private": False, "tags": [], "downloads": 0, "likes": 0})

    def resolve(self, request, name: str, revision: str, file: str) -> None:
        action = self.plan_head.pop(0) if self.plan_head and request.command == "HEAD" else "serve"
        if self.misbehave(request, action):
            return
        token = request.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}"):
            return self.refuse(request, 401, "", "Invalid credentials in Authorization header")
        if name not in self.repositories or (name in self.private and not token):
            return self.refuse(request, 404 if token else 401, "RepoNotFound", "Repository not found")
        if name in self.gated:
            return self.refuse(request, 403 if token else 401, "GatedRepo", "Access to this model is restricted")
        commit = self.branches.get(revision, revision)
        if commit not in self.branches.values():
            return self.refuse(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content, headers = self.repositories[name].get(file), {"X-Repo-Commit": commit}
        if content is None:
            return self.refuse(request, 404, "EntryNotFound", "Entry not found", headers)
        if not file.endswith((".safetensors", ".bin", ".parquet")):
            headers |= {"ETag": f'"{git_digest(content)}"'}
            return self.send_content(request, {file: content}, file, headers)
        sha256 = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(self.lied.get(file, len(content)))}
        return self.send(request, 302, headers=headers | {"Location": f"http://localhost:{self.port}/cdn/{sha256}"})

    def misbehave(self, request, action) -> bool:
        """Does what a plan says; False where that is to serve."""
        if isinstance(action, int):
            self.send(request, action, headers={"Connection": "close"})
        elif action == "hang":
            self._is_over.wait(20)
        elif action == "drip":
            request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self._is_over.is_set():
                request.wfile.write(b"x")
                self._is_over.wait(0.01)
        else:
            return False
        request.close_connection = True
        return True

    def send_content(self, request, contents: dict[str, bytes], name: str, headers: dict | None = None) -> None:
        action = self.plan.pop(0) if self.plan and request.command == "GET" else "serve"
        if action in ("hang",) or isinstance(action, int):
            self.misbehave(request, action)
            return
        content, wanted = contents[name], request.headers.get("Range")
        begin = int(wanted[6:-1]) if wanted else 0
        size = self.lied.get(name, len(content))
        body = content[begin:]
        if action == "damage":
            body = body[:-1] + bytes([body[-1] ^ 1])
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        for key, value in {**(headers or {}), "Content-Length": str(size - begin)}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        if action == "drip":
            while not self._is_over.is_set():
                request.wfile.write(b"x")
                self._is_over.wait(0.01)
        request.wfile.write(body[: len(body) // 2] if action == "cut" else body)
        request.close_connection = action == "cut"

    def refuse(self, request, status: int, code: str, message: str, headers: dict | None = None) -> None:
        self.send(request, status, headers={"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def send(self, request, status: int, value: object = None, headers: dict | None = None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        request.send_response(status)
        for key, text in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(key, text)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    # Pushing

    def api(self, request, method: str, path: str, body: bytes) -> None:
        action = self.plan.pop(0) if self.plan else "serve"
        if self.misbehave(request, action):
            return
        values = json.loads(body) if method == "POST" and body and not path.startswith("/api/models") else {}
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(request, 401, "", "Invalid credentials in Authorization header")
        elif path == "/api/whoami-v2":
            self.send(request, 200, {"name": "me", "type": "user", "orgs": [{"name": "us"}]})
        elif path == "/api/repos/create":
            name = f"{values.get('organization') or 'me'}/{values['name']}"
            is_new = name not in self.repositories
            if is_new and (values.get("visibility") == "private" or values.get("private")):
                self.private.add(name)
            self.repositories.setdefault(name, {})
            self.send(request, 200 if is_new else 409, {"url": f"{self.url}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.send(request, 200, {"errors": [], "warnings": []})
        elif found := re.fullmatch("/api/models/(.+)/branch/(.+)", path):
            self.branches.setdefault(found[2], COMMIT)
            self.send(request, 200, {})
        elif re.fullmatch("/api/models/(.+)/preupload/(.+)", path):
            files = [
                {
                    "path": file["path"], "shouldIgnore": False,
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                }
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self.send(request, 200, {"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"http://localhost:{self.port}/upload/{entry['oid']}"}}}
                for entry in values["objects"]
            ]
            self.send(request, 200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch("/api/models/(.+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = self.repositories[found[1]]
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.uploaded[value["oid"]]
            self.commits.append({"revision": found[2], "summary": lines[0]["value"]["summary"]})
            url = f"{self.url}/{found[1]}/commit/{COMMIT}"
            self.send(request, 200, {"commitUrl": url, "commitOid": COMMIT, "success": True, "hookOutput": ""})
        elif (found := re.fullmatch("/api/models/(.+?)(/revision/.+)?", path)) and found[1] in self.repositories:
            about = {"id": found[1], "sha": COMMIT, "siblings": [], "private": found[1] in self.private, "tags": []}
            self.send(request, 200, about)
        elif path.startswith("/api/models/"):
            self.refuse(request, 404, "RepoNotFound", "Repository not found")
        else:
            self.send(request, 404)


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path, token: str = "") -> None:
    """Points huggingface_hub, which reads its variables when it is imported, at a server and an empty cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "agents").write_text('{"standardEnvVars": [], "harnesses": {}}')  # else it asks for them, once a process
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(cache / "agents"), raising=False)  # since 2.0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
