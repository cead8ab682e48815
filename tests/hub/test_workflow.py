"""Real Snakemake on a data set of the Hub: fetched while it is enhanced, within a bound, and again when it has grown."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from speechmill.storage.files import read_json

from .. import corpora
from ..patience import seconds
from ..runs import RESULTS, Run, kill_group, wait_for
from .conftest import serve
from .server import Repo
from .test_sources import files_of

FILES = 4


def make_repo(hub, folder: Path, files: int) -> Repo:
    """A data set of so many files of two clips."""
    for number in range(files):
        corpora.parquet(folder / "data" / f"train-{number:05d}.parquet", 2 * number, 2)
    made = hub.repos["lab/speech"] = Repo()
    made.commit(files_of(folder))
    return made


@pytest.fixture
def repo(hub, tmp_path):
    return make_repo(hub, tmp_path / "repo", 2)


class HubRun(Run):
    """Two jobs of one core each at a time."""

    def command(self, *arguments):
        return super().command("--set-threads", "enhance=1", "score=1", *arguments)


def hub_run(directory, max_bytes=10**9, **changes) -> HubRun:
    source = {"kind": "hf_parquet", "repo": "lab/speech", "path": None, "metadata": None, "may_publish": "private"}
    download = {"max_gb": max_bytes / 1e9, "patience_minutes": 0.5}
    return Run(
        directory, source=source | changes.pop("source", {}), download=download, enhance={"trim": False}, **changes
    )


class Watched:
    """The most bytes that a folder held, looked at every 10 ms, and how many files at once."""

    def __init__(self, folder: Path):
        self.folder, self.bytes, self.files = folder, 0, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self.stop.wait(0.01):
            sizes = []
            for path in self.folder.glob("*") if self.folder.exists() else ():
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            self.bytes, self.files = max(self.bytes, sum(sizes)), max(self.files, sum(size > 1000 for size in sizes))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()


def states(run):
    return read_json(run.results / "report" / "summary.json")["clips"]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A run whose files were fetched within a bound, not to be changed: copy it. `disk` is what was there at once."""
    folder = tmp_path_factory.mktemp("fetched")
    with pytest.MonkeyPatch.context() as patch:
        hub = serve(patch)
        repo = make_repo(hub, folder / "repo", FILES)
        sizes = [len(data) for data in repo.commits[repo.main].values()]
        bound = max(sizes) * 2 + 1000  # of four files, two or three at once
        run = hub_run(folder / "run", bound)
        with Watched(run.results / "raw") as disk:
            done = run.start("--resources", "download_slots=2")
        files = folder / "repo"
        yield SimpleNamespace(run=run, hub=hub, repo=repo, files=files, sizes=sizes, bound=bound, disk=disk, done=done)
        hub.close()


def test_files_are_fetched_within_the_bound_while_others_are_enhanced(fetched):
    run, disk, done = fetched.run, fetched.disk, fetched.done
    assert done.jobs["fetch"] == done.jobs["enhance"] == FILES
    assert disk.bytes <= fetched.bound + 5000, (disk.bytes, fetched.bound)  # reservations are small files, too
    assert 2 <= disk.files <= 3  # the next one came while one was being enhanced
    assert disk.bytes < sum(fetched.sizes) * 0.8
    assert not (run.results / "raw").exists()
    first = min(i for i, line in enumerate(done.output.splitlines()) if "rule enhance:" in line)
    last = max(i for i, line in enumerate(done.output.splitlines()) if "rule fetch:" in line)
    assert first < last
    counts = states(run)
    assert counts["input"] == 2 * FILES
    assert read_json(run.results / "source.json")["revision"] == fetched.repo.main


