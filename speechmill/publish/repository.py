"""A data set repository on the Hub, as who publishes sees it: what is there, sending files ahead, committing, tagging.

Nothing is done twice. Before each attempt the tree is read, only what differs is committed, and the commit names its
parent: where an answer was lost after the commit had landed, the next attempt finds everything there; where it lands
later still, or somebody else commits, the parent does not match and the tree is read again.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechmill import hub
from speechmill.errors import SpeechmillError
from speechmill.hub import HubRefusedError, patiently

FILES_PER_COMMIT = 100  # the Hub recommends 50 to 100; its time for a commit is 60 s
COMMITS_PER_HOUR = 100  # the Hub takes 128
DATASET = "dataset"


class LostObjectsError(SpeechmillError):
    """The Hub no longer has the bytes of a file that was sent but never committed."""


@dataclass(frozen=True)
class Sent:
    """A large file whose bytes are on the Hub, or are to be: path in the repository, size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Listed:
    """A file of a tree: `sha256` of a large one, `blob` (git's own) of any."""

    size: int
    sha256: str | None
    blob: str

    def is_same(self, file: Sent | bytes) -> bool:
        """Whether it has the content of a file that is to be there."""
        if isinstance(file, Sent):
            return (self.size, self.sha256) == (file.size, file.sha256)
        if self.sha256:
            return self.sha256 == hashlib.sha256(file).hexdigest()
        return self.blob == hashlib.sha1(b"blob %d\0" % len(file) + file).hexdigest()


