"""What a request may set, and what becomes of it."""

import json
import shutil

import pytest
import yaml

from speechmill.api.service import _with_config_file
from speechmill.api.store import Busy
from speechmill.errors import ConfigError
from speechmill.runlog import run_lock
from speechmill.runs.plan import CHECKOUT
from speechmill.storage.files import write_json

from .quiet import EXAMPLE, Quiet


def test_the_settings_of_a_request_come_after_those_of_the_operator(tmp_path):
    extra = ("--cores", "2", "--configfile", "a.yaml", "b.yaml", "--retries", "0")
    assert _with_config_file(extra, tmp_path / "c.yaml") == [
        *("--cores", "2", "--retries", "0", "--configfile", "a.yaml", "b.yaml", f"{tmp_path}/c.yaml")
    ]
    assert _with_config_file(extra, None) == list(extra)


def test_what_a_request_sets_stands_in_a_file_as_it_was_given(service):
    given = {"batch_size": 7, "keep_enhanced": False, "rank": {"threshold": 1e-05}, "score": {"metrics": ["signal"]}}
    given["alerts"] = {"deadline": "2026-03-01T12:00+07:00", "stalled_minutes": None}
    run = service.trigger("tester", "demo", given)
    plan = json.loads(run.plan)
    file = plan["options"][-1]
    assert plan["options"][-2] == "--configfile"
    with open(file) as written:
        assert yaml.safe_load(written) == given
    assert str(run.id) in file


def test_a_busy_corpus_leaves_nothing_of_a_second_request(service):
    run = service.trigger("tester", "demo", {"batch_size": 7})
    with pytest.raises(Busy) as error:
        service.trigger("tester", "demo", {"batch_size": 8})
    assert error.value.active == run.id
    assert [path.stem for path in (service.settings.directory / "results" / "demo" / "api").iterdir()] == [run.id]


@pytest.mark.parametrize("name", ["owner.json", "supervisor.json"])
def test_a_corpus_that_a_person_works_on_is_busy_also_between_two_snakemakes(service, name):
    folder = service.result_folder("demo")
    folder.mkdir(parents=True)
    write_json(folder / name, vars(run_lock.this_process()))
    with pytest.raises(Busy, match="this server did not start"):
        service.trigger("tester", "demo", {})


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A checkout with a data set whose file is damaged."""
    checkout = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "config", checkout / "config")
    (checkout / "profiles").symlink_to(CHECKOUT / "profiles")
    monkeypatch.setattr("speechmill.runs.plan.CHECKOUT", checkout)
    monkeypatch.setattr("speechmill.api.service.CONFIG", checkout / "config")
    return checkout / "config" / "datasets" / "broken.yaml"


@pytest.mark.parametrize(
    "text", ["source: [", "- a", "source:", "source: folder", "source: {kind: 2020-01-01}", b"\xff"]
)
def test_the_damaged_file_of_a_data_set_is_of_that_one_alone(broken, service, text):
    broken.write_bytes(text if isinstance(text, bytes) else text.encode())
    corpora = {corpus["name"]: corpus for corpus in service.corpora()}
    assert corpora["broken"] == {"name": "broken", "kind": None, "license": None, "active_run_id": None}
    assert corpora["demo"]["kind"] == "folder"
    json.dumps(list(corpora.values()))
    for begin in (service.check, service.estimate):
        with pytest.raises(ConfigError):
            begin("broken", {})
    assert not service.validate("broken", {}).valid


def test_a_request_for_too_many_batches_is_refused_before_they_are_counted_out(broken, service):
    broken.write_text(
        "source: {kind: hf_parquet, repo: a/b, license: MIT}\nexpected: {clips: 9600000, hours: 10000}\npublish: {kind: none}\n"
    )
    for begin in (service.estimate, lambda *given: service.trigger("tester", *given)):
        with pytest.raises(
            ConfigError, match="batch_size 1 makes 9600000 batches, more than 100000: set it to 96 or more"
        ):
            begin("broken", {"batch_size": 1})
    assert service.store.active("broken") == []
    assert service.estimate("broken", {"batch_size": 96})["batches"]["value"] == 100_000


def test_of_several_logs_that_are_too_long_together_the_last_lines_are_told(tmp_path, monkeypatch):
    with Quiet(tmp_path) as quiet:
        logs = tmp_path / "results" / "example" / "logs"
        for file, words in ((logs / "batches" / "report.log", "ab"), (logs / "report.log", "cd")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
        monkeypatch.setattr("speechmill.api.routes_runs.MOST_LINES", 3)
        answer = quiet.call("GET", f"/pipeline/runs/{EXAMPLE}/logs?name=report")
        assert [line["text"] for line in answer.json()["lines"]] == ["b", "c", "d"]
