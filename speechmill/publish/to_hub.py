"""Publication to a data set repository of the Hub: nothing is sent twice, it can be resumed, and it is verified.

1. Shards are built one at a time, sent without being committed, and deleted on disk. A record of each
   (`published/data/NAME.json`) prevents that it is built or sent again.
2. One process commits them in groups. The last group also has the card and the manifest.
3. The tree of that commit is read back and compared, and the commit gets a tag.
4. The sentinel is written.

Therefore a tag is always a complete version.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from speechmill import __version__
from speechmill.errors import SpeechmillError
from speechmill.publish.card import render_card
from speechmill.publish.figure import FIGURE, write_figure
from speechmill.publish.repository import FILES_PER_COMMIT, LargeFile, LostObjectsError, Repository, differences
from speechmill.publish.shards import Planned, plan_files
from speechmill.publish.survey import Batch, Survey, origin_of, survey
from speechmill.publish.to_folder import CARD, MARK, MARK_TEXT, SHARD, HashingSink, check_balance, sentinel_content
from speechmill.ranking.removals import add_removals, is_removed
from speechmill.runlog.job_context import stage_timing
from speechmill.storage.files import read_json, sha256_file, sha256_json, write_json
from speechmill.storage.hub_client import HubRefusedError
from speechmill.tables.parquet_io import write_table
from speechmill.utils.threads import bounded_map

MANIFEST = "manifest.json"
OWN_SHARD = re.compile(rf"(data|scores)/{SHARD}")
_BATCH = re.compile(r"data/[a-z]+-(.*)-\d{5,}-of-\d{5,}\.parquet")


@dataclass(frozen=True)
class Record:
    """A file of the data set that was sent.

    Attributes:
        path: in the repository.
        sha256: of the content, in hex.
        size: in bytes.
        rows: number of rows.
        made_from: `Planned.made_from`.
        repository: owner/name.
    """

    path: str
    sha256: str
    size: int
    rows: int
    made_from: str
    repository: str

    @property
    def sent(self) -> LargeFile:
        return LargeFile(self.path, self.sha256, self.size)

    @property
    def listed(self) -> dict[str, Any]:
        """The entry of the file in the manifest and the sentinel."""
        return {"path": self.path, "sha256": self.sha256, "size": self.size, "rows": self.rows}


class Sender:
    """Builds and sends the files of one run, and keeps a record of each; `folder` is published/ of the run."""

    def __init__(self, repository: Repository, folder: Path):
        self.repository, self.folder = repository, folder
        self.published = Published(repository, folder)

    def file_of(self, path: str) -> Path:
        return self.folder / f"{path.removesuffix('.parquet')}.json"

    def known(self, planned: Planned) -> Record | None:
        """The record of a file, if the file was sent to this repository and would be built the same way now."""
        try:
            record = Record(**read_json(self.file_of(planned.path)))
        except (OSError, ValueError, TypeError):
            return None
        same = (record.path, record.made_from, record.repository)
        return record if same == (planned.path, planned.made_from, self.repository.name) else None

    def send(self, planned: Planned) -> Record:
        """Build and send a file unless that was done before; returns its record."""
        record = self.known(planned)
        if record:
            return record
        with self.upload_folder() as folder:
            local = folder / "shard.parquet"
            audio = self.published.fetch(planned, folder) if planned.is_data else {}
            with open(local, "wb") as handle:
                sink = HashingSink(handle)
                rows = planned.build(sink, audio=audio) if audio else planned.build(sink)
            names = planned.path, sink.hexdigest(), sink.size, rows, planned.made_from, self.repository.name
            record = Record(*names)
            _, tree = self.repository.head()
            if differences(tree, {record.path: record.sent}):
                self.repository.send(local, record.sent)
                print(f"{record.path}: {record.rows} clips, {record.size / 1e6:.1f} MB sent", flush=True)
        write_json(self.file_of(planned.path), asdict(record))
        return record

    def forget(self, paths: Iterable[str]) -> None:
        """Delete the records of files, so that they are sent again."""
        for path in paths:
            self.file_of(path).unlink(missing_ok=True)

    @contextmanager
    def upload_folder(self) -> Iterator[Path]:
        """A temporary folder for files while they are built and sent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sending-", dir=self.folder) as folder:
            yield Path(folder)

    def remove_leftovers(self, keep: Iterable[str]) -> None:
        """Remove temporary folders of killed processes, and records of files that are not among the paths `keep`."""
        for left in self.folder.glob(".sending-*"):
            shutil.rmtree(left, ignore_errors=True)
        kept = {self.file_of(path) for path in keep}
        for part in ("data", "scores"):
            for file in (self.folder / part).glob("*.json"):
                if file not in kept:
                    file.unlink()


