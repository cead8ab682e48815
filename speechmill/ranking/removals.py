"""Clips that somebody asked to have removed: kept out of this and all later versions of the data set.

The list is `removed.json` of a run: ids of clips, and hashes of speakers. Only the ids are published as a record: names
of speakers are short, and their hashes are soon guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill.errors import SpeechmillError
from speechmill.storage.files import read_json, write_json

FILE = "removed.json"
REMOVED = "removed"  # criterion of a rejected clip
Removals = Mapping[str, Sequence[str]]


def speaker_key(speaker_id: str) -> str:
    """What stands for a speaker in the list: the sha256 of the name that the corpus gives."""
    return hashlib.sha256(speaker_id.encode()).hexdigest()


def read_removals(run_dir: Path) -> dict[str, list[str]]:
    """Ids of `clips` and hashes of `speakers` to leave out.

    Raises:
        SpeechmillError: the list cannot be read; without it, clips would come back.
    """
    path = run_dir / FILE
    if not path.exists():
        return {"clips": [], "speakers": []}
    try:
        found = read_json(path)
        return {kind: [str(name) for name in found[kind]] for kind in ("clips", "speakers")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpeechmillError(f"the list of removed clips {path} cannot be read ({error}): repair it") from error


def add_removals(run_dir: Path, removals: Removals) -> bool:
    """Add to the list; whether that changed it."""
    before = read_removals(run_dir)
    after = {kind: sorted({*before[kind], *removals.get(kind, ())}) for kind in before}
    if after != before:
        write_json(run_dir / FILE, after)
    return after != before


def find_clips(run_dir: Path, clips: Iterable[str], speakers: Iterable[str]) -> tuple[dict[str, list[str]], int]:
    """What to put on the list for clips, by `id` or `source_id`, and speakers, by `speaker_id`; how many clips it names.

    Clips with the same samples go on the list as well, and the clips that a speaker has now.

    Raises:
        SpeechmillError: one of them is nowhere in the run.
    """
    clips, speakers = set(clips), set(speakers)
    unknown, ids, count = clips | speakers, set(), 0
    tables = sorted((run_dir / "ranking").glob("*.parquet"))
    if not tables:
        raise SpeechmillError(f"{run_dir} has no ranked clips: nothing was published from here")
    named = pa.array(sorted(clips), pa.string())
    for path in tables:
        table = pq.read_table(path, columns=["id", "source_id", "speaker_id", "duplicate_of"])
        of_clip = pc.or_(pc.is_in(table["id"], value_set=named), pc.is_in(table["source_id"], value_set=named))
        of_speaker = pc.is_in(table["speaker_id"], value_set=pa.array(sorted(speakers), pa.string()))
        for row in table.filter(of_clip).to_pylist():
            unknown -= {row["id"], row["source_id"]}
        named_here = table.filter(pc.fill_null(pc.or_(of_clip, of_speaker), False))
        # `duplicate_of` is the same recording, under which it is published.
        ids |= {*named_here["id"].to_pylist(), *named_here["duplicate_of"].drop_null().to_pylist()}
        hits = table.filter(of_speaker)
        unknown -= set(hits["speaker_id"].to_pylist())
        count += len(named_here)
    if unknown:
        raise SpeechmillError(
            f"{run_dir}: no clip has the id or source_id, and no clip the speaker_id, {', '.join(sorted(unknown)[:5])}"
        )
    kept = pa.array(sorted(ids), pa.string())
    for path in tables:
        table = pq.read_table(path, columns=["id", "duplicate_of"])
        ids |= set(table.filter(pc.is_in(table["duplicate_of"], value_set=kept))["id"].to_pylist())
    return {"clips": sorted(ids), "speakers": sorted(speaker_key(name) for name in speakers)}, count


def is_removed(table: pa.Table, removals: Removals | None) -> pa.Array | pa.ChunkedArray:
    """For each row of a table with `id` and `speaker_id`, whether it is on the list: a boolean array (N,)."""
    if not removals or not any(removals.values()):
        return pa.array([False] * len(table))
    by_clip = pc.is_in(table["id"], value_set=pa.array(removals["clips"], pa.string()))
    names = pc.unique(table["speaker_id"]).drop_null().to_pylist()
    listed = set(removals["speakers"])
    hidden = pa.array([name for name in names if speaker_key(name) in listed], pa.string())
    return pc.or_(by_clip, pc.is_in(table["speaker_id"], value_set=hidden))
