"""What the loopback Hub answers to who writes: accounts, repositories, uploads (LFS, in parts, Xet), commits, tags."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from .server import Hub, Repo

TOKEN = "hf_loopback"
ACCOUNT, ORGANIZATION = "lab", "speechlab"
LFS_SUFFIXES = (".parquet", ".tar", ".gz", ".tgz")  # as the Hub's default .gitattributes has them


class Writes:
    """Handlers of requests that write; `writes` says whether a request was one of them."""

    hub: Hub
    body: bytes = b""
    headers: Any
    command: str

    def writes(self, path: str) -> bool:
        routes = [
            (r"GET /api/whoami-v2", self._whoami),
            (r"POST /api/repos/create", self._create),
            (r"POST /api/validate-yaml", self._validate_yaml),
            (r"POST /api/datasets/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"POST /datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"PUT /lfs/([^/]+/[^/]+)/([0-9a-f]{64})(?:/(\d+))?", self._put),
            (r"POST /lfs/([^/]+/[^/]+)/([0-9a-f]{64})/(complete|verify)", self._complete),
            (r"GET /api/datasets/([^/]+/[^/]+)/xet-(?:read|write)-token/.+", self._xet_token),
            (r"POST /api/datasets/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"POST /api/datasets/([^/]+/[^/]+)/tag/(.+)", self._tag),
            (r"GET /api/datasets/([^/]+/[^/]+)/refs", self._refs),
            (r"GET /api/datasets/([^/]+/[^/]+)/auth-check/write", self._may_write),
        ]
        for pattern, handler in routes:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                handler(*found.groups())
                return True
        return False

    def _known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        message = "Invalid credentials in Authorization header"
        self._json({"error": message}, 401, {"X-Error-Message": message})
        return False

    def _writable(self, name: str) -> Repo | None:
        """The repository, if there is one and the token may write there; answered otherwise."""
        repo = self.hub.repos.get(name)
        if repo is None:
            self._error(404, "RepoNotFound", "Repository not found")
        elif self._known():
            if repo.role == "write":
                return repo
            self._json({"error": "You don't have the rights to write"}, 403, {"X-Error-Message": "Forbidden"})
        return None

    def _may_write(self, name: str) -> None:
        if self._writable(name) is not None:
            self._json({})

    def _whoami(self) -> None:
        if self._known():
            organizations = [{"name": ORGANIZATION, "roleInOrg": "contributor"}]
            token = {"accessToken": {"displayName": "test", "role": "write"}}
            self._json({"type": "user", "name": ACCOUNT, "orgs": organizations, "auth": token})

    def _create(self) -> None:
        from .server import Repo

        asked = json.loads(self.body)
        owner = asked.get("organization") or ACCOUNT
        name = f"{owner}/{asked['name']}"
        if not self._known():
            return
        if owner not in (ACCOUNT, ORGANIZATION):
            self._error(403, "", f"You don't have the rights to create a dataset under the namespace {owner!r}")
        elif name in self.hub.repos:
            self._json(
                {"error": "You already created this dataset repo", "url": f"{self.hub.url}/datasets/{name}"}, 409
            )
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            repo = self.hub.repos[name] = Repo(private=private)
            repo.commit({".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"})
            self._json({"url": f"{self.hub.url}/datasets/{name}"})

    def _validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        try:
            valid = isinstance(yaml.safe_load(found[1]), dict) if found else True
        except yaml.YAMLError:
            valid = False
        self._json({"errors": [] if valid else [{"message": "not a mapping"}], "warnings": []}, 200 if valid else 400)

    def _preupload(self, name: str, revision: str) -> None:
        from .server import entry

        repo = self._writable(name)
        if repo is None:
            return
        there = repo.commits[repo.resolve(revision)]
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            listed = entry(path, there[path]) if path in there else None
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if listed:
                answer["oid"] = listed["lfs"]["oid"] if mode == "lfs" else listed["oid"]
            answers.append(answer)
        self._json({"files": answers})

    def _batch(self, name: str) -> None:
        repo = self._writable(name)
        if repo is None:
            return
        answers, parts = [], self.hub.part_bytes
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer = {"oid": oid, "size": size}
            base = f"{self.hub.storage}/lfs/{name}/{oid}"
            if oid not in repo.objects:
                upload: dict[str, Any] = {"href": base}
                if parts and size > parts:
                    number = -(-size // parts)
                    header = {f"{part:05d}": f"{base}/{part}" for part in range(1, number + 1)}
                    upload = {
                        "href": f"{self.hub.url}/lfs/{name}/{oid}/complete",
                        "header": {"chunk_size": str(parts)} | header,
                    }
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/{name}/{oid}/verify"}}
            answers.append(answer)
        self._json({"transfer": "multipart" if parts else "basic", "objects": answers})

    def _put(self, name: str, oid: str, part: str | None) -> None:
        """Storage: it knows signed addresses and no token."""
        expected = int(self.headers.get("Content-Length") or len(self.body))
        if len(self.body) != expected:  # the client died
            return
        self.hub.received += len(self.body)
        if part:
            self.hub.parts.setdefault(f"{name}/{oid}", {})[int(part)] = self.body
        elif not self._store(name, oid, self.body):
            return
        self._answer(200, b"", {"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def _store(self, name: str, oid: str, data: bytes) -> bool:
        if hashlib.sha256(data).hexdigest() != oid:
            self._json({"error": "the content does not have this sha256"}, 400)
            return False
        self.hub.repos[name].objects[oid] = data
        return True

    def _complete(self, name: str, oid: str, what: str) -> None:
        repo = self.hub.repos[name]
        if what == "complete":
            parts = self.hub.parts.get(f"{name}/{oid}", {})
            listed = [part["partNumber"] for part in json.loads(self.body)["parts"]]
            if not self._store(name, oid, b"".join(parts.get(number, b"") for number in listed)):
                return
        if oid not in repo.objects:
            self._error(404, "", "no such object")
        else:
            self._json({})

    def _xet_token(self, name: str) -> None:
        if self.hub.cas is None:
            self._error(404, "", "this Hub has no Xet")
        elif self._writable(name) is not None:
            url, expires = f"local://{self.hub.cas}", int(time.time()) + 3600
            headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(expires)}
            self._json({"casUrl": url, "accessToken": "t", "exp": expires}, headers=headers)

    def _commit(self, name: str, revision: str) -> None:
        repo = self._writable(name)
        if repo is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, operations = lines[0]["value"], lines[1:]
        with self.hub.lock:
            if header.get("parentCommit") not in (None, repo.main):
                self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
                return
            files = dict(repo.commits[repo.main])
            for operation in operations:
                value, path = operation["value"], operation["value"]["path"]
                if operation["key"] == "file":
                    files[path] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    known = repo.objects.get(value["oid"])
                    if known is None and value["oid"] in stored_by_xet(self.hub.cas):
                        known = StoredByXet(value["oid"], value["size"], stored_by_xet(self.hub.cas)[value["oid"]])
                    if known is None or len(known) != value["size"]:
                        self._json({"error": f"LFS pointer pointed to a file that does not exist: {path}"}, 400)
                        return
                    files[path] = known
                elif files.pop(path, None) is None:  # deletedFile
                    self._error(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                    return
            commit = repo.commit(files)
            repo.messages.append(header["summary"])
        self._json({"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{commit}", "commitOid": commit})

    def _tag(self, name: str, revision: str) -> None:
        repo = self._writable(name)
        if repo is None:
            return
        tag, commit = json.loads(self.body)["tag"], repo.resolve(revision)
        if tag in repo.tags:
            self._json({"error": f"Tag {tag} already exists"}, 409)
        elif commit is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            repo.tags[tag] = commit
            self._json({})

    def _refs(self, name: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._error(404, "RepoNotFound", "Repository not found")
            return
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.main}]
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
        self._json({"branches": branches, "tags": tags, "converts": []})


class StoredByXet(bytes):
    """A file whose bytes lie in the Xet store: only its checksum, its size and Xet's own name of it are known here."""

    sha256: str
    size: int
    xet: str

    def __new__(cls, sha256: str, size: int, xet: str) -> StoredByXet:
        made = super().__new__(cls, sha256.encode())
        made.sha256, made.size, made.xet = sha256, size, xet
        return made

    def __len__(self) -> int:
        return self.size