def test_a_new_commit_costs_what_it_changed_and_the_same_one_nothing(fetched, tmp_path, monkeypatch):
    run, hub, repo = fetched.run.copy(tmp_path / "run"), fetched.hub, fetched.repo
    monkeypatch.setattr(repo, "commits", dict(repo.commits))
    hub.log.clear()
    assert "Nothing to be done" in run.start().output
    assert not hub.requests("resolve|tree")  # one question after the newest commit

    # One file changed, one new. The others keep ids, scores and bytes.
    before = run.hashes("scores", "enhanced")
    ids = pq.read_table(run.results / "report" / "ranking.parquet", columns=["id"])["id"].to_pylist()
    files = Path(shutil.copytree(fetched.files, tmp_path / "repo"))
    corpora.parquet(files / "data" / "train-00003.parquet", 40, 2)
    corpora.parquet(files / "data" / f"train-{FILES:05d}.parquet", 50, 2)
    repo.commit(files_of(files))
    hub.log.clear()
    done = run.start()
    assert done.jobs["fetch"] == done.jobs["enhance"] == 2
    assert {line[1].rsplit("/", 1)[1] for line in hub.requests(r"resolve.*parquet", "GET")} == {
        f"train-{number:05d}.parquet" for number in range(FILES + 1)
    }  # their footers
    after = run.hashes("scores", "enhanced")
    assert sum(after.get(name) != digest for name, digest in before.items()) == 2  # the changed file's
    assert len(after) == len(before) + 2
    assert set(ids) < set(pq.read_table(run.results / "report" / "ranking.parquet", columns=["id"])["id"].to_pylist())
    assert states(run)["input"] == 2 * FILES + 2
    assert read_json(run.results / "source.json")["revision"] == repo.main


def test_a_run_that_was_killed_goes_on_with_its_commit_and_its_bytes(fetched, tmp_path, monkeypatch):
    repo, run = fetched.repo, hub_run(tmp_path / "run", fetched.bound)
    monkeypatch.setattr(repo, "commits", dict(repo.commits))
    process = run.popen()
    wait_for(lambda: list((run.results / "ledger").glob("*.parquet")))
    kill_group(process)
    pinned = repo.main
    repo.commit({"README.md": b"moved on"})
    run.start("--unlock")
    run.start()
    assert read_json(run.results / "source.json")["revision"] == pinned
    assert run.hashes(*RESULTS) == fetched.run.hashes(*RESULTS)


def test_a_file_that_cannot_be_had_costs_only_its_own_batches(hub, repo, tmp_path):
    """Refused in the middle of a run: said once, not tried again, and all other batches are scored."""
    hub.fail(r"train-00001\.parquet", method="GET", status=403, times=1000)
    run = hub_run(tmp_path / "run")
    # Its footer is read while listing: let that pass.
    hub.faults[0].times = 0
    process = run.popen()
    wait_for((run.results / "source.json").exists)
    hub.faults[0].times = 1000
    assert process.wait(seconds(1200)) != 0
    log = (run.directory / "snakemake.log").read_text()
    assert log.count("Error in rule fetch:") == 1
    assert "train-00001.parquet: the Hub refuses" in log
    assert len(list((run.results / "scores").glob("*.parquet"))) == 1
    assert not (run.results / "published").exists()
    hub.faults.clear()
    run.start()
    assert states(run)["input"] == 4


def test_what_is_refused_is_said_before_any_job(hub, repo, tmp_path):
    done = hub_run(tmp_path / "run", source={"repo": "lab/nothing"}).start(check=False)
    assert done.status != 0
    assert "lab/nothing main: there is no such data set on the Hub" in done.output
    assert "Traceback" not in done.output
    assert not done.jobs
    repo.gated = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_of_somebody_else")
        done = hub_run(tmp_path / "gated").start(check=False)
    assert done.status != 0
    assert "Accept its terms on https://huggingface.co/datasets/lab/speech" in done.output
    assert set(done.jobs) == {"preflight"}
    assert "hf_of_somebody_else" not in done.output


def test_a_file_larger_than_the_bound_is_named(repo, tmp_path):
    done = hub_run(tmp_path / "run", 1000).start(check=False)
    assert "but download.max_gb is 1e-06; raise download.max_gb" in done.output
