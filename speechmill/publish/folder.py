"""Publishing to a folder that is laid out as a Hub data set repository.

What a reader may rely on at any moment: a file under its final name is complete; while `README.md` is there, all
files that it names are there and of one version (it is removed before the first file of another version appears and
written back after the last); and once the sentinel stands, everything was read back and compared. A publication that
was killed is completed by running it again: the files depend on the results alone, and equal ones are left as they are.
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
from speechmill.files import atomic_path, sha256_file, sha256_json, write_json, write_text
from speechmill.publish.card import render_card
from speechmill.publish.figure import FIGURE, write_figure
from speechmill.publish.shards import plan_files
from speechmill.publish.survey import Batch, Survey, survey

CARD = "README.md"
MARK = ".speechmill"
MARK_TEXT = (
    "speechmill writes README.md, assets/metrics.png, data/ and scores/ of this folder, and replaces and removes its "
    "shards there.\n"
)
SHARD = r"(train|validation|test)-([A-Za-z0-9_-]+-)?\d{5,}-of-\d{5,}\.parquet"
_OURS = re.compile(SHARD)
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
    """Write the data set to `target`, read it back, and only then write `sentinel` and return its content.

    `batches` come in any order; `profile`, `summary` and `source` are the contents of ranking/profile.json, report/summary.json and source.json; `config` is the validated configuration.
    The same input gives the same bytes, and the sentinel holds no time. One process at a time may publish to a folder.

    Raises:
        LedgerError: the tables do not agree with each other or with the summary.
        ConfigError: the profile was edited after it was frozen.
        SpeechmillError: the folder holds files that are not ours where ours would go, or it cannot be written, or
            what was read back is not what was written.
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
        content = {"kind": "folder", "target": str(target), **account(files, found, summary, source)}
        write_json(sentinel, content)
        return content
    except (OSError, pa.ArrowException) as error:
        raise SpeechmillError(
            f"publishing to {target} failed: {error}. Without {sentinel} what is there is not complete. "
            "Repair the cause (space, permissions, a damaged results file) and run again."
        ) from error


def account(
    files: Sequence[Mapping[str, Any]], found: Survey, summary: Mapping[str, Any], source: Mapping[str, Any]
) -> dict[str, Any]:
    """What a sentinel says of a publication, wherever it is: its files, what is in them, and of which run."""
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
    """Raise LedgerError unless the ranking tables and the summary are of one run."""
    expected = {state: n for state, n in summary["clips"].items() if state != "input"}
    counted = {state: found.clips[state] for state in {*expected, *found.clips}}
    if counted != expected or sum(counted.values()) != summary["clips"]["input"]:
        raise LedgerError(
            f"the ranking tables hold {dict(sorted(counted.items()))}, the report's summary {summary['clips']}: "
            "they are of different runs; delete report/summary.json and run again"
        )


def _claim(target: Path) -> None:
    """Make sure that what is replaced in the folder is ours, and sweep up after a killed process."""
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
    return [p for f in ("data", "scores") for p in sorted((target / f).glob("*.parquet")) if _OURS.fullmatch(p.name)]


class _UnchangedError(Exception):
    """Leaves `atomic_path` without a rename: the file that is there has the same bytes."""


class HashingSink:
    """A binary file that hashes what is written, so that the later read-back is compared with what was meant."""

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
    """Build a file beside its final name and rename it, unless the same bytes are there already."""
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
    """Read every file back; a difference is a full or faulty disk, or somebody else who writes there."""
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
            f"{target}: read back, {len(wrong)} files are not what was written ({', '.join(wrong[:5])}). "
            "Check the disk and that nobody else writes there, then run again."
        )