def stored_by_xet(cas: Path | None) -> dict[str, str]:
    """sha256 -> Xet hash of every file in a local Xet store, as its shard files say.

    Format: the Hub's documentation, "Shard File Format": a header of 48 bytes, then for each file its header, one entry
    per segment, as many of verification if the flags have bit 31, and one of metadata (sha256) if they have bit 30;
    all of 48 bytes. The list ends with a header whose hash is all ones.
    """
    found: dict[str, str] = {}
    for path in sorted(cas.rglob("*")) if cas else []:
        if not path.is_file() or path.suffix == ".redb":
            continue
        with open(path, "rb") as file:  # most of them are large, and not of this kind
            if file.read(14) != b"HFRepoMetaData":
                continue
        data = path.read_bytes()
        place = 48
        while place + 48 <= len(data) and data[place : place + 32] != b"\xff" * 32:
            flags, entries = struct.unpack_from("<II", data, place + 32)
            size = 1 + entries * (2 if flags >> 31 & 1 else 1) + (flags >> 30 & 1)
            if flags >> 30 & 1:
                found[_hash(data[place + 48 * (size - 1) :][:32])] = _hash(data[place : place + 32])
            place += 48 * size
    return found


def _hash(raw: bytes) -> str:
    """Xet writes a hash as four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))
