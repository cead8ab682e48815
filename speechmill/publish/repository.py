"""A data set repository on the Hub for writing: read its tree, send files, commit and tag.

Nothing is done twice. Before each attempt the tree is read, only differing files are committed, and the commit names
its parent. If the answer to a successful commit was lost, the next attempt finds nothing to do. If another commit
comes first, the parent does not match, and the tree is read again.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechmill.errors import SpeechmillError
from speechmill.storage import hub_client
from speechmill.storage.hub_client import HubRefusedError, retry_hub

FILES_PER_COMMIT = 100  # the Hub recommends 50 to 100; a commit times out after 60 s
COMMITS_PER_HOUR = 100  # the limit of the Hub is 128
DATASET = "dataset"


class LostObjectsError(SpeechmillError):
    """The Hub no longer has the bytes of a file that was sent but never committed."""


@dataclass(frozen=True)
class LargeFile:
    """A file in large-file storage (LFS), sent or to be sent: path in the repository, SHA-256 in hex, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class TreeFile:
    """A file in the tree of a commit: size in bytes, `sha256` of a large file (else None), git's `blob` id."""

    size: int
    sha256: str | None
    blob: str

    def is_same(self, file: LargeFile | bytes) -> bool:
        """Whether it has the same content as `file`."""
        if isinstance(file, LargeFile):
            return (self.size, self.sha256) == (file.size, file.sha256)
        if self.sha256:
            return self.sha256 == hashlib.sha256(file).hexdigest()
        return self.blob == hashlib.sha1(b"blob %d\0" % len(file) + file).hexdigest()


