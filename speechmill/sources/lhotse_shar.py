"""Source kind `lhotse_shar`: pairs of cuts.NNNNNN.jsonl.gz and recording.NNNNNN.tar in a folder.

A pair is one batch. Its number of cuts is known only after it was read. The pair is read here and its items by lhotse,
which would stop at the first cut that is damaged or missing.
"""

from __future__ import annotations

import gzip
import io
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import soundfile

from speechmill.errors import ClipError, SourceError
from speechmill.sources import BatchPlan, Clip, Listing, batch_id
from speechmill.sources.archives import TarStream
from speechmill.sources.boundary import is_machine_error, read_row, reason
from speechmill.sources.checksums import CACHE
from speechmill.sources.columns import clip_columns
from speechmill.sources.repositories import RepositorySource, matching
from speechmill.sources.text_files import LINE_BYTES, parse_json
from speechmill.utils.text import encodable, plain

SAME_S = 1e-3  # tolerance in seconds within which a cut is its whole recording
LONGEST_S = 3600.0  # seconds of one clip that are decoded; enhance.max_seconds is at most this
CUTS_BYTES = 1 << 30  # of a file of cuts, unpacked

Audio = tuple[bytes | ClipError, dict[str, Any] | ClipError]  # of one cut: the encoded audio, and its Recording


class LhotseSharSource(RepositorySource):
    """A clip per supervision of the cuts below `source.path`; per cut, if it has at most one, or as `source.supervisions` says."""

    def list_files(self) -> Listing:
        names = self.repository.names()
        cuts = matching(names, ["cuts.*.jsonl.gz", "*/cuts.*.jsonl.gz", "cuts.*.jsonl", "*/cuts.*.jsonl"])
        pairs = {path: found for path in cuts if (found := _recordings(path, names))}
        if not pairs:
            raise SourceError(
                f"{self.where}: no pair of cuts.NNNNNN.jsonl.gz and recording.NNNNNN.tar found; check source.path"
            )
        files = self.repository.files([*pairs, *pairs.values()], self.work / CACHE)
        alone = len(cuts) - len(pairs)
        return Listing(files, [f"{alone} shards of cuts without recordings passed over"] if alone else [])

    def plan(self, listing: Listing, batch_size: int, previous: list[BatchPlan]) -> Iterator[BatchPlan]:
        for file in listing.files:
            if PurePosixPath(file.path).name.startswith("recording."):
                yield BatchPlan(batch_id(file.path, 0), file.path)

    def clips(self, plan: BatchPlan, file: Path | None, passed_over: Counter[str]) -> Iterator[Clip]:
        try:
            import lhotse  # noqa: F401
        except ImportError as error:
            raise SourceError("source.kind lhotse_shar needs lhotse: pip install 'speechmill[lhotse]'") from error
        assert plan.source_file is not None
        recording = self.repository.local(plan.source_file)
        lines = _Lines(next(path for path in _cuts(recording) if path.exists()))
        archive = TarStream(recording, self.max_bytes, passed_over)
        recordings = _recordings_of(archive)
        early: dict[str, Audio] = {}  # recordings that were read before their cut
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            place = {
                "source_file": plan.source_file,
                "source_member": f"line {number}",
                "source_id": f"line {number}",
                "language": self.section["language"],
                "license": self.section["license"],
            }
            where = f"{plan.source_file}, line {number} of its cuts"
            cut, problem = _read_cut(line, where)
            if problem is not None:
                yield place, problem
                continue
            name = encodable(cut["id"])
            if name in seen:
                passed_over["cuts with a repeated name"] += 1
                continue
            seen.add(name)
            place |= {"source_member": name, "source_id": name}
            audio = early.pop(name, None)
            while audio is None and (found := next(recordings, None)) is not None:
                if found[0] == name:
                    audio = found[1]
                elif found[0] not in seen:
                    early[found[0]] = found[1]
            if audio is None:
                cause = archive.problem or "the archive has no such recording"
                audio = ClipError("archive_cut" if archive.problem else "no_audio", f"{plan.source_file}: {cause}"), {}
            yield from self._read(place, f"{plan.source_file}, {name}", cut, audio)
        for what in (archive.problem, lines.problem):
            if what:
                passed_over[f"{plan.source_file}: {what}"] += 1
        unused = len(early) + sum(1 for _ in recordings)
        if unused:
            passed_over["recordings without a cut"] += unused

    def _read(self, place: dict[str, Any], where: str, described: dict[str, Any], audio: Audio) -> Iterator[Clip]:
        """The clips of a cut."""
        parts: list[Any] = []

        def read() -> Clip:
            if isinstance(audio[0], ClipError):
                raise audio[0]
            cut = _filled(described, audio)
            spoken = sorted(getattr(cut, "supervisions", None) or [], key=lambda s: s.start)
            if len(spoken) <= 1 or self.section["supervisions"] == "join":
                return self._row(place, cut, spoken), _audio(cut)
            parts.extend((cut, one, number) for number, one in enumerate(spoken))
            return place, b""

        clip = read_row(place, where, read)
        if not parts:
            yield clip
        for cut, one, number in parts:
            name = f"{place['source_member']}-{number}"
            yield read_row(
                place | {"source_member": name, "source_id": name}, where, partial(self._part, place, name, cut, one)
            )

    def _part(self, place: dict[str, Any], name: str, cut: Any, supervision: Any) -> Clip:
        """One supervision of several, with its own audio."""
        start = max(0.0, float(supervision.start))
        duration = min(float(supervision.end), float(cut.duration)) - start
        if not duration > 0:
            raise ClipError(
                "bad_row", f"the supervision from {supervision.start} s to {supervision.end} s is not in its cut"
            )
        row = self._row(
            place | {"source_member": name, "source_id": name},
            cut,
            [supervision],
            {"start": start, "duration": duration},
        )
        return row, _audio(cut.truncate(offset=start, duration=duration, preserve_id=True))

    def _row(
        self, place: dict[str, Any], cut: Any, spoken: list[Any], offsets: dict[str, float] | None = None
    ) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for name in ("text", "language", "speaker", "gender"):
            values = [value for one in spoken if (value := getattr(one, name, None)) not in (None, "")]
            if name == "text":
                described[name] = " ".join(map(str, values)) or None
            else:  # of several speakers none is the clip's
                described[name] = values[0] if len(set(map(str, values))) == 1 else None
        if len(spoken) > 1 and described["speaker"] is None:
            described["speakers"] = [getattr(one, "speaker", None) for one in spoken]
        custom = getattr(cut, "custom", None) or {}
        described |= {name: value for name, value in custom.items() if isinstance(value, (str, int, float))}
        mapping = {"text": "text", "language": "language", "speaker_id": "speaker"} | self.section["columns"]
        row = clip_columns(described | (offsets or {}), mapping, self.section)
        return {**place, **row, "source_id": row["source_id"] or place["source_id"]}