def send_batch(batch: Batch, profile: dict[str, Any], config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Send the shards of one batch before the others are complete; returns their entries for the manifest.

    `batch.ranking` is provisional (ahead.py). If a clip later becomes a duplicate of a clip of another batch, its shard
    changes and is sent again.
    """
    settings = config["publish"]
    sender = Sender(Repository(settings["repo"], settings["patience_minutes"]), folder)
    plan = plan_files(survey([batch]), profile, config)
    return [sender.send(planned).listed for planned in plan if planned.is_data]


def check_target(config: dict[str, Any], run_dir: Path) -> bool:
    """Check the repository before anything is computed: token, write access, visibility, and that its files are ours.

    A missing repository is created. Clips that were removed from the published data set are added to the run's list
    of removals, so that a new run does not publish them again.

    Returns:
        Whether the list of removals has new clips.

    Raises:
        SpeechmillError: the repository cannot be used; the message says what to do.
    """
    settings = config["publish"]
    repository = Repository(settings["repo"], settings["patience_minutes"])
    repository.open(settings["visibility"])
    commit, tree = repository.head()
    _check_ownership(repository, tree)
    if MANIFEST not in tree:
        return False
    run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".manifest-", dir=run_dir) as folder:
        try:
            manifest = read_json(repository.download(MANIFEST, commit, Path(folder)))
            dataset, removed = manifest["dataset"], [str(clip) for clip in manifest["removed"]]
        except (ValueError, KeyError, TypeError) as error:
            raise SpeechmillError(
                f"{repository.url}: {MANIFEST} cannot be read ({error}): repair it, or delete it and the files that it "
                "lists"
            ) from error
    if dataset != config["dataset"]:
        raise SpeechmillError(
            f"{repository.url} has the data set {dataset}, which {config['dataset']} would replace: set publish.repo "
            "to another name"
        )
    return add_removals(run_dir, {"clips": removed})


def publish_hub(
    batches: Iterable[Batch],
    profile: dict[str, Any],
    summary: dict[str, Any],
    source: dict[str, Any],
    config: dict[str, Any],
    folder: Path,
    sentinel: Path,
    removed: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Publish this version to `publish.repo`, read it back, tag it, then write `sentinel` and return its content.

    If it is repeated after an interruption, it sends and commits only what is missing.

    Args:
        batches: batches that have a ranking, in any order.
        profile, summary, source: contents of ranking/profile.json, report/summary.json and source.json.
        config: the validated configuration.
        folder: published/ of the run, for records of sent files.
        sentinel: path of published/UPLOADED.json.
        removed: the run's list of removals.

    Raises:
        LedgerError: the tables do not agree with each other or with the summary.
        HubRefusedError: access is denied; the message says what to do.
        SpeechmillError: the repository has files of others, or the tree that was read back differs from what was sent.
    """
    settings = config["publish"]
    sentinel.unlink(missing_ok=True)
    found = survey(batches)
    found.clips["errored"] += sum(summary["failed_batches"].values())
    check_balance(found, summary)
    _check_removed(found, removed)
    plan = plan_files(found, profile, config)
    repository = Repository(settings["repo"], settings["patience_minutes"])
    repository.open(settings["visibility"])
    _, tree = repository.head()
    _check_ownership(repository, tree)
    sender = Sender(repository, folder)
    sender.remove_leftovers(planned.path for planned in plan)
    records = _send_all(sender, plan, settings["uploads"])
    figure = io.BytesIO()
    write_figure(figure, [batch.ranking for batch in found.batches], profile, summary)

    def commit_all() -> tuple[str, str, dict[str, LargeFile | bytes]]:
        shards = sorted((record.listed for record in records), key=lambda file: file["path"])
        paths = [*(record.path for record in records), FIGURE]
        card = render_card(found, profile, summary, source, config, paths)
        about = {
            "dataset": config["dataset"],
            "source_revision": source.get("revision"),
            "profile_sha256": summary["profile_sha256"],
            "failed_batches": sorted(summary["failed_batches"]),
            "removed": sorted((removed or {}).get("clips", ())),
            "speechmill": __version__,
        }
        tag = f"v{sha256_json([about, shards, card])[:12]}"
        card = render_card(found, profile, summary, source, config, paths, repository=repository.name, tag=tag)
        manifest = _json({**about, "version": tag, "files": shards})
        small = {CARD: card.encode(), FIGURE: figure.getvalue(), MANIFEST: manifest, MARK: MARK_TEXT.encode()}
        title = f"{config['dataset']} {tag}: {found.clips['accepted']} clips"
        commit = _commit_series(repository, [record.sent for record in records], small, title)
        return tag, commit, {record.path: record.sent for record in records} | small

    try:
        tag, commit, files = commit_all()
    except LostObjectsError as error:  # the Hub deletes files that were sent but not committed for a long time
        print(f"{repository.name}: {error}; sending the files again that are not committed", flush=True)
        _, tree = repository.head()
        sender.forget(differences(tree, {record.path: record.sent for record in records}))
        records = _send_all(sender, plan, settings["uploads"])
        tag, commit, files = commit_all()
    _verify(repository, commit, files)
    repository.tag(tag, commit, files)
    if not config["keep_enhanced"]:
        sender.published.record_clips(found, records, commit)
    entries = sorted([record.listed for record in records] + _small_entries(files), key=lambda f: f["path"])
    where = {"target": repository.url, "repository": repository.name, "commit": commit, "tag": tag}
    content = {"kind": "hub", **where, **sentinel_content(entries, found, summary, source)}
    write_json(sentinel, content)
    return content


def _check_removed(found: Survey, removed: Mapping[str, Sequence[str]] | None) -> None:
    """Check that no accepted clip is on the list of removals, because a ranking may be older than the list.

    Raises:
        SpeechmillError: an accepted clip is on the list.
    """
    if not removed or not any(removed.values()):
        return
    for batch in found.batches:
        table = pq.read_table(batch.ranking, columns=["id", "speaker_id"], filters=[("state", "=", "accepted")])
        if pc.any(is_removed(table, removed)).as_py():
            raise SpeechmillError(
                f"batch {batch.id} was ranked before some of its clips were added to the list of removals: run again"
            )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _small_entries(files: Mapping[str, LargeFile | bytes]) -> list[dict[str, Any]]:
    return [
        {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "rows": None}
        for path, data in files.items()
        if isinstance(data, bytes)
    ]


def _check_ownership(repository: Repository, tree: Mapping[str, Any]) -> None:
    foreign = sorted(path for path in tree if path in (CARD, MANIFEST) or OWN_SHARD.fullmatch(path))
    if MARK not in tree and foreign:
        raise SpeechmillError(
            f"{repository.url} has {foreign[0]}, which was not written by speechmill and would be replaced. Set "
            f"publish.repo to a new name; or, if all of it may be replaced, add an empty file {MARK} to it and run again"
        )


def _send_all(sender: Sender, plan: Sequence[Planned], uploads: int) -> list[Record]:
    """Send all files that were not sent before, `uploads` at a time; returns the records of all, in their order."""
    with ThreadPoolExecutor(uploads) as pool:
        return list(bounded_map(pool, sender.send, plan, ahead=2 * uploads))


def _commit_series(repository: Repository, sent: Sequence[LargeFile], small: Mapping[str, bytes], title: str) -> str:
    """Commit all files in groups, with the small files (card, manifest) in the last. Returns the last commit."""
    _, tree = repository.head()
    keep = {file.path for file in sent}
    new = set(differences(tree, {file.path: file for file in sent}))
    adding: list[LargeFile | str] = [file for file in sent if file.path in new]
    steps = adding + sorted(path for path in tree if OWN_SHARD.fullmatch(path) and path not in keep)
    size = FILES_PER_COMMIT - len(small)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)] or [[]]
    for number, group in enumerate(groups, 1):
        with_group = small if number == len(groups) else {MARK: small[MARK]}
        commit = repository.commit(
            f"{title} ({number} of {len(groups)})",
            [step for step in group if isinstance(step, LargeFile)],
            with_group,
            [step for step in group if isinstance(step, str)],
        )
    return commit


