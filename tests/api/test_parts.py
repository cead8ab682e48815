"""Parts of the server, each by itself."""

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import types

import pytest
import yaml

from speechmill import owner, runs
from speechmill.api import journal, processes, records, schedules, settings
from speechmill.api.auth import Tokens, new_token
from speechmill.api.keeper import MOST_RESTARTS, Keeper, rebuild
from speechmill.api.limits import Buckets
from speechmill.api.models import ScheduleRequest
from speechmill.api.schedules import begin_due, next_due
from speechmill.api.serve import _listen, check_bind, network_file_system, serve
from speechmill.api.service import Service, _with_config_file
from speechmill.api.store import Busy, Run
from speechmill.errors import ConfigError, SpeechmillError

from ..runs import wait_for
from .quiet import EXAMPLE, Quiet, make_service


@pytest.fixture
def service(tmp_path):
    return make_service(tmp_path)[0]


# Tokens


def test_a_token_is_known_by_its_checksum_until_its_line_is_deleted(tmp_path):
    path = tmp_path / "tokens"
    first, second = new_token(path, "first", "read"), new_token(path, "second", "trigger,read")
    tokens = Tokens(path)
    assert tokens.caller(f"Bearer {first}").scopes == {"read"}
    assert tokens.caller(f"bearer {second}").scopes == {"read", "trigger"}
    assert first not in path.read_text()
    path.write_text(path.read_text().splitlines()[1] + "\n")
    assert tokens.caller(f"Bearer {first}") is None
    assert tokens.caller(f"Bearer {second}").name == "second"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_of_tokens_that_others_can_read_lets_nobody_in(tmp_path, mode):
    path = tmp_path / "tokens"
    token = new_token(path, "first", "read")
    path.chmod(mode)
    tokens = Tokens(path)
    assert tokens.caller(f"Bearer {token}") is None
    assert "chmod 600" in tokens.trouble
    path.chmod(0o600)
    assert tokens.caller(f"Bearer {token}").name == "first"


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("a b", "read"), ("a\nb read", "read"), ("", "read"), ("a", "write"), ("a", "read,"), ("a", "")],
)
def test_names_and_scopes_of_tokens_are_checked(tmp_path, name, scopes):
    with pytest.raises(SpeechmillError):
        new_token(tmp_path / "tokens", name, scopes)
    assert not (tmp_path / "tokens").exists()


def test_a_token_is_added_after_a_line_that_an_editor_left_open(tmp_path):
    path = tmp_path / "tokens"
    first = new_token(path, "first", "read")
    path.write_text(path.read_text().rstrip("\n"))
    second = new_token(path, "second", "read")
    tokens = Tokens(path)
    assert [tokens.caller(f"Bearer {token}").name for token in (first, second)] == ["first", "second"]


def test_a_name_has_one_token(tmp_path):
    new_token(tmp_path / "tokens", "a", "read")
    with pytest.raises(SpeechmillError, match="delete its line"):
        new_token(tmp_path / "tokens", "a", "read")


# How often, and where


def test_a_bucket_gives_its_burst_and_then_its_rate():
    bucket = Buckets(rate=2, burst=3)
    assert [bucket.wait("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.wait("a", 0.0) == 0.5
    assert bucket.wait("b", 0.0) == 0
    assert bucket.wait("a", 0.5) == 0
    assert bucket.wait("a", 0.5) == 0.5
    assert [bucket.wait("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_may_listen_to_itself(host):
    assert check_bind(host, None, None, False) is False


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "no.such.host.invalid"])
def test_others_are_not_listened_to_in_the_clear(host, tmp_path):
    with pytest.raises(SpeechmillError, match="--insecure-bind"):
        check_bind(host, None, None, False)
    assert check_bind(host, None, None, True) is False
    (tmp_path / "a.pem").touch()
    assert check_bind(host, tmp_path / "a.pem", tmp_path / "a.pem", False) is True
    with pytest.raises(SpeechmillError, match="go together"):
        check_bind(host, tmp_path / "a.pem", None, True)
    with pytest.raises(SpeechmillError, match="cannot be read"):
        check_bind(host, tmp_path / "a.pem", tmp_path / "b.pem", False)


def test_a_disk_of_this_machine_is_no_network_file_system(tmp_path):
    assert network_file_system(tmp_path) is None


def serve_options(*arguments):
    parser = argparse.ArgumentParser()
    settings.add_options(parser)
    return parser.parse_args(arguments)


def test_a_data_base_on_a_network_file_system_has_to_be_insisted_on(tmp_path, monkeypatch):
    monkeypatch.setattr("speechmill.api.serve.network_file_system", lambda path: "nfs4")
    given = ("--state-dir", str(tmp_path / "state"), "--directory", str(tmp_path), "--profile", "local")
    with pytest.raises(SpeechmillError, match="--network-state-dir insists"):
        serve(serve_options(*given, "--rebuild"), [])
    assert serve(serve_options(*given, "--rebuild", "--network-state-dir"), []) == 0


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "many"])
def test_a_rate_is_a_number_above_0(rate, capsys):
    for option in ("--changes-per-minute", "--requests-per-second"):
        with pytest.raises(SystemExit):
            serve_options(option, rate)
    assert serve_options("--changes-per-minute", "0.5").changes_per_minute == 0.5


