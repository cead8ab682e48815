"""A Hugging Face Hub on loopback: the part of its wire contract that a data set takes, with faults on demand.

Endpoints and headers as the client of huggingface_hub 1.20 to 2.4 asks for them; reading is here, writing in `writes`.
Paths of the repository are plain keys of a dictionary: nothing of a request touches this machine's files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from .writes import LFS_SUFFIXES, TOKEN, StoredByXet, Writes


@dataclass
class Repo:
    """A data set: commits (name -> path -> bytes, oldest first) and what `main` points at.

    `objects` are the large files that were sent (sha256 -> bytes), committed or not; `messages` of the commits; `role`
    is what the token may do here.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    role: str = "write"
    objects: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit with exactly these files; its name."""
        digest = hashlib.sha1(str(len(self.commits)).encode())
        for path, data in sorted(files.items()):
            digest.update(path.encode() + b"\0" + hashlib.sha256(data).digest())
        self.commits[digest.hexdigest()] = dict(files)
        return digest.hexdigest()

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return self.main
        if revision in self.tags:
            return self.tags[revision]
        return next((name for name in self.commits if name.startswith(revision) and len(revision) >= 7), None)


@dataclass
class Fault:
    """What happens to the next `times` requests whose method and path match.

    With a `status` they are answered so, with `drop` not at all; `after` they took effect, or else instead.
    """

    pattern: str
    method: str = ".*"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    damage: bool = False  # one byte of the body is another
    times: int = 1
    drop: bool = False
    after: bool = False
    delay: float = 0.0  # seconds before the answer


class Hub:
    """The server. `url` is its HF_ENDPOINT, `log` all requests (method, path, status, bytes of the body).

    Large files are sent as one, in parts of `part_bytes` where that is set, or through Xet where `cas` names a folder:
    the client then keeps a store of its own there (one process at a time).
    """

    def __init__(self, part_bytes: int | None = None, cas: Path | None = None) -> None:
        self.part_bytes, self.cas = part_bytes, cas
        self.parts: dict[str, dict[int, bytes]] = {}
        self.repos: dict[str, Repo] = {}
        self.received = 0  # bytes of large files
        self.agents: set[str] = set()  # clients, as name/version
        self.page = 3  # files of a tree listed at once
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int, int]] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.storage = self.url.replace("127.0.0.1", "localhost")  # another host, as on the Hub
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, pattern: str, **what) -> None:
        self.faults.append(Fault(pattern, **what))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def requests(self, pattern: str, method: str = ".*") -> list[tuple[str, str, int, int]]:
        """Requests of the log that match."""
        return [line for line in self.log if re.search(pattern, line[1]) and re.fullmatch(method, line[0])]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.fullmatch(fault.method, method) and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None


def entry(path: str, data: bytes) -> dict:
    """A file as `tree` and `paths-info` list it."""
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if path.endswith(LFS_SUFFIXES):
        digest = data.sha256 if isinstance(data, StoredByXet) else hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return found


def listing(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict]:
    """What is in a folder, as `tree` lists it: files and folders, of folders below only where asked for."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict] = {}
    for path, data in files.items():
        if path.startswith(prefix):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                found[name] = {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
            if recursive or len(parts) == 1:
                found[path] = entry(path, data)
    return [found[path] for path in sorted(found)]


class _Handler(Writes, BaseHTTPRequestHandler):
    hub: Hub
    swallowed = False
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, fault: Fault | None = None
    ):
        if fault and fault.damage and body:
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        if self.swallowed:  # it took effect, and nobody is told
            return
        sent = body if not fault or fault.cut_after is None else body[: fault.cut_after]
        self.hub.log.append((self.command, self.path, status, len(sent)))
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if len(sent) < len(body):
            self.wfile.flush()
            self.close_connection = True

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(value).encode(), headers)

    def _error(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self.body = self._body()
        self._handle()

    do_PUT = do_DELETE = do_POST

    def _body(self) -> bytes:
        """The request's body, whole or in chunks; short where the client died."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.agents.update((self.headers.get("User-Agent") or "").replace(";", " ").split())
        fault = self.hub.take_fault(self.command, path)
        if not fault or not (fault.status is not None or fault.drop or fault.delay):
            self._act(path, fault)
            return
        if fault.after:
            self.swallowed = True
            self._act(path, None)
            self.swallowed = False
        time.sleep(fault.delay)
        if fault.status is not None:
            self._answer(fault.status, b'{"error": "as asked for"}', fault.headers)
        else:
            self.hub.log.append((self.command, self.path, 0, 0))
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)

    def _act(self, path: str, fault: Fault | None) -> None:
        url = urlsplit(self.path)
        if self.writes(path):
            return
        found = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?", path)
        if not found:
            self._error(404, "EntryNotFound", f"no such endpoint: {path}")
            return
        name, what, revision, rest = found.groups()
        repo = self.hub.repos.get(name)
        token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.private and not token):
            self._error(404 if token else 401, "RepoNotFound", "Repository not found")
            return
        commit = repo.resolve(revision or "main")
        if commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if repo.gated and not token and what in ("resolve", "auth-check"):
            self._error(401, "GatedRepo", f"Access to dataset {name} is restricted")
            return
        files = repo.commits[commit]
        if what == "auth-check":
            self._json({})
        elif what in (None, "revision"):
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "siblings": siblings, "private": repo.private, "tags": []})
        elif what == "tree":
            # In pages, so that the client has to follow links.
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            start, recursive = int(asked.get("cursor", "0")), asked.get("recursive", "false").lower() == "true"
            listed = listing(files, rest or "", recursive)
            query = f"recursive={str(recursive).lower()}&expand=false&cursor={start + self.hub.page}"
            more = start + self.hub.page < len(listed)
            link = {"Link": f'<{self.hub.url}{url.path}?{query}>; rel="next"'} if more else {}
            self._json(listed[start : start + self.hub.page], headers=link)
        elif what == "paths-info":
            asked = parse_qs(self.body.decode()).get("paths", [])
            self._json([entry(path, files[path]) for path in asked if path in files])
        elif what == "resolve" and rest in files:
            self._file(files[rest], entry(rest, files[rest]), commit, fault)
        else:
            self._error(404, "EntryNotFound", f"no such file: {rest}")

    def _file(self, data: bytes, listed: dict, commit: str, fault: Fault | None) -> None:
        etag = listed.get("lfs", {}).get("oid") or listed["oid"]
        headers = {
            "Content-Type": "application/octet-stream",
            "X-Repo-Commit": commit,
            "ETag": f'"{etag}"',
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }
        if isinstance(data, StoredByXet):
            route = f"{self.hub.url}/api/datasets/{self.path.split('/resolve/')[0].removeprefix('/datasets/')}"
            headers["X-Xet-Hash"] = data.xet
            headers["Link"] = f'<{route}/xet-read-token/{commit}>; rel="xet-auth"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.command == "HEAD":
            self._answer(200, b"", headers | {"Content-Length": str(len(data))})
        elif asked:
            start, stop = int(asked[1]), min(int(asked[2]) + 1 if asked[2] else len(data), len(data))
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self._answer(206, data[start:stop], headers, fault)
        else:
            self._answer(200, data, headers, fault)