class Repository:
    """A data set repository.

    Args:
        name: owner/name.
        minutes: how long to retry while the Hub fails or does not answer.
    """

    def __init__(self, name: str, minutes: float):
        self.name, self.minutes = name, minutes
        self._state: tuple[str, dict[str, TreeFile]] | None = None
        self._commits: deque[float] = deque(maxlen=COMMITS_PER_HOUR)

    @property
    def url(self) -> str:
        return f"{hub_client.endpoint()}/datasets/{self.name}"

    def open(self, visibility: str) -> None:
        """Create the repository if it is missing; check write access and visibility (`private` or `public`).

        Raises:
            HubRefusedError: there is no token or no write access; the message says what to do.
            SpeechmillError: the repository is public, and `visibility` is private.
        """
        problem = hub_client.token_problem()
        if problem:
            raise HubRefusedError(problem)
        api = hub_client.api()
        user = retry_hub(lambda: api.whoami(cache=True), f"{self.name} account", self.minutes, writes=True)
        own_names = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
        private = visibility == "private"
        if self.name.split("/")[0] in own_names:
            retry_hub(
                lambda: api.create_repo(self.name, repo_type=DATASET, private=private, exist_ok=True),
                f"{self.name} creation",
                self.minutes,
                writes=True,
            )
        retry_hub(
            lambda: api.auth_check(self.name, repo_type=DATASET, write=True),
            f"{self.name} right to write",
            self.minutes,
            writes=True,
        )
        found = retry_hub(lambda: api.repo_info(self.name, repo_type=DATASET), self.name, self.minutes)
        if private and not found.private:
            raise SpeechmillError(
                f"{self.url} is public, and publish.visibility is private: make the repository private in its settings, "
                "or set publish.visibility public if the licence of all clips allows it"
            )

    def tree(self, revision: str) -> dict[str, TreeFile]:
        """Path -> file, for all files at a revision."""

        def read() -> dict[str, TreeFile]:
            listed = hub_client.api().list_repo_tree(self.name, recursive=True, revision=revision, repo_type=DATASET)
            return {
                file.path: TreeFile(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
                for file in listed
                if hasattr(file, "blob_id")
            }

        return retry_hub(read, f"{self.name} files", self.minutes)

    def head(self) -> tuple[str, dict[str, TreeFile]]:
        """The newest commit of `main`, and its tree."""
        if self._state is None:
            found = retry_hub(lambda: hub_client.api().repo_info(self.name, repo_type=DATASET), self.name, self.minutes)
            self._state = found.sha, self.tree(found.sha)
        return self._state

    def send(self, local: Path, file: LargeFile) -> None:
        """Send the bytes of a large file without committing it. Bytes that the Hub has already are not sent again.

        Raises:
            SpeechmillError: the repository does not store the file as a large file.
        """
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HTTPError

        operation = CommitOperationAdd(file.path, local)
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)  # saves the client reading the file to hash it

        def preupload() -> None:
            try:
                hub_client.api().preupload_lfs_files(self.name, [operation], repo_type=DATASET, free_memory=False)
            except (RuntimeError, ValueError) as error:  # the uploaders wrap the original error
                cause = error.__cause__
                if isinstance(cause, (HTTPError, OSError)) and not _is_from_storage(cause):
                    raise cause from error
                raise ConnectionError(f"upload failed: {cause or error}") from error

        retry_hub(preupload, f"{self.name} {file.path}", self.minutes, writes=True)
        if operation._upload_mode != "lfs":
            raise SpeechmillError(
                f"{self.url} does not store {file.path} as a large file: add the line `*.parquet filter=lfs diff=lfs "
                "merge=lfs -text` to its .gitattributes and run again"
            )

    def commit(
        self,
        message: str,
        sent: Sequence[LargeFile],
        small: Mapping[str, bytes] | None = None,
        gone: Iterable[str] = (),
    ) -> str:
        """Commit files that were sent, small files, and deletions. Returns the commit.

        Files that the repository has already are left out. If nothing is left, no commit is made.

        Args:
            message: title of the commit.
            sent: large files whose bytes were sent.
            small: path -> content.
            gone: paths to delete.

        Raises:
            LostObjectsError: the Hub no longer has the bytes of a file that was sent.
            HubRefusedError: access is denied.
        """
        from huggingface_hub.errors import HfHubHTTPError

        def attempt() -> str:
            head, tree = self.head()
            operations = _operations(tree, sent, small or {}, gone)
            if not operations:
                return head
            self._limit_commit_rate()
            try:
                made = hub_client.api().create_commit(
                    self.name, operations, commit_message=message, repo_type=DATASET, parent_commit=head
                )
            except HfHubHTTPError as error:
                self._state = None
                if error.response.status_code in (400, 404) and "lfs" in str(error).lower():
                    raise LostObjectsError(str(error).splitlines()[0]) from error
                raise
            except ValueError as error:  # the client validates the metadata of the card
                raise SpeechmillError(f"{self.name}: the Hub rejects this commit: {error}") from error
            except Exception:
                self._state = None
                raise
            self._state = None
            return made.oid

        return retry_hub(attempt, f"{self.name} commit", self.minutes, writes=True)

    def _limit_commit_rate(self) -> None:
        now = time.monotonic()
        if len(self._commits) == COMMITS_PER_HOUR and now - self._commits[0] < 3600:
            print(f"{self.name}: {COMMITS_PER_HOUR} commits within an hour; waiting before the next one", flush=True)
            time.sleep(3600 - (now - self._commits[0]))
        self._commits.append(time.monotonic())

    def tag(self, name: str, commit: str, files: Mapping[str, LargeFile | bytes]) -> None:
        """Tag a commit, unless the tag exists on a commit with the same files.

        Raises:
            SpeechmillError: the tag is on a commit with other files.
        """
        what = f"{self.name} tag {name}"

        def tagged() -> str | None:
            refs = hub_client.api().list_repo_refs(self.name, repo_type=DATASET)
            return next((ref.target_commit for ref in refs.tags if ref.name == name), None)

        there = retry_hub(tagged, what, self.minutes)
        if there is None:
            retry_hub(
                lambda: hub_client.api().create_tag(
                    self.name, tag=name, revision=commit, repo_type=DATASET, exist_ok=True
                ),
                what,
                self.minutes,
                writes=True,
            )
            there = retry_hub(tagged, what, self.minutes)
        if there != commit and (there is None or differences(self.tree(there), files)):
            raise SpeechmillError(
                f"{self.url} has a tag {name} on a commit with other files: delete that tag and run again"
            )

    def download(self, path: str, commit: str, folder: Path) -> Path:
        """Download a file at a commit to its path below `folder`; returns that path."""
        return Path(
            retry_hub(
                lambda: hub_client.api().hf_hub_download(
                    self.name, path, repo_type=DATASET, revision=commit, local_dir=str(folder)
                ),
                f"{self.name} {path}",
                self.minutes,
            )
        )


def _is_from_storage(error: BaseException) -> bool:
    """Whether an error comes from the storage behind the Hub. Its signed URLs expire, and can be requested again."""
    response = getattr(error, "response", None)
    return response is not None and not str(response.url).startswith(hub_client.endpoint())


def differences(tree: Mapping[str, TreeFile], files: Mapping[str, LargeFile | bytes]) -> list[str]:
    """The paths of `files` that are missing in a tree, or have other content there."""
    return sorted(path for path, file in files.items() if path not in tree or not tree[path].is_same(file))


def _operations(
    tree: Mapping[str, TreeFile], sent: Sequence[LargeFile], small: Mapping[str, bytes], gone: Iterable[str]
) -> list[Any]:
    """The operations of a commit that makes a tree contain `sent` and `small`, and not `gone`."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.lfs import UploadInfo

    operations: list[Any] = []
    for path in differences(tree, {file.path: file for file in sent}):
        file = next(file for file in sent if file.path == path)
        # Tell the client that the bytes were sent. It may have been another process that sent them.
        addition = CommitOperationAdd(path, b"")
        addition.upload_info = UploadInfo(size=file.size, sample=b"", sha256=bytes.fromhex(file.sha256))
        addition._upload_mode, addition._is_uploaded = "lfs", True
        operations.append(addition)
    operations += [CommitOperationAdd(path, small[path]) for path in differences(tree, small)]
    return operations + [CommitOperationDelete(path) for path in sorted(gone) if path in tree]