def test_small_answers_on_a_kept_connection_are_sent_at_once():
    async def option():
        found = asyncio.Queue()
        listening = _listen("127.0.0.1", 0)
        with listening:

            async def answer(reader, writer):
                found.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(answer, sock=listening):
                _, writer = await asyncio.open_connection(*listening.getsockname())
                told = await found.get()
                writer.close()
                return told

    assert asyncio.run(option()) == 1


# Settings of requests


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
    owner.sign(folder / name)
    with pytest.raises(Busy, match="this server did not start"):
        service.trigger("tester", "demo", {})


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A checkout with a data set whose file is damaged."""
    checkout = tmp_path / "checkout"
    shutil.copytree(runs.CHECKOUT / "config", checkout / "config")
    (checkout / "profiles").symlink_to(runs.CHECKOUT / "profiles")
    monkeypatch.setattr("speechmill.runs.CHECKOUT", checkout)
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
    assert "broken" not in {str(folder) for folder in service.result_folders()}
    assert rebuild(service) == 0


def test_a_request_for_too_many_batches_is_refused_before_they_are_counted_out(broken, service):
    broken.write_text(
        "source: {kind: hf_parquet, repo: a/b, license: MIT}\nexpected: {clips: 9600000, hours: 10000}\npublish: {kind: none}\n"
    )
    for begin in (service.estimate, lambda *given: service.trigger("tester", *given)):
        with pytest.raises(ConfigError, match="batch_size 1 makes 9600000 batches: take 96 or more"):
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


# The folder of a run


def test_a_folder_tells_of_its_runs_as_they_were_last(tmp_path):
    made = [
        Run(
            f"2026010100000{n}-00000000",
            "demo",
            str(tmp_path),
            "{}",
            "{}",
            "me",
            f"2026-01-0{n}",
            hours=0.5,
            key=f"k{n}",
        )
        for n in range(1, 5)
    ]
    for run in made:
        journal.note_created(run)
        if run is made[3]:
            break
        journal.note(tmp_path, "taken", run.id, runner="{}")
        journal.note(tmp_path, "ended", run.id, state="failed", error="why", final={"clips": 3})
    journal.note(tmp_path, "resumed", made[1].id)
    journal.note(tmp_path, "resumed", made[2].id)
    journal.note(tmp_path, "taken", made[2].id, runner="another")
    with open(tmp_path / journal.FILE, "ab") as file:
        file.write(b'{"event": "ended", "id": "')  # cut short by a crash
    found = {run.id: run for run in journal.runs_of(tmp_path)}
    assert [found[run.id].state for run in made] == ["failed", "queued", "lost", "queued"]
    first, second, third, fourth = (found[run.id] for run in made)
    assert (first.last_error, json.loads(first.final), first.hours, first.key) == ("why", {"clips": 3}, 0.5, "k1")
    assert (second.ended, second.runner, third.runner, fourth) == (None, None, "another", made[3])
    journal.note(tmp_path, "ended", made[3].id, state="succeeded")
    assert journal.runs_of(tmp_path)[3].state == "succeeded"


# Processes and runners


def test_the_processes_of_a_run_are_found_whoever_their_parents_are():
    environment = os.environ | {processes.MARK: "20260101000000-0000000a"}
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=environment, start_new_session=True
    )
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env=os.environ | {processes.MARK: "20260101000000-0000000b"},
    )
    of_slurm = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env=environment | {"SLURM_JOB_ID": "77"}
    )
    try:
        assert processes.of_run("20260101000000-0000000a") == [child.pid]
        assert processes.leaders("20260101000000-0000000a") == [child.pid]
        assert processes.kill("20260101000000-0000000a") == []
        assert child.wait(10) == -9
        assert (other.poll(), of_slurm.poll()) == (None, None)
    finally:
        for each in (child, other, of_slurm):
            each.kill()
            each.wait()


def test_a_runner_is_alive_by_its_start_not_by_its_number():
    me = json.loads(processes.identity())
    assert processes.is_alive(json.dumps(me), time.time())
    assert not processes.is_alive(json.dumps(me | {"ticks": me["ticks"] + 1}), time.time())
    assert not processes.is_alive(json.dumps(me | {"boot": "another"}), time.time())
    assert not processes.is_alive(None, time.time())
    elsewhere = json.dumps(me | {"host": "another"})
    assert processes.is_alive(elsewhere, time.time())
    assert not processes.is_alive(elsewhere, time.time() - 3600)


def test_a_run_whose_runners_die_without_end_is_failed_and_says_so(service, monkeypatch):
    run = service.trigger("tester", "demo", {})
    keeper = Keeper(service)
    dead = None
    for number in range(MOST_RESTARTS + 1):
        me = json.dumps(json.loads(processes.identity()) | {"boot": f"earlier {number}"})
        assert service.store.take(run.id, me, dead, 0, 0.0)
        dead = me
    begun = []
    monkeypatch.setattr("speechmill.api.keeper.subprocess.Popen", lambda command, **about: begun.append(command[-1]))
    keeper.look()
    assert run.id not in begun
    found = service.store.get(run.id)
    assert found.state == "failed"
    assert "died" in found.last_error
    assert journal.runs_of(service.settings.directory / "results" / "demo")[0].state == "failed"


# Schedules


def test_what_is_due_is_begun_once_and_what_was_missed_is_not_made_up_for(service):
    midnight = 1_767_225_600.0  # 2026-01-01 00:00 UTC
    service.store.add_schedule("demo", "@daily", "{}", "tester", next_due("@daily", midnight))
    begin_due(service, midnight + 3600)
    assert len(service.store.active("demo")) == 0
    begin_due(service, midnight + 4 * 86400 + 3600)  # nobody was there at midnight
    (schedule,) = service.store.schedules()
    assert (schedule["last_outcome"].split(":")[0], service.store.active("demo")) == ("missed", [])
    begin_due(service, midnight + 5 * 86400 + 60)
    (run,) = service.store.active("demo")
    begin_due(service, midnight + 5 * 86400 + 120)
    (schedule,) = service.store.schedules()
    assert schedule["last_outcome"] == f"began {run.id}"
    assert schedule["next_due"] == midnight + 6 * 86400
    begin_due(service, midnight + 6 * 86400 + 1)
    (schedule,) = service.store.schedules()
    assert schedule["last_outcome"].startswith("skipped: demo has an active run")
    assert service.store.active("demo") == [run]


def test_a_schedule_begins_nothing_once_its_token_is_gone_or_may_no_longer_trigger(service):
    midnight = 1_767_225_600.0
    service.store.add_schedule("demo", "@daily", "{}", "tester", midnight)
    tokens = service.settings.tokens
    for day, text in enumerate(["", tokens.read_text().replace("read,trigger", "read")]):
        tokens.write_text(text)
        begin_due(service, midnight + day * 86400 + 1)
        (schedule,) = service.store.schedules()
        assert schedule["last_outcome"] == "skipped: tester has no token any more that may trigger"
    assert service.store.active("demo") == []
    assert service.settings.audit.read_text() == ""


def test_what_a_schedule_begins_is_in_the_audit_log(service):
    number = service.store.add_schedule("demo", "@daily", "{}", "tester", 1_767_225_600.0)
    begin_due(service, 1_767_225_601.0)
    (run,) = service.store.active("demo")
    (line,) = map(json.loads, service.settings.audit.read_text().splitlines())
    assert (line["who"], line["what"], line["began"]) == ("tester", f"schedule {number}", run.id)


@pytest.mark.parametrize(
    "cron", ["", "@never", "* * *", "61 * * * *", "0 0 30 2 *", "* * * * * *", "a\nb", "@daily @daily"]
)
def test_what_is_no_time_is_refused(cron):
    with pytest.raises(ConfigError, match="@daily"):
        next_due(cron, 0.0)


def with_a_new_data_base(service):
    """A service on the same folders, whose data base was lost."""
    state_dir = service.settings.state_dir.with_name("new state")
    state_dir.mkdir(exist_ok=True)
    return Service(dataclasses.replace(service.settings, state_dir=state_dir))


def schedule(service, cron, **config):
    return schedules.add(service, ScheduleRequest(dataset_name="demo", cron=cron, config=config), "tester")


def test_schedules_survive_the_loss_of_the_data_base_but_not_their_deletion(service):
    kept = [schedule(service, "30 2 * * *", rank={"threshold": 0.25}), schedule(service, "@weekly")]
    assert schedules.delete(service, schedule(service, "@hourly")["id"])
    new = with_a_new_data_base(service)
    assert schedules.restore(new) == 2
    assert new.store.schedules() == sorted(kept, key=lambda each: each["id"])
    assert schedules.restore(new) == 0
    assert all(schedules.delete(new, each["id"]) for each in kept)
    assert schedules.restore(service) == schedules.restore(new) == 0


def test_schedules_are_in_their_folder_again_when_a_server_starts(service):
    made = schedule(service, "@daily")
    file = service.result_folder("demo") / schedules.FILE
    file.unlink()
    schedules.save_all(service)
    new = with_a_new_data_base(service)
    assert schedules.restore(new) == 1
    assert new.store.schedules() == [made]


def test_a_schedule_that_its_folder_cannot_keep_is_not_made(service):
    folder = service.result_folder("demo")
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("not a folder")
    with pytest.raises(OSError, match="demo"):
        schedule(service, "@daily")
    assert service.store.schedules() == []


DAMAGES = [
    ({"dataset_name": "../demo"}, "dataset_name"),
    ({"dataset_name": "demo2"}, "it is of demo2"),
    ({"id": "1; rm -rf"}, "id"),
    ({"cron": "* * *"}, "five fields"),
    ({"caller": "a\nb"}, "caller"),
    ({"created": "yesterday"}, "created"),
    ({"config": {"outdir": "/tmp"}}, "outdir"),
    ({"config": {"rank": {"threshold": 7}}}, "rank.threshold"),
    ({"config": [1]}, "config"),
    ({"shell": "true"}, "shell"),
]


def test_of_what_a_folder_tells_only_valid_schedules_are_taken(service, capsys):
    whole = schedule(service, "@daily")
    file = service.result_folder("demo") / schedules.FILE
    (told,) = json.loads(file.read_text())["schedules"]
    damaged = [told | {"id": f"20260101000000-{n:08x}"} | damage for n, (damage, _) in enumerate(DAMAGES)]
    file.write_text(json.dumps({"schedules": [*damaged, told, None]}))
    new = with_a_new_data_base(service)
    assert schedules.restore(new) == 1
    assert new.store.schedules() == [whole]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(DAMAGES) + 1
    assert all("left out" in line and said in line for line, (_, said) in zip(lines, DAMAGES, strict=False))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schedules": 5}', '{"schedules": [5]}', '{"schedules": [', "[" * 100_000, "\xff"]
)
def test_a_damaged_file_of_schedules_is_left_out(service, capsys, text):
    file = service.result_folder("demo") / schedules.FILE
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="latin-1")
    assert schedules.restore(service) == 0
    assert "left out" in capsys.readouterr().err


def test_a_schedule_is_in_utc():
    assert next_due("30 2 * * *", 1_767_225_600.0) == 1_767_225_600.0 + 2.5 * 3600


def test_whoever_asks_while_a_folder_is_read_again_gets_what_was_there(monkeypatch):
    clock, calls, gate = [100.0], [], threading.Event()

    def slow(reader):
        calls.append(reader)
        if len(calls) == 2:
            gate.wait(30)
        return records.Reading({"reading": len(calls)}, [])

    monkeypatch.setattr(records, "read", slow)
    monkeypatch.setattr(records, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    kept = records.Records(keep_seconds=1)
    assert kept.read("a").record == {"reading": 1}
    clock[0] += 1.5
    assert [kept.read("a").record for _ in range(20)] == [{"reading": 1}] * 20  # and the second one waits
    gate.set()
    wait_for(lambda: kept.read("a").record == {"reading": 2}, 30)
    assert len(calls) == 2
    clock[0] += 3  # nobody asked for long: what was there is too old
    assert kept.read("a").record == {"reading": 3}