def _verify(repository: Repository, commit: str, files: Mapping[str, LargeFile | bytes]) -> None:
    """Read the tree of a commit back and compare every file by checksum and size.

    Raises:
        SpeechmillError: a file differs.
    """
    tree = repository.tree(commit)
    wrong = differences(tree, files)
    wrong += sorted(path for path in tree if OWN_SHARD.fullmatch(path) and path not in files)
    if wrong:
        raise SpeechmillError(
            f"{repository.url} at {commit}: {len(wrong)} files differ from what was sent "
            f"({', '.join(wrong[:5])}). Check that no one else writes to the repository, then run again"
        )


class Published:
    """The audio of the last complete version, for runs that do not keep enhanced shards (`keep_enhanced: false`)."""

    def __init__(self, repository: Repository, folder: Path):
        self.repository, self.folder = repository, folder

    def clips_file(self, batch: str) -> Path:
        return self.folder / "clips" / f"{batch}.parquet"

    def record_clips(self, found: Survey, records: Sequence[Record], commit: str) -> None:
        """Record for every batch its published clips, the shards of the commit that have them, and `audio_origin`."""
        paths: dict[str, list[tuple[str, str]]] = {batch.id: [] for batch in found.batches}
        for record in records:
            if name := _BATCH.fullmatch(record.path):
                paths[name[1]].append((record.path, record.sha256))
        for batch in found.batches:
            ids = _accepted(batch)["id"]
            where = {"repository": self.repository.name, "commit": commit, "paths": json.dumps(paths[batch.id])}
            metadata = where | {"origin": batch.audio_origin}
            write_table(pa.table({"id": ids}).replace_schema_metadata(metadata), self.clips_file(batch.id))

    def has(self, batch: Batch) -> bool:
        """Whether the last version has all accepted clips of a batch, with their current audio."""
        try:
            recorded = pq.read_table(self.clips_file(batch.id))
        except (OSError, pa.ArrowException):
            return False
        if (recorded.schema.metadata or {}).get(b"origin", b"").decode() != batch.audio_origin:
            return False
        return bool(
            pc.all(pc.is_in(_accepted(batch)["id"], value_set=recorded["id"].combine_chunks())).as_py() is not False
        )

    def fetch(self, planned: Planned, folder: Path) -> dict[str, tuple[Path, ...]]:
        """Download the published shards of those batches of a file whose audio is not on disk.

        Returns:
            Batch id -> downloaded shards.

        Raises:
            SpeechmillError: shards are gone or damaged; the message says what to do.
        """
        found = {}
        for batch in planned.batches:
            if all(path.exists() for path in batch.audio) or not self.has(batch):
                continue
            metadata = pq.read_schema(self.clips_file(batch.id)).metadata
            name, commit = (metadata[key].decode() for key in (b"repository", b"commit"))
            repository = Repository(name, self.repository.minutes)  # publish.repo may have changed since
            try:
                files = {path: repository.download(path, commit, folder) for path, _ in json.loads(metadata[b"paths"])}
            except HubRefusedError as error:
                self.clips_file(batch.id).unlink()
                (self.folder / "again.txt").unlink(missing_ok=True)
                raise SpeechmillError(
                    f"batch {batch.id}: its published shards can no longer be downloaded ({error}). Run again: the "
                    "batch will be enhanced again"
                ) from error
            bad = [path for path, sha256 in json.loads(metadata[b"paths"]) if sha256_file(files[path]) != sha256]
            if bad:
                raise SpeechmillError(f"{repository.url}: the download of {bad[0]} is damaged; run again")
            found[batch.id] = tuple(files.values())
        return found


