"""Publishing to a data set repository of the Hub: exactly once, resumable, verified.

Shards are built one at a time, sent ahead without being committed, and deleted here; what was sent is kept in small
records (`published/data/NAME.json`), so that nothing is built or sent twice. Then one process commits them in groups,
the last of which brings the card and the manifest; the tree of that commit is read back and compared; it gets a tag;
and only then the sentinel is written. Whoever reads a tag reads a complete version, always.
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
from speechmill.files import read_json, sha256_file, sha256_json, write_json
from speechmill.hub import HubRefusedError
from speechmill.job import stage_timing
from speechmill.parallel import bounded_map
from speechmill.publish.card import render_card
from speechmill.publish.figure import FIGURE, write_figure
from speechmill.publish.folder import CARD, MARK, MARK_TEXT, SHARD, HashingSink, account, check_balance
from speechmill.publish.repository import FILES_PER_COMMIT, LostObjectsError, Repository, Sent, differences
from speechmill.publish.shards import Planned, plan_files
from speechmill.publish.survey import Batch, Survey, origin_of, survey
from speechmill.removal import add_removals, is_removed
from speechmill.shards import write_table

MANIFEST = "manifest.json"
OURS = re.compile(rf"(data|scores)/{SHARD}")
_BATCH = re.compile(r"data/[a-z]+-(.*)-\d{5,}-of-\d{5,}\.parquet")


@dataclass(frozen=True)
class Record:
    """A file of the data set that was sent: what it was made from, to which repository, and how many rows it has."""

    path: str
    sha256: str
    size: int
    rows: int
    made_from: str
    repository: str

    @property
    def sent(self) -> Sent:
        return Sent(self.path, self.sha256, self.size)

    @property
    def listed(self) -> dict[str, Any]:
        """Its entry in manifest and sentinel."""
        return {"path": self.path, "sha256": self.sha256, "size": self.size, "rows": self.rows}


class Sender:
    """Builds and sends the files of one run, and remembers what was sent.

    `folder` is published/ of the run.
    """

    def __init__(self, repository: Repository, folder: Path):
        self.repository, self.folder = repository, folder
        self.published = Published(repository, folder)

    def file_of(self, path: str) -> Path:
        return self.folder / f"{path.removesuffix('.parquet')}.json"

    def known(self, planned: Planned) -> Record | None:
        """The record of a file, if it was sent as it would be built now."""
        try:
            record = Record(**read_json(self.file_of(planned.path)))
        except (OSError, ValueError, TypeError):
            return None
        same = (record.path, record.made_from, record.repository)
        return record if same == (planned.path, planned.made_from, self.repository.name) else None

    def send(self, planned: Planned) -> Record:
        """The record of a file, which is built and sent unless that was done before."""
        record = self.known(planned)
        if record:
            return record
        with self.room() as folder:
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
        for path in paths:
            self.file_of(path).unlink(missing_ok=True)

    @contextmanager
    def room(self) -> Iterator[Path]:
        """A folder for a file that is on its way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sending-", dir=self.folder) as folder:
            yield Path(folder)

    def sweep(self, keep: Iterable[str]) -> None:
        """Remove what killed processes left, and records of files that are no longer in the data set."""
        for left in self.folder.glob(".sending-*"):
            shutil.rmtree(left, ignore_errors=True)
        kept = {self.file_of(path) for path in keep}
        for part in ("data", "scores"):
            for file in (self.folder / part).glob("*.json"):
                if file not in kept:
                    file.unlink()