def _recordings(cuts: str, names: list[str]) -> str | None:
    path = PurePosixPath(cuts)
    number = path.name.split(".")[1]
    wanted = [str(path.with_name(f"recording.{number}.tar{suffix}")) for suffix in ("", ".gz")]
    return next((name for name in wanted if name in names), None)


def _cuts(recording: Path) -> list[Path]:
    number = recording.name.split(".")[1]
    return [recording.with_name(f"cuts.{number}.jsonl{suffix}") for suffix in (".gz", "")]


class _Lines:
    """The lines of a file of cuts. After the iteration, `problem` says why it could not be read to its end."""

    def __init__(self, path: Path):
        self.path = path
        self.problem: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        try:
            with open(self.path, "rb") as packed:
                file: Any = gzip.GzipFile(fileobj=packed) if packed.peek(2)[:2] == b"\x1f\x8b" else packed
                while line := file.readline(LINE_BYTES):
                    total += len(line)
                    if total > CUTS_BYTES:
                        raise ValueError(f"it unpacks to more than {CUTS_BYTES} bytes")
                    if line.strip():
                        yield line
        except Exception as error:
            if is_machine_error(error):
                raise
            self.problem = f"{self.path.name} is damaged or truncated: {reason(error)}"


def _read_cut(line: bytes, where: str) -> tuple[dict[str, Any], ClipError | None]:
    try:
        cut = parse_json(line)
        if not isinstance(cut.get("id"), str):
            raise ClipError("bad_row", "a cut without an id")
    except ClipError as error:
        return {}, ClipError(error.error_class, f"{where}: {error.message}")
    return cut, None


def _recordings_of(archive: TarStream) -> Iterator[tuple[str, Audio]]:
    """Id of the cut -> its audio and its Recording: pairs of `ID.SUFFIX` and `ID.json`, in this order."""
    waiting: tuple[str, bytes | ClipError] | None = None
    for name, data in archive:
        path = PurePosixPath(name)
        key = str(path.with_suffix(""))
        if path.suffix in (".nodata", ".nometa"):
            waiting = None
        elif path.suffix == ".json" and waiting is not None and waiting[0] == key:
            described: dict[str, Any] | ClipError
            try:
                described = data if isinstance(data, ClipError) else parse_json(data)
            except ClipError as error:
                described = error
            yield key, (waiting[1], described)
            waiting = None
        else:
            waiting = key, data


def _filled(described: dict[str, Any], audio: Audio) -> Any:
    """The cut of lhotse with its audio."""
    from lhotse.serialization import deserialize_item
    from lhotse.shar.utils import fill_shar_placeholder

    data, recording = audio
    if isinstance(recording, ClipError):
        raise recording
    cut = deserialize_item(described)
    manifest = deserialize_item(recording)
    fill_shar_placeholder(manifest=manifest, data=data, tarpath="")
    cut.recording = manifest
    return cut


def _audio(cut: Any) -> bytes | ClipError:
    """Encoded audio of a cut: the stored bytes if it is the whole recording, else its samples as WAV (mono, float)."""
    try:
        recording = cut.recording
        sources = recording.sources
        whole = abs(cut.start) < SAME_S and abs(cut.duration - recording.duration) < SAME_S
        if whole and len(sources) == 1 and sources[0].type == "memory" and cut.channel in (0, [0]):
            return bytes(sources[0].source)
        if not 0 < cut.duration <= LONGEST_S:
            return ClipError(
                "unreadable", f"a part of {cut.duration:g} s of its recording; {LONGEST_S:g} s are allowed"
            )
        memory = io.BytesIO()
        samples = np.asarray(cut.load_audio(), np.float32)
        soundfile.write(memory, samples.T, cut.sampling_rate, format="WAV", subtype="FLOAT")
        return memory.getvalue()
    except Exception as error:  # lhotse raises many types for one bad cut
        if is_machine_error(error):
            raise
        return ClipError("unreadable", f"lhotse: {plain(reason(error))}")
