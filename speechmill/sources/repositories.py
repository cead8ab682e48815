"""Where the files of a corpus lie: in a folder of this machine, or in a data set of the Hugging Face Hub."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from speechmill.errors import SourceError
from speechmill.files import sha256_file
from speechmill.sources import Source, SourceFile
from speechmill.sources.checksums import checksum_files

TEXT_BYTES = 1 << 22
HTTP_BYTES = 50_000_000_000  # huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE


class Repository(Protocol):
    """Files by paths with forward slashes."""

    def fingerprint(self) -> str: ...

    def commit(self) -> str | None:
        """The commit that is read, asked for once; None where there is no such thing."""

    def names(self) -> list[str]:
        """All paths, sorted."""

    def files(self, wanted: Collection[str], checksums: Path) -> list[SourceFile]:
        """The named files with their checksums; `checksums` is a cache."""

    def local(self, path: str) -> Path:
        """Where a file lies; one of the Hub has to be fetched."""


class FolderRepository:
    """A folder, recursively; hidden files are passed over."""

    def __init__(self, root: Path):
        self.root = root

    def _walk(self) -> list[tuple[str, int, int]]:
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if not name.startswith("."):
                    path = Path(folder, name)
                    try:
                        stat = path.stat()
                    except OSError as error:
                        raise SourceError(f"{path}: {error.strerror}; remove it or mend the link") from error
                    found.append((path.relative_to(self.root).as_posix(), stat.st_size, stat.st_mtime_ns))
        return sorted(found)

    def fingerprint(self) -> str:
        lines = "".join(f"{path}\0{size}\0{mtime}\n" for path, size, mtime in self._walk())
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()

    def commit(self) -> str | None:
        return None

    def names(self) -> list[str]:
        return [path for path, _, _ in self._walk()]

    def files(self, wanted: Collection[str], checksums: Path) -> list[SourceFile]:
        return checksum_files(self.root, sorted(wanted), checksums)

    def local(self, path: str) -> Path:
        return self.root / path


class HubRepository:
    """A data set of the Hugging Face Hub. Its revision is resolved to a commit once; all else is asked of that."""

    def __init__(self, repo: str, revision: str | None, patience_minutes: float):
        self.repo, self.revision, self.minutes = repo, revision or "main", patience_minutes
        self._commit: str | None = None
        self._tree: dict[str, SourceFile] | None = None

    def _ask(self, call: Callable[[Any], Any], what: str = "") -> Any:
        from speechmill.hub import api, patiently

        return patiently(lambda: call(api()), f"{self.repo} {what or self.revision}", self.minutes)

    def pin(self, commit: str) -> None:
        """Read this commit, whatever the revision has become."""
        self._commit = commit

    def commit(self) -> str:
        if self._commit is None:
            info = self._ask(lambda api: api.dataset_info(self.repo, revision=self.revision, timeout=60))
            self._commit = str(info.sha)
        return self._commit

    def fingerprint(self) -> str:
        return self.commit()

    def check_access(self) -> None:
        """Whether files may be read: what a gated repository shows to everybody says nothing about that.

        Raises:
            HubRefusedError: says what to do.
        """
        self._ask(lambda api: api.auth_check(self.repo, repo_type="dataset"))

    def _files(self) -> dict[str, SourceFile]:
        if self._tree is None:
            commit = self.commit()
            entries = self._ask(
                lambda api: list(api.list_repo_tree(self.repo, repo_type="dataset", revision=commit, recursive=True))
            )
            self._tree = {}
            for entry in entries:
                if hasattr(entry, "size"):  # folders have none
                    sha256 = entry.lfs.sha256 if entry.lfs else ""
                    self._tree[entry.path] = SourceFile(entry.path, entry.size, sha256, entry.blob_id)
        return self._tree

    def names(self) -> list[str]:
        return sorted(self._files())

    def files(self, wanted: Collection[str], checksums: Path) -> list[SourceFile]:
        return [self._files()[path] for path in sorted(wanted)]

    def text(self, path: str) -> str | None:
        """A small text file such as README.md; None where there is none, or it is not small."""
        if path not in self._files() or self._files()[path].size > TEXT_BYTES:
            return None

        def read(api: Any) -> bytes:
            with self.open(path) as handle:
                return bytes(handle.read())

        return str(self._ask(read, path), "utf-8", errors="replace")

    def open(self, path: str) -> Any:
        """A file object that reads ranges of a file of the Hub, for what lies at its end or in few places."""
        from huggingface_hub import HfFileSystem

        from speechmill.hub import endpoint

        at = f"datasets/{self.repo}@{self.commit()}/{path}"
        return HfFileSystem(endpoint=endpoint()).open(at, "rb", block_size=1 << 20, cache_type="readahead")

    def local(self, path: str) -> Path:
        raise NotImplementedError("a file of the Hub has to be fetched")

    def fetch(self, file: SourceFile, target: Path) -> None:
        """Download a file to `target`, a name beside it while it is on its way, and verify size and checksum.

        Raises:
            SourceError: it may not be read, the Hub does not answer, or what came is not what the Hub lists.
        """
        from speechmill.hub import patiently

        if file.size > HTTP_BYTES:
            raise SourceError(
                f"{self.repo} {file.path} has {file.size / 1e9:.0f} GB; over plain HTTP the Hub serves 50 GB at most. "
                "Download it with `hf download` and name its folder in source.path"
            )
        partial = target.with_name(f".{target.name}.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        what = f"{self.repo} {file.path}"
        for _ in range(2):
            patiently(
                lambda: self._download(file, partial),
                what,
                self.minutes,
                lambda: partial.stat().st_size if partial.exists() else 0,
            )
            problem = _difference(partial, file)
            if problem is None:
                os.replace(partial, target)
                return
            print(f"{what}: {problem}; downloaded once more", flush=True)
            partial.unlink()
        raise SourceError(
            f"{what}: downloaded twice, and {problem}. Something on the way changes the data (a proxy?), or the file on "
            "the Hub is damaged: tell its owner"
        )

    def _download(self, file: SourceFile, partial: Path) -> None:
        # hf_hub_download begins anew after an interruption (2.4: one temporary file per process); http_get goes on.
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        from speechmill.hub import endpoint

        url = hf_hub_url(self.repo, file.path, repo_type="dataset", revision=self.commit(), endpoint=endpoint())
        with open(partial, "ab") as handle:
            there = handle.tell()
            if there > file.size:
                handle.truncate(0)
                there = 0
            if there < file.size:
                handle.seek(there)
                http_get(
                    url, handle, resume_size=there, headers=build_hf_headers(), expected_size=file.size,
                    displayed_filename=file.path,
                )  # fmt: skip


def _difference(path: Path, file: SourceFile) -> str | None:
    """In what a downloaded file is not the listed one; None where it is."""
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size} bytes instead of {file.size}"
    found = sha256_file(path) if file.sha256 else git_sha1(path)
    wanted = file.sha256 or file.git_sha1
    return None if found == wanted else f"its checksum is {found} instead of {wanted}"


def git_sha1(path: Path) -> str:
    """The name that git gives to a file's content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class RepositorySource(Source):
    """A source whose files lie in a folder (`source.path`) or on the Hub (`source.repo`) in the same layout."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        repo, path = self.section["repo"], self.section["path"]
        self.hub = HubRepository(repo, self.section["revision"], self.patience_minutes) if repo else None
        self.repository: Repository = self.hub or FolderRepository(Path(path))
        self.fetched = self.hub is not None
        self.where = repo or path

    def check_access(self) -> None:
        if self.hub:
            self.hub.check_access()

    def pin(self, revision: str) -> None:
        if self.hub:
            self.hub.pin(revision)

    def fingerprint(self) -> str:
        return self.repository.fingerprint()

    def fetch(self, file: SourceFile, target: Path) -> None:
        assert self.hub
        self.hub.fetch(file, target)

    def place(self, path: str, fetched: Path | None) -> Path:
        """Where a file is read from: where it was fetched to, or where it lies."""
        return fetched or self.repository.local(path)


def matching(names: Collection[str], patterns: Collection[str]) -> list[str]:
    """The names that match any of the shell patterns (`*` crosses slashes), sorted."""
    return sorted(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
