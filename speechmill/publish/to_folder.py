"""Publication to a folder that has the layout of a data set repository of the Hub.

Readers of the folder can rely on this at any moment:

- A file under its final name is complete.
- While `README.md` exists, all files that it names exist and are of one version. It is removed before the first file
  changes, and written after the last.
- When the sentinel exists, everything was read back and compared.

To complete a publication that was killed, run it again. The files depend on the results only, and files with the same
bytes are not written again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from speechmill import __version__
from speechmill.errors import LedgerError, SpeechmillError
from speechmill.publish.card import render_card
from speechmill.publish.figure import FIGURE, write_figure
from speechmill.publish.shards import plan_files
from speechmill.publish.survey import Batch, Survey, survey
from speechmill.storage.files import atomic_path, sha256_file, sha256_json, write_json, write_text

CARD = "README.md"
MARK = ".speechmill"
MARK_TEXT = (
    "speechmill writes README.md, assets/metrics.png, data/ and scores/ of this folder, and replaces and removes its "
    "shards there.\n"
)
SHARD = r"(train|validation|test)-([A-Za-z0-9_-]+-)?\d{5,}-of-\d{5,}\.parquet"
_OWN_SHARD = re.compile(SHARD)
_LEFTOVER = re.compile(rf"\.({SHARD}|README\.md|metrics\.png|\.speechmill)\.\d+\.tmp")


def publish_folder(
    batches: Iterable[Batch],
    profile: dict[str, Any],
    summary: dict[str, Any],
    source: dict[str, Any],
    config: dict[str, Any],
    target: Path,
    sentinel: Path,
) -> dict[str, Any]:
    """Write the data set to `target`, read it back, then write `sentinel` and return its content.

    The same input gives the same bytes; the sentinel contains no time. Only one process may publish to a folder at a
    time.

    Args:
        batches: batches that have a ranking, in any order.
        profile, summary, source: contents of ranking/profile.json, report/summary.json and source.json.
        config: the validated configuration.
        target: folder of the data set.
        sentinel: path of published/UPLOADED.json.

    Raises:
        LedgerError: the tables do not agree with each other or with the summary.
        ConfigError: the profile was edited after it was frozen.
        SpeechmillError: files of others would be replaced, the folder cannot be written, or the files that were read
            back differ from those that were written.
    """
    target, sentinel = Path(target), Path(sentinel)
    try:
        sentinel.unlink(missing_ok=True)
        found = survey(batches)
        found.clips["errored"] += sum(summary["failed_batches"].values())
        check_balance(found, summary)
        _claim(target)
        files = [_place(target, planned.path, planned.build) for planned in plan_files(found, profile, config)]
        _remove_stale(target, {f["path"] for f in files})
        rankings = [batch.ranking for batch in found.batches]
        figure = partial(write_figure, ranking_files=rankings, profile=profile, summary=summary)
        files.append(_place(target, FIGURE, figure))
        card = render_card(found, profile, summary, source, config, [f["path"] for f in files])
        data = card.encode()
        files.append({"path": CARD, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "rows": None})
        if not (target / CARD).is_file() or (target / CARD).read_bytes() != data:
            write_text(target / CARD, card)
        files.sort(key=lambda f: f["path"])
        _verify(target, files)
        content = {"kind": "folder", "target": str(target), **sentinel_content(files, found, summary, source)}
        write_json(sentinel, content)
        return content
    except (OSError, pa.ArrowException) as error:
        raise SpeechmillError(
            f"publishing to {target} failed: {error}. The data set there is incomplete, because {sentinel} was not "
            "written. Fix the cause (disk space, permissions, a damaged results file) and run again."
        ) from error


def sentinel_content(
    files: Sequence[Mapping[str, Any]], found: Survey, summary: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of the sentinel that is the same for a folder and the Hub: files, clips, and facts of the run."""
    return {
        "files": files,
        "rows": sum(f["rows"] for f in files if f["path"].startswith("data/")),
        "bytes": sum(f["size"] for f in files),
        "accepted": found.clips["accepted"],
        "hours": round(found.accepted_seconds / 3600, 6),
        "manifest_sha256": sha256_json(files),
        "failed_batches": sorted(summary["failed_batches"]),
        "profile_sha256": summary["profile_sha256"],
        "source_revision": source.get("revision"),
        "version": __version__,
    }


