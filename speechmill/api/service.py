"""What the API does, whoever asks: its own calls, those of another protocol, or the clock."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anyio
import yaml

from speechmill import owner, runs
from speechmill.api import audit_log, journal
from speechmill.api.auth import Tokens
from speechmill.api.dryrun import DryRun, dry_run
from speechmill.api.records import Reading, Records
from speechmill.api.requests import check_settings, check_types
from speechmill.api.settings import Settings
from speechmill.api.store import Busy, Run, Store, new_id, same_request
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.estimate import Estimate, earlier_runs, estimate
from speechmill.files import sha256_json, write_text
from speechmill.metrics import all_metrics, resolve_groups
from speechmill.ranking.profile import load_profile, with_weights
from speechmill.rerank import changed_weights
from speechmill.supervise import Plan
from speechmill.times import utc_now

REQUESTS = "api"  # folder of a run, for the settings of its requests
CONFIG = runs.CHECKOUT / "config"
FREE_BYTES = 2**20
TELLERS = 2  # threads for all who listen to events: other calls do not wait for dozens who are told what was before
DRY_RUNS = 2  # at the same time
TROUBLES_SECONDS = 5.0  # for which is told what was wrong: whoever asks needs no token


class Overloaded(SpeechmillError):
    """Too many ask for what takes long."""


class Service:
    """One server's, for all its threads. Whatever it starts does not need it afterwards."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.store = Store(settings.state_dir)
        self.records = Records()
        self.tokens = Tokens(settings.tokens)
        self.audit = audit_log.open_log(settings.audit)
        self.streams: Counter[str] = Counter()  # of events, that callers listen to
        self.wake = threading.Event()  # for whoever starts runners
        self.tellers = anyio.CapacityLimiter(TELLERS)
        self.saving = threading.Lock()  # of schedules
        self._dry_runs = threading.Semaphore(DRY_RUNS)
        self._troubles: list[str] = []
        self._looked_at = -math.inf
        self._looking = threading.Lock()

    # Begin runs

    def trigger(self, caller: str, dataset: str, config: Mapping[str, Any], key: str | None = None) -> Run:
        """Begin a run; with a `key` that has begun one, that run.

        Raises:
            ConfigError: the data set is not known, or a setting not allowed or not valid.
            Busy: the corpus is being worked on.
            KeyReused: the key came with another request.
        """
        body = sha256_json({"dataset": dataset, "config": config})
        earlier = self.store.of_key(caller, key) if key is not None else None
        if earlier:
            return same_request(earlier, body)
        run_id = new_id()
        run_dir = Path(self._plan_of_corpus(dataset, config).run_dir)
        self._refuse_busy(dataset, run_dir)
        file = run_dir / REQUESTS / f"{run_id}.yaml"
        try:
            plan = self._plan(dataset, config, file)
            run = Run(
                id=run_id,
                dataset=dataset,
                run_dir=plan.run_dir,
                config=json.dumps(config),
                plan=json.dumps(asdict(plan)),
                caller=caller,
                created=utc_now(),
                hours=self._hours(plan),
                key=key,
                body=body,
            )
            made = self.store.create(run)
        except SpeechmillError:
            file.unlink(missing_ok=True)
            raise
        if made.id == run_id:
            with _telling(run, "created"):
                journal.note_created(run)
            self.wake.set()
        else:  # the same request came twice at the same time
            file.unlink(missing_ok=True)
        return made

    def rerank(self, caller: str, run: Run, rank: Mapping[str, Any], key: str | None = None) -> Run:
        """A new run of the same corpus, as `run` was configured but for the ranking."""
        config = json.loads(run.config)
        of_run, of_corpus = config.get("rank", {}), runs.plan_config(self._plan_of_corpus(run.dataset, config))["rank"]
        configured = {"weights": of_corpus.get("weights", {}) | of_run.get("weights", {})}
        weights = changed_weights(configured, rank.get("profile"), rank.get("weights"))
        changed = dict(rank) | ({"weights": weights} if weights else {})
        return self.trigger(caller, run.dataset, config | {"rank": of_run | changed}, key)

    def resume(self, run: Run, caller: str) -> Run:
        """Go on with a run that failed or was cancelled.

        Raises:
            Busy: it is active or has succeeded, or another one works on the corpus.
        """
        found = self.store.reopen(run.id, f"resumed by {caller}")
        with _telling(run, "resumed"):
            journal.note(Path(run.run_dir), "resumed", run.id)
        self.wake.set()
        return found

    def stop(self, run: Run, how: str) -> Run:
        """`cancel` a run, or `drain` it: the run as it is then. It ends a little later.

        Raises:
            Busy: it has ended.
        """
        if not run.is_active:
            raise Busy(f"{run.id} has ended already: it is {run.state}", None)
        found = self.store.want(run.id, how)
        assert found
        if not found.is_active:
            with _telling(run, found.state):
                journal.note(Path(run.run_dir), "ended", run.id, state=found.state)
        self.wake.set()
        return found

    def check(self, dataset: str, config: Mapping[str, Any]) -> None:
        """Whether a run could be begun with these settings.

        Raises:
            ConfigError: as of `trigger`.
        """
        with self._trial(dataset, config):
            pass

    # Look

    def reading(self, run: Run) -> Reading:
        return self.records.read(run.run_dir)

    def folders(self) -> list[Path]:
        return [Path(folder) for folder in self.store.folders()]

    def result_folder(self, dataset: str) -> Path:
        """Where runs of a data set are, or would be.

        Raises:
            ConfigError: it is not known, or not valid.
        """
        return Path(self._make_plan(dataset, None).run_dir)

    def result_folders(self) -> dict[str, Path]:
        """Those of all data sets."""
        found = {}
        for file in sorted(CONFIG.glob("datasets/*.yaml")):
            with suppress(ConfigError):  # of that data set alone
                found[file.stem] = self.result_folder(file.stem)
        return found

    def corpora(self) -> list[dict[str, Any]]:
        """The data sets that this server can run."""
        active = {run.dataset: run.id for run in self.store.active()}
        found = []
        for file in sorted(CONFIG.glob("datasets/*.yaml")):
            source: Any = None
            with suppress(ConfigError):  # a trigger says what is wrong
                source = runs.read_settings(file).get("source")
            given = source if isinstance(source, dict) else {}
            said = {name: given[name] if isinstance(given.get(name), str) else None for name in ("kind", "license")}
            found.append({"name": file.stem} | said | {"active_run_id": active.get(file.stem)})
        return found

    def validate(self, dataset: str, config: Mapping[str, Any]) -> DryRun:
        """Whether a run could begin, and what it would do.

        Raises:
            Overloaded: other dry runs are at work.
        """
        if not self._dry_runs.acquire(blocking=False):  # who waits would keep a thread from all others
            raise Overloaded(f"{DRY_RUNS} dry runs are at work, and no more at the same time: try again in a while")
        try:
            with self._trial(dataset, config) as plan:
                return dry_run(plan, self.settings.dry_run_seconds)
        except ConfigError as error:
            return DryRun(False, str(error).splitlines(), {})
        finally:
            self._dry_runs.release()

    def estimate(self, dataset: str, config: Mapping[str, Any]) -> Any:
        """What a run would take.

        Raises:
            ConfigError: as of `trigger`.
            SpeechmillError: it cannot be estimated.
        """
        with self._trial(dataset, config) as plan:
            return asdict(self._estimate(plan))

    def troubles(self) -> list[str]:
        """What keeps this server from beginning runs, in words that everybody may read; as of some seconds ago."""
        with self._looking:
            if time.monotonic() - self._looked_at > TROUBLES_SECONDS:
                self._troubles, self._looked_at = self._look_for_troubles(), time.monotonic()
            return list(self._troubles)

    def _look_for_troubles(self) -> list[str]:
        found = []
        try:
            self.store.check()
        except sqlite3.Error as error:
            found.append(f"the data base cannot be written: {error}")
        if not self.tokens.known():
            found.append("there is no valid token: speechmill serve --new-token, and the file of tokens must be 0600")
        for what, folder in (
            ("state directory", self.settings.state_dir),
            ("working directory", self.settings.directory),
        ):
            try:
                if shutil.disk_usage(folder).free < FREE_BYTES:
                    found.append(f"the file system of the {what} is full")
            except OSError as error:
                found.append(f"the {what} cannot be read: {error.strerror}")
        return found

    # How runs are started

    def _plan_of_corpus(self, dataset: str, config: Mapping[str, Any]) -> Plan:
        """How the corpus is run without a request's settings, once these are known to be allowed."""
        plan = self._make_plan(dataset, None)
        check_settings(config, runs.plan_config(plan)["publish"]["kind"], _profiles())
        return plan

    def _plan(self, dataset: str, config: Mapping[str, Any], file: Path) -> Plan:
        """How to start a run with a request's settings, which are written into `file`."""
        if config:
            write_text(file, yaml.safe_dump(dict(config), allow_unicode=True))
        plan = self._make_plan(dataset, file if config else None)
        complete = runs.plan_config(plan)
        check_types(config, complete)
        resolve_groups(complete["score"]["metrics"])
        rank = complete["rank"]
        if rank["weights"] and rank["profile"] in _profiles():
            with_weights(load_profile(rank["profile"], CONFIG / "ranking", all_metrics()), rank["weights"])
        return plan

    @contextmanager
    def _trial(self, dataset: str, config: Mapping[str, Any]) -> Iterator[Plan]:
        """The plan of a run that is not started."""
        self._plan_of_corpus(dataset, config)
        with tempfile.TemporaryDirectory(dir=self.settings.state_dir) as folder:
            yield self._plan(dataset, config, Path(folder) / "request.yaml")

    def _make_plan(self, dataset: str, file: Path | None) -> Plan:
        return runs.make_plan(
            dataset,
            self.settings.profile,
            self.settings.directory,
            [],
            _with_config_file(self.settings.extra, file),
            poll_seconds=self.settings.poll_seconds,
            stall_seconds=self.settings.stall_seconds,
        )

    def _refuse_busy(self, dataset: str, run_dir: Path) -> None:
        if active := self.store.active(dataset):
            raise Busy(f"{dataset} has an active run: {active[0].id} ({active[0].state})", active[0].id)
        for name in (owner.FILE, owner.SUPERVISED):  # a person's speechmill run is there between two Snakemakes, too
            holder = owner.read_owner(run_dir, name)
            if holder and holder.is_alive:
                raise Busy(f"{dataset} is being worked on by {holder}, which this server did not start", None)

    def _hours(self, plan: Plan) -> float | None:
        try:
            hours: float | None = self._estimate(plan).wall_hours.value
            return hours
        except ConfigError:
            raise
        except (SpeechmillError, OSError, ValueError):
            return None

    def _estimate(self, plan: Plan) -> Estimate:
        run_dir, settings = Path(plan.run_dir), self.settings
        config, history = runs.plan_config(plan), earlier_runs(run_dir)
        return estimate(config, run_dir, history, profile=settings.profile, directory=settings.directory)


def _profiles() -> list[str]:
    """Names of ranking profiles."""
    return [path.stem for path in CONFIG.glob("ranking/*.yaml") if path.stem != "schema"]


@contextmanager
def _telling(run: Run, what: str) -> Iterator[None]:
    """Around a line of the journal about what was done already: without the line it is done all the same."""
    try:
        yield
    except OSError as error:
        print(f"speechmill: {run.id} was {what}, which {run.run_dir} cannot tell: {error}", file=sys.stderr, flush=True)


def _with_config_file(extra: tuple[str, ...], file: Path | None) -> list[str]:
    """Arguments of snakemake with a further --configfile: of several such options only the last counts."""
    if file is None:
        return list(extra)
    own, rest = runs.split_config_files(extra)
    return [*rest, "--configfile", *own, str(file)]
