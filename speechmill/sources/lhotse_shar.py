"""Lhotse Shar (k2): pairs of cuts.NNNNNN.jsonl.gz and recording.NNNNNN.tar in a folder, read by lhotse itself.

A pair is one batch. How many cuts it holds is known once it was read.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile

from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Clip, Listing, batch_id
from speechmill.sources.checksums import CACHE
from speechmill.sources.columns import clip_columns
from speechmill.sources.repositories import RepositorySource, matching

SAME_S = 1e-3  # a cut as long as its recording is the recording


class LhotseSharSource(RepositorySource):
    """A clip per cut of the shards below `source.path`."""

    def list_files(self) -> Listing:
        names = self.repository.names()
        cuts = matching(names, ["cuts.*.jsonl.gz", "*/cuts.*.jsonl.gz", "cuts.*.jsonl", "*/cuts.*.jsonl"])
        pairs = {path: found for path in cuts if (found := _recordings(path, names))}
        if not pairs:
            raise SourceError(f"{self.where}: no cuts.NNNNNN.jsonl.gz with its recording.NNNNNN.tar")
        files = self.repository.files([*pairs, *pairs.values()], self.work / CACHE)
        alone = len(cuts) - len(pairs)
        return Listing(files, [f"{alone} shards of cuts without recordings passed over"] if alone else [])

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        for file in listing.files:
            if PurePosixPath(file.path).name.startswith("recording."):
                yield BatchPlan(batch_id(file.path, 0), file.path)

    def read(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        try:
            from lhotse import CutSet
        except ImportError as error:
            raise SourceError("source.kind lhotse_shar needs lhotse: pip install 'speechmill[lhotse]'") from error
        assert plan.source_file is not None
        recording = self.repository.local(plan.source_file)
        cuts = next(path for path in _cuts(recording) if path.exists())
        fields = {"cuts": [str(cuts)], "recording": [str(recording)]}
        seen: set[str] = set()
        try:
            for cut in CutSet.from_shar(fields=fields):
                if cut.id in seen:
                    passed_over["cuts with a name that was there before"] += 1
                    continue
                seen.add(cut.id)
                yield self._row(cut, plan.source_file), _audio(cut)
        except (EOFError, OSError, ValueError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            passed_over[f"{plan.source_file}: damaged or cut short after {len(seen)} cuts: {error}"] += 1

    def _row(self, cut: Any, file: str) -> dict[str, Any]:
        supervision = cut.supervisions[0] if getattr(cut, "supervisions", None) else None
        described = {name: getattr(supervision, name, None) for name in ("text", "language", "speaker", "gender")}
        described |= {name: value for name, value in (cut.custom or {}).items() if isinstance(value, (str, int, float))}
        mapping = {"text": "text", "language": "language", "speaker_id": "speaker"} | self.section["columns"]
        row = clip_columns(described, mapping, self.section)
        return {"source_file": file, "source_member": cut.id, **row, "source_id": row["source_id"] or cut.id}


def _recordings(cuts: str, names: list[str]) -> str | None:
    path = PurePosixPath(cuts)
    number = path.name.split(".")[1]
    wanted = [str(path.with_name(f"recording.{number}.tar{suffix}")) for suffix in ("", ".gz")]
    return next((name for name in wanted if name in names), None)


def _cuts(recording: Path) -> list[Path]:
    number = recording.name.split(".")[1]
    return [recording.with_name(f"cuts.{number}.jsonl{suffix}") for suffix in (".gz", "")]


def _audio(cut: Any) -> bytes | ClipError:
    """The stored bytes where the cut is its whole recording; else its samples (mono, float) as a WAV file."""
    try:
        recording = cut.recording
        sources = recording.sources
        whole = abs(cut.start) < SAME_S and abs(cut.duration - recording.duration) < SAME_S
        if whole and len(sources) == 1 and sources[0].type == "memory" and cut.channel in (0, [0]):
            return bytes(sources[0].source)
        memory = io.BytesIO()
        samples = np.asarray(cut.load_audio(), np.float32)
        soundfile.write(memory, samples.T, cut.sampling_rate, format="WAV", subtype="FLOAT")
        return memory.getvalue()
    except Exception as error:  # whatever lhotse meets in one cut
        return ClipError("unreadable", f"lhotse: {type(error).__name__}: {error}")