def check_balance(found: Survey, summary: dict[str, Any]) -> None:
    """Check that the ranking tables and the summary have the same number of clips in each state.

    Raises:
        LedgerError: they differ.
    """
    expected = {state: n for state, n in summary["clips"].items() if state != "input"}
    counted = {state: found.clips[state] for state in {*expected, *found.clips}}
    if counted != expected or sum(counted.values()) != summary["clips"]["input"]:
        raise LedgerError(
            f"the ranking tables have {dict(sorted(counted.items()))} clips, but the summary of the report has "
            f"{summary['clips']}; delete report/summary.json and run again"
        )


def _claim(target: Path) -> None:
    """Check that files to be replaced were written by speechmill, and remove temporary files of killed processes."""
    mark = target / MARK
    if not mark.is_file():
        foreign = [p for p in [target / CARD, target / FIGURE, *_shards(target)] if p.exists()]
        if foreign:
            raise SpeechmillError(
                f"{foreign[0]} was not written by speechmill and would be replaced. Set publish.path to an empty "
                f"folder; or, if all of {target} may be replaced, create an empty file {mark} and run again."
            )
        write_text(mark, MARK_TEXT)
    for folder in (target, target / "data", target / "scores", (target / FIGURE).parent):
        for path in folder.glob(".*.tmp"):
            if _LEFTOVER.fullmatch(path.name):
                path.unlink()


def _shards(target: Path) -> list[Path]:
    return [
        p for f in ("data", "scores") for p in sorted((target / f).glob("*.parquet")) if _OWN_SHARD.fullmatch(p.name)
    ]


class _UnchangedError(Exception):
    """Leaves `atomic_path` without a rename, because the existing file has the same bytes."""


class HashingSink:
    """A binary file that hashes the bytes passed to `write`, so that the file can be verified when it is read back."""

    closed = False

    def __init__(self, handle: BinaryIO):
        self._handle = handle
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        return self._handle.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._handle.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _place(target: Path, path: str, build: Callable[[Any], int | None]) -> dict[str, Any]:
    """Write a file under a temporary name, and rename it unless the existing file has the same bytes."""
    final = target / path
    with suppress(_UnchangedError), atomic_path(final) as temporary:
        with open(temporary, "wb") as handle:
            sink = HashingSink(handle)
            rows = build(sink)
        entry = {"path": path, "sha256": sink.hexdigest(), "size": sink.size, "rows": rows}
        if final.is_file() and final.stat().st_size == sink.size and sha256_file(final) == entry["sha256"]:
            raise _UnchangedError
        (target / CARD).unlink(missing_ok=True)
    return entry


def _remove_stale(target: Path, keep: set[str]) -> None:
    for path in _shards(target):
        if path.relative_to(target).as_posix() not in keep:
            (target / CARD).unlink(missing_ok=True)
            path.unlink()


def _verify(target: Path, files: Sequence[dict[str, Any]]) -> None:
    """Read every file back and compare it with what was written.

    Raises:
        SpeechmillError: a file differs. The disk is full or faulty, or another process writes there.
    """
    wrong = []
    for entry in files:
        path = target / entry["path"]
        if not path.is_file() or path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
            wrong.append(entry["path"])
        elif entry["rows"] is not None and pq.read_metadata(path).num_rows != entry["rows"]:
            wrong.append(f"{entry['path']} (rows)")
    wrong += sorted({p.relative_to(target).as_posix() for p in _shards(target)} - {f["path"] for f in files})
    if wrong:
        raise SpeechmillError(
            f"{target}: {len(wrong)} files differ from what was written ({', '.join(wrong[:5])}). "
            "Check the disk, and that no other process writes there, then run again."
        )
