"""What the API does, for its calls and for its schedules."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
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

from speechmill.analysis.rerank import changed_weights
from speechmill.api.auth import Tokens
from speechmill.api.dryrun import DryRun, dry_run
from speechmill.api.guard import open_audit_log
from speechmill.api.records import Reading, Records
from speechmill.api.requests import check_settings, check_types
from speechmill.api.settings import Settings
from speechmill.api.store import Busy, Run, Store, new_id, same_request
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.estimate.run_estimate import Estimate, earlier_runs, estimate
from speechmill.metrics import all_metrics, resolve_groups
from speechmill.publish.target import target_of
from speechmill.ranking.profile import load_profile, with_weights
from speechmill.runlog import run_lock
from speechmill.runs.plan import CHECKOUT, Plan, make_plan, plan_config, read_settings, split_config_files
from speechmill.storage.files import sha256_json, write_text
from speechmill.utils.times import utc_now

REQUESTS = "api"  # folder of a run, for the settings of its requests and its end
CONFIG = CHECKOUT / "config"
FREE_BYTES = 2**20
TELLERS = 2  # threads for all streams of events, so that other calls do not wait while many clients catch up
DRY_RUNS = 2  # at the same time
TROUBLES_SECONDS = 5.0  # for which an answer is reused, because the call needs no token


class Overloaded(SpeechmillError):
    """Too many slow calls at the same time."""


class Service:
    """Of one server, for all its threads. The runs that it starts continue without it."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.store = Store(settings.state_dir)
        self.records = Records()
        self.tokens = Tokens(settings.tokens)
        self.audit = open_audit_log(settings.audit)
        self.streams: Counter[str] = Counter()  # open streams of events, by caller
        self.wake = threading.Event()  # of the keeper
        self.tellers = anyio.CapacityLimiter(TELLERS)
        self._dry_runs = threading.Semaphore(DRY_RUNS)
        self._troubles: list[str] = []
        self._looked_at = -math.inf
        self._looking = threading.Lock()

    # Start and stop runs

    def trigger(self, caller: str, dataset: str, config: Mapping[str, Any], key: str | None = None) -> Run:
        """Start a run; if a run was started with the same `key`, return that run.

        Raises:
            ConfigError: the data set is not known, or a setting is not allowed or not valid.
            Busy: another run of the corpus is active.
            KeyReused: the key was used with another request.
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
            self.wake.set()
        else:  # two equal requests came at the same time
            file.unlink(missing_ok=True)
        return made

    def rerank(self, caller: str, run: Run, rank: Mapping[str, Any], key: str | None = None) -> Run:
        """Start a run of the same corpus, configured as `run` except for the ranking."""
        config = json.loads(run.config)
        of_run, of_corpus = config.get("rank", {}), plan_config(self._plan_of_corpus(run.dataset, config))["rank"]
        configured = {"weights": of_corpus.get("weights", {}) | of_run.get("weights", {})}
        weights = changed_weights(configured, rank.get("profile"), rank.get("weights"))
        changed = dict(rank) | ({"weights": weights} if weights else {})
        return self.trigger(caller, run.dataset, config | {"rank": of_run | changed}, key)

    def resume(self, run: Run, caller: str) -> Run:
        """Resume a run that failed or was cancelled.

        Raises:
            Busy: it is active or has succeeded, or another one works on the corpus.
        """
        if not run.is_active:
            (Path(run.run_dir) / result_file(run)).unlink(missing_ok=True)
        found = self.store.reopen(run.id, f"resumed by {caller}")
        self.wake.set()
        return found

    def stop(self, run: Run, how: str) -> Run:
        """Ask a run to stop, by `cancel` or `drain`, and return it. It ends a little later.

        Raises:
            Busy: it has ended.
        """
        if not run.is_active:
            raise Busy(f"{run.id} has ended already: it is {run.state}", None)
        found = self.store.request_stop(run.id, how)
        assert found
        self.wake.set()
        return found

    def check(self, dataset: str, config: Mapping[str, Any]) -> None:
        """Check that a run could be started with these settings.

        Raises:
            ConfigError: as of `trigger`.
        """
        with self._trial(dataset, config):
            pass

    # Read

    def reading(self, run: Run) -> Reading:
        return self.records.read(run.run_dir)

    def folders(self) -> list[Path]:
        return [Path(folder) for folder in self.store.folders()]

    def result_folder(self, dataset: str) -> Path:
        """The folder of the runs of a data set.

        Raises:
            ConfigError: it is not known, or not valid.
        """
        return Path(self._make_plan(dataset, None).run_dir)

    def corpora(self) -> list[dict[str, Any]]:
        """The data sets that this server can run."""
        active = {run.dataset: run.id for run in self.store.active()}
        found = []
        for file in sorted(CONFIG.glob("datasets/*.yaml")):
            source: Any = None
            with suppress(ConfigError):  # a trigger reports it
                source = read_settings(file).get("source")
            given = source if isinstance(source, dict) else {}
            said = {name: given[name] if isinstance(given.get(name), str) else None for name in ("kind", "license")}
            found.append({"name": file.stem} | said | {"active_run_id": active.get(file.stem)})
        return found

    def validate(self, dataset: str, config: Mapping[str, Any]) -> DryRun:
        """Whether a run could start, and which jobs it would have.

        Raises:
            Overloaded: too many dry runs are in progress.
        """
        if not self._dry_runs.acquire(blocking=False):  # waiting would keep a thread from other calls
            raise Overloaded(f"{DRY_RUNS} dry runs are at work, and no more at the same time: try again in a while")
        try:
            with self._trial(dataset, config) as plan:
                return dry_run(plan, self.settings.dry_run_seconds)
        except ConfigError as error:
            return DryRun(False, str(error).splitlines(), {})
        finally:
            self._dry_runs.release()

    def estimate(self, dataset: str, config: Mapping[str, Any]) -> Any:
        """Estimate time and disk space of a run.

        Raises:
            ConfigError: as of `trigger`.
            SpeechmillError: it cannot be estimated.
        """
        with self._trial(dataset, config) as plan:
            return asdict(self._estimate(plan))

    def troubles(self) -> list[str]:
        """What keeps this server from starting runs, some seconds ago. The messages contain no secrets."""
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
        """The plan of the corpus without a request's settings; checks first that these are allowed."""
        plan = self._make_plan(dataset, None)
        check_settings(config, target_of(plan_config(plan)).kind, _profiles())
        return plan

    def _plan(self, dataset: str, config: Mapping[str, Any], file: Path) -> Plan:
        """The plan of a run with a request's settings, which are written into `file`."""
        if config:
            write_text(file, yaml.safe_dump(dict(config), allow_unicode=True))
        plan = self._make_plan(dataset, file if config else None)
        complete = plan_config(plan)
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
        return make_plan(
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
        for holder in (run_lock.read_supervisor(run_dir), run_lock.read_owner(run_dir)):
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
        config, history = plan_config(plan), earlier_runs(run_dir)
        return estimate(config, run_dir, history, profile=settings.profile, directory=settings.directory)


def result_file(run: Run) -> Path:
    """The file in the folder of a run in which its supervisor writes how it ended, until that is in the data base."""
    return Path(REQUESTS) / f"{run.id}.json"


def _profiles() -> list[str]:
    """Names of ranking profiles."""
    return [path.stem for path in CONFIG.glob("ranking/*.yaml") if path.stem != "schema"]


def _with_config_file(extra: tuple[str, ...], file: Path | None) -> list[str]:
    """Arguments of snakemake with a further --configfile: of several such options only the last counts."""
    if file is None:
        return list(extra)
    own, rest = split_config_files(extra)
    return [*rest, "--configfile", *own, str(file)]