def _accepted(batch: Batch) -> pa.Table:
    return pq.read_table(batch.ranking, columns=["id", "input_duration"], filters=[("state", "=", "accepted")])


def batches_of(rankings: Iterable[Path], run_dir: Path) -> list[Batch]:
    """The batches of a run, by their ranking tables. Their audio is the enhanced shard, or the restored one."""
    found = []
    for ranking in rankings:
        name = ranking.name
        enhanced, restored = run_dir / "enhanced" / name, run_dir / "restored" / name
        audio = enhanced if enhanced.exists() or not restored.exists() else restored
        ledger = run_dir / "ledger" / f"{ranking.stem}.enhance.parquet"
        found.append(Batch(ranking.stem, ranking, (audio,), origin_of(ledger), origin_of(run_dir / "scores" / name)))
    return found


def cost_of(batches: Sequence[Batch], of: int, run_dir: Path) -> str:
    """A message with the cost of enhancing `batches`, out of `of`, again. The time is that of the last time."""
    clips = sum(pq.read_metadata(batch.ranking).num_rows for batch in batches)
    columns = [pq.read_table(batch.ranking, columns=["input_duration"])["input_duration"] for batch in batches]
    hours = sum(pc.sum(column).as_py() or 0.0 for column in columns) / 3600
    timing = stage_timing(run_dir / "logs").get("enhance")
    each = f", about {timing['seconds'] / timing['jobs'] * len(batches) / 3600:.2g} hours of jobs" if timing else ""
    return (
        f"{len(batches)} of {of} batches have clips that were not published before, and their enhanced shards were "
        f"deleted (keep_enhanced: false); enhancing them again: {clips} clips, {hours:.2f} hours of audio{each}"
    )


def without_audio(
    batches: Iterable[Batch], profile: dict[str, Any], config: dict[str, Any], folder: Path
) -> list[Batch]:
    """The batches that have to be enhanced again before publication.

    They have accepted clips whose audio is neither on disk nor in the last published version.
    """
    sender = Sender(Repository(config["publish"]["repo"], config["publish"]["patience_minutes"]), folder)
    found = []
    for batch in batches:
        if all(path.exists() for path in batch.audio) or sender.published.has(batch):
            continue
        if not all(
            sender.known(planned) for planned in plan_files(survey([batch]), profile, config) if planned.is_data
        ):
            found.append(batch)
    return found