class Repository:
    """`name` is owner/name; `minutes` is how long the Hub may fail before it is given up."""

    def __init__(self, name: str, minutes: float):
        self.name, self.minutes = name, minutes
        self._state: tuple[str, dict[str, Listed]] | None = None
        self._commits: deque[float] = deque(maxlen=COMMITS_PER_HOUR)

    @property
    def url(self) -> str:
        return f"{hub.endpoint()}/datasets/{self.name}"

    def open(self, visibility: str) -> None:
        """Make sure that it is there, ours to write, and as closed as it has to be.

        Raises:
            HubRefusedError: it is not; says what to do.
            SpeechmillError: it is public, and may not be.
        """
        problem = hub.token_problem()
        if problem:
            raise HubRefusedError(problem)
        api = hub.api()
        user = patiently(lambda: api.whoami(cache=True), f"{self.name} account", self.minutes, writes=True)
        mine = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
        private = visibility == "private"
        if self.name.split("/")[0] in mine:
            patiently(
                lambda: api.create_repo(self.name, repo_type=DATASET, private=private, exist_ok=True),
                f"{self.name} creation",
                self.minutes,
                writes=True,
            )
        patiently(
            lambda: api.auth_check(self.name, repo_type=DATASET, write=True),
            f"{self.name} right to write",
            self.minutes,
            writes=True,
        )
        found = patiently(lambda: api.repo_info(self.name, repo_type=DATASET), self.name, self.minutes)
        if private and not found.private:
            raise SpeechmillError(
                f"{self.url} is public, and publish.visibility is private: make it private in its settings, or, where "
                "the licence of all its clips allows it, set publish.visibility public"
            )

    def tree(self, revision: str) -> dict[str, Listed]:
        """Every file at a revision, by path."""

        def read() -> dict[str, Listed]:
            listed = hub.api().list_repo_tree(self.name, recursive=True, revision=revision, repo_type=DATASET)
            return {
                file.path: Listed(file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
                for file in listed
                if hasattr(file, "blob_id")
            }

        return patiently(read, f"{self.name} files", self.minutes)

    def head(self) -> tuple[str, dict[str, Listed]]:
        """The newest commit of `main`, and its tree."""
        if self._state is None:
            found = patiently(lambda: hub.api().repo_info(self.name, repo_type=DATASET), self.name, self.minutes)
            self._state = found.sha, self.tree(found.sha)
        return self._state

    def send(self, local: Path, file: Sent) -> None:
        """Send the bytes of a large file ahead of its commit; those that the Hub has are not sent.

        Raises:
            SpeechmillError: the repository would not take it as a large file.
        """
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub.errors import HTTPError

        operation = CommitOperationAdd(file.path, local)
        operation.upload_info.sha256 = bytes.fromhex(file.sha256)  # known: it need not be read for that

        def preupload() -> None:
            try:
                hub.api().preupload_lfs_files(self.name, [operation], repo_type=DATASET, free_memory=False)
            except (RuntimeError, ValueError) as error:  # the uploaders' wrapping of what went wrong
                cause = error.__cause__
                if isinstance(cause, (HTTPError, OSError)) and not _is_of_storage(cause):
                    raise cause from error
                raise ConnectionError(f"upload failed: {cause or error}") from error

        patiently(preupload, f"{self.name} {file.path}", self.minutes, writes=True)
        if operation._upload_mode != "lfs":
            raise SpeechmillError(
                f"{self.url} does not store {file.path} as a large file: put the line `*.parquet filter=lfs diff=lfs "
                "merge=lfs -text` back into its .gitattributes and run again"
            )

    def commit(
        self, message: str, sent: Sequence[Sent], small: Mapping[str, bytes] | None = None, gone: Iterable[str] = ()
    ) -> str:
        """Commit files that were sent, small ones with their content, and the removal of others; the commit's name.

        What is there already is left out, and without anything left no commit is made.

        Raises:
            LostObjectsError: bytes that were sent are no longer there.
            HubRefusedError: the Hub says no.
        """
        from huggingface_hub.errors import HfHubHTTPError

        def attempt() -> str:
            head, tree = self.head()
            operations = _operations(tree, sent, small or {}, gone)
            if not operations:
                return head
            self._keep_pace()
            try:
                made = hub.api().create_commit(
                    self.name, operations, commit_message=message, repo_type=DATASET, parent_commit=head
                )
            except HfHubHTTPError as error:
                self._state = None
                if error.response.status_code in (400, 404) and "lfs" in str(error).lower():
                    raise LostObjectsError(str(error).splitlines()[0]) from error
                raise
            except ValueError as error:  # the card's metadata
                raise SpeechmillError(f"{self.name}: the Hub does not take this commit: {error}") from error
            except Exception:
                self._state = None
                raise
            self._state = None
            return made.oid

        return patiently(attempt, f"{self.name} commit", self.minutes, writes=True)

    def _keep_pace(self) -> None:
        now = time.monotonic()
        if len(self._commits) == COMMITS_PER_HOUR and now - self._commits[0] < 3600:
            print(f"{self.name}: {COMMITS_PER_HOUR} commits within an hour; the next one waits", flush=True)
            time.sleep(3600 - (now - self._commits[0]))
        self._commits.append(time.monotonic())

    def tag(self, name: str, commit: str, files: Mapping[str, Sent | bytes]) -> None:
        """Tag a commit that holds these files, unless they have the tag already.

        Raises:
            SpeechmillError: the tag is on something else.
        """
        what = f"{self.name} tag {name}"

        def tagged() -> str | None:
            refs = hub.api().list_repo_refs(self.name, repo_type=DATASET)
            return next((ref.target_commit for ref in refs.tags if ref.name == name), None)

        there = patiently(tagged, what, self.minutes)
        if there is None:
            patiently(
                lambda: hub.api().create_tag(self.name, tag=name, revision=commit, repo_type=DATASET, exist_ok=True),
                what,
                self.minutes,
                writes=True,
            )
            there = patiently(tagged, what, self.minutes)
        if there != commit and (there is None or differences(self.tree(there), files)):
            raise SpeechmillError(
                f"{self.url} has a tag {name} that is not of this version: delete that tag and run again"
            )

    def download(self, path: str, commit: str, folder: Path) -> Path:
        """A file at a commit, below a folder."""
        return Path(
            patiently(
                lambda: hub.api().hf_hub_download(
                    self.name, path, repo_type=DATASET, revision=commit, local_dir=str(folder)
                ),
                f"{self.name} {path}",
                self.minutes,
            )
        )


def _is_of_storage(error: BaseException) -> bool:
    """Whether it is the answer of the storage behind the Hub: its addresses are signed for a while, and say no after."""
    response = getattr(error, "response", None)
    return response is not None and not str(response.url).startswith(hub.endpoint())


def differences(tree: Mapping[str, Listed], files: Mapping[str, Sent | bytes]) -> list[str]:
    """The paths that are missing in a tree, or have another content there."""
    return sorted(path for path, file in files.items() if path not in tree or not tree[path].is_same(file))


def _operations(
    tree: Mapping[str, Listed], sent: Sequence[Sent], small: Mapping[str, bytes], gone: Iterable[str]
) -> list[Any]:
    """What has to be done to a tree."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.lfs import UploadInfo

    operations: list[Any] = []
    for path in differences(tree, {file.path: file for file in sent}):
        file = next(file for file in sent if file.path == path)
        # The client's own record of a file whose bytes it has sent: in this process or, long ago, in another one.
        addition = CommitOperationAdd(path, b"")
        addition.upload_info = UploadInfo(size=file.size, sample=b"", sha256=bytes.fromhex(file.sha256))
        addition._upload_mode, addition._is_uploaded = "lfs", True
        operations.append(addition)
    operations += [CommitOperationAdd(path, small[path]) for path in differences(tree, small)]
    return operations + [CommitOperationDelete(path) for path in sorted(gone) if path in tree]