def send_batch(batch: Batch, profile: dict[str, Any], config: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Send the shards of one batch ahead; their entries of the manifest.

    `batch.ranking` is as good as it can be while other batches are missing: what turns out to be a duplicate of
    another batch's clip later changes its shard, which is then sent again.
    """
    settings = config["publish"]
    sender = Sender(Repository(settings["repo"], settings["patience_minutes"]), folder)
    plan = plan_files(survey([batch]), profile, config)
    return [sender.send(planned).listed for planned in plan if planned.is_data]


def check_target(config: dict[str, Any], run_dir: Path) -> bool:
    """Before anything is computed: token, name, right to write, openness, and that what is there is ours.

    The repository is made if it is missing. What was removed from what it holds goes on this run's list: a run that
    begins anew does not bring it back. Returns whether that was news.

    Raises:
        SpeechmillError: what is wrong, and what to do.
    """
    settings = config["publish"]
    repository = Repository(settings["repo"], settings["patience_minutes"])
    repository.open(settings["visibility"])
    commit, tree = repository.head()
    _check_ours(repository, tree)
    if MANIFEST not in tree:
        return False
    run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".manifest-", dir=run_dir) as folder:
        try:
            manifest = read_json(repository.download(MANIFEST, commit, Path(folder)))
            dataset, removed = manifest["dataset"], [str(clip) for clip in manifest["removed"]]
        except (ValueError, KeyError, TypeError) as error:
            raise SpeechmillError(
                f"{repository.url}: its {MANIFEST} cannot be read ({error}): repair or delete it, with what it holds"
            ) from error
    if dataset != config["dataset"]:
        raise SpeechmillError(
            f"{repository.url} holds the data set {dataset}, which {config['dataset']} would replace: set publish.repo "
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
    """Make `publish.repo` hold exactly this version, read it back, tag it, and only then write `sentinel`.

    `profile`, `summary` and `source` are the contents of ranking/profile.json, report/summary.json and source.json;
    `removed` is what was asked to be removed. A repetition after any interruption sends and commits what is missing,
    and nothing else.

    Raises:
        LedgerError: the tables do not agree with each other or with the summary.
        HubRefusedError: the Hub says no; the message says what to do.
        SpeechmillError: the repository holds what is not ours, or what was read back is not what was sent.
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
    _check_ours(repository, tree)
    sender = Sender(repository, folder)
    sender.sweep(planned.path for planned in plan)
    records = _send_all(sender, plan, settings["uploads"])
    figure = io.BytesIO()
    write_figure(figure, [batch.ranking for batch in found.batches], profile, summary)

    def commit_all() -> tuple[str, str, dict[str, Sent | bytes]]:
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
    except LostObjectsError as error:  # sent long ago, never committed, and swept away by the Hub: once more
        print(f"{repository.name}: {error}; what is not committed is sent again", flush=True)
        _, tree = repository.head()
        sender.forget(differences(tree, {record.path: record.sent for record in records}))
        records = _send_all(sender, plan, settings["uploads"])
        tag, commit, files = commit_all()
    _verify(repository, commit, files)
    repository.tag(tag, commit, files)
    if not config["keep_enhanced"]:
        sender.published.note(found, records, commit)
    entries = sorted([record.listed for record in records] + _small_entries(files), key=lambda f: f["path"])
    where = {"target": repository.url, "repository": repository.name, "commit": commit, "tag": tag}
    content = {"kind": "hub", **where, **account(entries, found, summary, source)}
    write_json(sentinel, content)
    return content


def _check_removed(found: Survey, removed: Mapping[str, Sequence[str]] | None) -> None:
    """That no accepted clip is on the list of removals: a ranking may be from before it was put there."""
    if not removed or not any(removed.values()):
        return
    for batch in found.batches:
        table = pq.read_table(batch.ranking, columns=["id", "speaker_id"], filters=[("state", "=", "accepted")])
        if pc.any(is_removed(table, removed)).as_py():
            raise SpeechmillError(
                f"batch {batch.id} was ranked before clips of it were put on the list of removals: run again"
            )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _small_entries(files: Mapping[str, Sent | bytes]) -> list[dict[str, Any]]:
    return [
        {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "rows": None}
        for path, data in files.items()
        if isinstance(data, bytes)
    ]


def _check_ours(repository: Repository, tree: Mapping[str, Any]) -> None:
    foreign = sorted(path for path in tree if path in (CARD, MANIFEST) or OURS.fullmatch(path))
    if MARK not in tree and foreign:
        raise SpeechmillError(
            f"{repository.url} holds {foreign[0]}, which was not written by speechmill and would be replaced. Set "
            f"publish.repo to a new name; or, if all of it may be replaced, add an empty file {MARK} to it and run again"
        )


def _send_all(sender: Sender, plan: Sequence[Planned], uploads: int) -> list[Record]:
    """The records of all files, in their order; those that are not known are sent, so many at a time."""
    with ThreadPoolExecutor(uploads) as pool:
        return list(bounded_map(pool, sender.send, plan, ahead=2 * uploads))


def _commit_series(repository: Repository, sent: Sequence[Sent], small: Mapping[str, bytes], title: str) -> str:
    """Commit everything in groups; card and manifest come last. Returns the last commit."""
    _, tree = repository.head()
    keep = {file.path for file in sent}
    new = set(differences(tree, {file.path: file for file in sent}))
    adding: list[Sent | str] = [file for file in sent if file.path in new]
    steps = adding + sorted(path for path in tree if OURS.fullmatch(path) and path not in keep)
    size = FILES_PER_COMMIT - len(small)
    groups = [steps[start : start + size] for start in range(0, len(steps), size)] or [[]]
    for number, group in enumerate(groups, 1):
        with_group = small if number == len(groups) else {MARK: small[MARK]}
        commit = repository.commit(
            f"{title} ({number} of {len(groups)})",
            [step for step in group if isinstance(step, Sent)],
            with_group,
            [step for step in group if isinstance(step, str)],
        )
    return commit


def _verify(repository: Repository, commit: str, files: Mapping[str, Sent | bytes]) -> None:
    """Read the tree of a commit back and compare every path by checksum and size."""
    tree = repository.tree(commit)
    wrong = differences(tree, files)
    wrong += sorted(path for path in tree if OURS.fullmatch(path) and path not in files)
    if wrong:
        raise SpeechmillError(
            f"{repository.url} at {commit}: read back, {len(wrong)} files are not what was sent "
            f"({', '.join(wrong[:5])}). Check that nobody else writes there, then run again"
        )


class Published:
    """What the last complete version has of each batch, where enhanced shards are not kept: its audio is there alone."""

    def __init__(self, repository: Repository, folder: Path):
        self.repository, self.folder = repository, folder

    def clips_file(self, batch: str) -> Path:
        return self.folder / "clips" / f"{batch}.parquet"

    def note(self, found: Survey, records: Sequence[Record], commit: str) -> None:
        """Note which shard of a commit has which clip, batch by batch, and what its audio came from."""
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
        """Whether all accepted clips of a batch are in the last version, with the audio that they have now."""
        try:
            noted = pq.read_table(self.clips_file(batch.id))
        except (OSError, pa.ArrowException):
            return False
        if (noted.schema.metadata or {}).get(b"origin", b"").decode() != batch.audio_origin:
            return False
        return bool(
            pc.all(pc.is_in(_accepted(batch)["id"], value_set=noted["id"].combine_chunks())).as_py() is not False
        )

    def fetch(self, planned: Planned, folder: Path) -> dict[str, tuple[Path, ...]]:
        """Published shards, by batch, for the batches of a file whose own audio is not on disk."""
        found = {}
        for batch in planned.batches:
            if all(path.exists() for path in batch.audio) or not self.has(batch):
                continue
            metadata = pq.read_schema(self.clips_file(batch.id)).metadata
            name, commit = (metadata[key].decode() for key in (b"repository", b"commit"))
            there = Repository(name, self.repository.minutes)  # another one, where publish.repo has changed since
            try:
                files = {path: there.download(path, commit, folder) for path, _ in json.loads(metadata[b"paths"])}
            except HubRefusedError as error:
                self.clips_file(batch.id).unlink()
                (self.folder / "again.txt").unlink(missing_ok=True)
                raise SpeechmillError(
                    f"batch {batch.id}: what was published of it cannot be had any more ({error}). Run again: it is "
                    "enhanced anew"
                ) from error
            bad = [path for path, sha256 in json.loads(metadata[b"paths"]) if sha256_file(files[path]) != sha256]
            if bad:
                raise SpeechmillError(f"{there.url}: {bad[0]} came damaged; run again, it is downloaded anew")
            found[batch.id] = tuple(files.values())
        return found


def _accepted(batch: Batch) -> pa.Table:
    return pq.read_table(batch.ranking, columns=["id", "input_duration"], filters=[("state", "=", "accepted")])


def batches_of(rankings: Iterable[Path], run_dir: Path) -> list[Batch]:
    """The batches of a run by their ranking tables; audio is the enhanced shard, or the same made again."""
    found = []
    for ranking in rankings:
        name = ranking.name
        enhanced, again = run_dir / "enhanced" / name, run_dir / "restored" / name
        audio = enhanced if enhanced.exists() or not again.exists() else again
        ledger = run_dir / "ledger" / f"{ranking.stem}.enhance.parquet"
        found.append(Batch(ranking.stem, ranking, (audio,), origin_of(ledger), origin_of(run_dir / "scores" / name)))
    return found


def cost_of(batches: Sequence[Batch], of: int, run_dir: Path) -> str:
    """What enhancing batches again takes, in one line for a person; measured by how long it took the last time."""
    clips = sum(pq.read_metadata(batch.ranking).num_rows for batch in batches)
    columns = [pq.read_table(batch.ranking, columns=["input_duration"])["input_duration"] for batch in batches]
    hours = sum(pc.sum(column).as_py() or 0.0 for column in columns) / 3600
    timing = stage_timing(run_dir / "logs" / "batches").get("enhance")
    each = f", about {timing['seconds'] / timing['jobs'] * len(batches) / 3600:.2g} hours of jobs" if timing else ""
    return (
        f"{len(batches)} of {of} batches have clips that were not published before, and their enhanced shards are gone "
        f"(keep_enhanced: false): they are enhanced again ({clips} clips, {hours:.2f} hours of audio{each})"
    )


def without_audio(
    batches: Iterable[Batch], profile: dict[str, Any], config: dict[str, Any], folder: Path
) -> list[Batch]:
    """The batches that have to be enhanced again before they can be published: clips come in that were not before."""
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
