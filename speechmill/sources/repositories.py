"""Repositories: the files of a corpus, in a folder on disk or in a data set of the Hugging Face Hub."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from speechmill.errors import SourceError
from speechmill.sources import Source, SourceFile
from speechmill.sources.checksums import checksum_files
from speechmill.sources.walk import walk_files
from speechmill.storage.files import sha256_file

TEXT_BYTES = 1 << 22  # size up to which `HubRepository.text` reads a file
HTTP_BYTES = 50_000_000_000  # huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE


class Repository(Protocol):
    """Files by path, with forward slashes."""

    def fingerprint(self) -> str:
        """A value that changes when files change."""

    def commit(self) -> str | None:
        """The commit that is read; None for a folder."""

    def names(self) -> list[str]:
        """All paths, sorted."""

    def files(self, wanted: Collection[str], checksums: Path) -> list[SourceFile]:
        """The files of these paths with their checksums, sorted. `checksums` is the cache file for a folder."""

    def local(self, path: str) -> Path:
        """Path of a file on disk; only for a folder."""


class FolderRepository:
    """A folder with its subfolders, through links as well. Hidden files and folders are skipped."""

    def __init__(self, root: Path):
        self.root = root

    def _walk(self) -> list[tuple[str, int, int]]:
        return sorted(walk_files(self.root, lambda path: True))

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
    """A data set of the Hugging Face Hub. Its revision is resolved to a commit once; everything is read from it.

    Args:
        repo: owner/name.
        revision: branch, tag or commit; None for main.
        patience_minutes: how long to retry while the Hub does not answer.
    """

    def __init__(self, repo: str, revision: str | None, patience_minutes: float):
        self.repo, self.revision, self.minutes = repo, revision or "main", patience_minutes
        self._commit: str | None = None
        self._tree: dict[str, SourceFile] | None = None

    def _ask(self, call: Callable[[Any], Any], what: str = "") -> Any:
        from speechmill.storage.hub_client import api, retry_hub

        return retry_hub(lambda: call(api()), f"{self.repo} {what or self.revision}", self.minutes)

    def pin(self, commit: str) -> None:
        """Read this commit, even if the revision has moved."""
        self._commit = commit

    def commit(self) -> str:
        if self._commit is None:
            info = self._ask(lambda api: api.dataset_info(self.repo, revision=self.revision, timeout=60))
            self._commit = str(info.sha)
        return self._commit

    def fingerprint(self) -> str:
        return self.commit()

    def check_access(self) -> None:
        """Check that files may be read. The metadata of a gated repository can be read without access to its files.

        Raises:
            HubRefusedError: access is denied; the message says what to do.
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
        """Content of a text file such as README.md; None if it does not exist or is larger than `TEXT_BYTES`."""
        if path not in self._files() or self._files()[path].size > TEXT_BYTES:
            return None

        def read(api: Any) -> bytes:
            with self.open(path) as handle:
                return bytes(handle.read())

        return str(self._ask(read, path), "utf-8", errors="replace")

    def open(self, path: str) -> Any:
        """A file object that downloads only the ranges that are read, such as the footer of a Parquet file."""
        from huggingface_hub import HfFileSystem

        from speechmill.storage.hub_client import endpoint

        at = f"datasets/{self.repo}@{self.commit()}/{path}"
        return HfFileSystem(endpoint=endpoint()).open(at, "rb", block_size=1 << 20, cache_type="readahead")

    def local(self, path: str) -> Path:
        raise NotImplementedError("a file of the Hub has to be fetched")

    def fetch(self, file: SourceFile, target: Path) -> None:
        """Download a file under a temporary name, verify size and checksum, and rename it to `target`.

        An interrupted download is resumed.

        Raises:
            SourceError: access is denied, the Hub does not answer, the file is too large for HTTP, or the download
                differs from the listing twice.
        """
        from speechmill.storage.hub_client import retry_hub

        if file.size > HTTP_BYTES:
            raise SourceError(
                f"{self.repo} {file.path} has {file.size / 1e9:.0f} GB, but the Hub serves at most 50 GB over HTTP; "
                "download it with `hf download` and set source.path to its folder"
            )
        partial = target.with_name(f".{target.name}.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        what = f"{self.repo} {file.path}"
        for _ in range(2):
            retry_hub(
                lambda: self._download(file, partial),
                what,
                self.minutes,
                lambda: partial.stat().st_size if partial.exists() else 0,
            )
            problem = _difference(partial, file)
            if problem is None:
                os.replace(partial, target)
                return
            print(f"{what}: {problem}; downloading it again", flush=True)
            partial.unlink()
        raise SourceError(
            f"{what}: downloaded twice, but {problem}. A proxy may change the data, or the file on the Hub is damaged; "
            "try without the proxy, or report it to the owner of the repository"
        )

    def _download(self, file: SourceFile, partial: Path) -> None:
        # hf_hub_download restarts after an interruption (in 2.4, one temporary file per process); http_get resumes.
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        from speechmill.storage.hub_client import endpoint

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
    """How a downloaded file differs from the listing; None if it does not."""
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size} bytes instead of {file.size}"
    found = sha256_file(path) if file.sha256 else git_sha1(path)
    wanted = file.sha256 or file.git_sha1
    return None if found == wanted else f"its checksum is {found} instead of {wanted}"


def git_sha1(path: Path) -> str:
    """The hash (hex) that git gives to the content of a file (blob id)."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class RepositorySource(Source):
    """A source with the same layout in a folder (`source.path`) and on the Hub (`source.repo`)."""

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
        """Path to read a file from: `fetched`, or the file in the folder."""
        return fetched or self.repository.local(path)


def matching(names: Collection[str], patterns: Collection[str]) -> list[str]:
    """The names that match any of the shell patterns, sorted. `*` also matches slashes."""
    return sorted(name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
