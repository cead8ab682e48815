"""Runs as Prometheus metrics: against the account that the test writes, by Prometheus's own readers, over real HTTP."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import promql_parser as promql
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from speechmill.cli.main import main
from speechmill.errors import SpeechmillError
from speechmill.monitor import prometheus
from speechmill.monitor.prometheus import FAMILIES, RunCollector, exposition
from speechmill.runlog import run_lock
from speechmill.runlog.attempts import FILE
from speechmill.storage.files import write_json, write_text

from ..patience import seconds
from ..runs import wait_for

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text(encoding="utf-8"))
OWN_LABELS = {"dataset", "run", "stage", "state", "status", "version"}
EPOCH = datetime(2026, 5, 1, tzinfo=UTC)


def at(second):
    return (EPOCH + timedelta(seconds=second)).isoformat(timespec="milliseconds")


def line(second, start, event, stage="run", batch=None, attempt=1, **about):
    told = {"time": at(second), "start": at(start), "event": event, "stage": stage, "batch": batch, "attempt": attempt}
    return told | {"slurm_job": None} | about


def began(start):
    return line(start, start, "began", goal="published/UPLOADED.json", versions={"speechmill": "1.2.3"})


def job(start, stage, batch, begin, took, event="finished", attempt=1, waited=2, **about):
    """An attempt that waited, then worked."""
    told = {"began": at(begin + waited), "seconds": took, "peak_mb": 900.5} | about
    return [
        line(begin, start, "submitted", stage, batch, attempt),
        line(begin + waited + took, start, event, stage, batch, attempt, **told),
    ]


def enhanced(start, batch, begin, took=10, passed=60, rejected=4, **about):
    clips, audio = {"passed": passed, "rejected": rejected}, {"passed": passed * 3.0, "rejected": rejected * 1.5}
    return job(start, "enhance", batch, begin, took, clips=clips, audio_seconds=audio, **about)


def write_run(run, lines, batches=4, done=2):
    rows = [f"b{number}\t64\t190.0\tclips.parquet" for number in range(batches)]
    write_text(run / "manifest" / "batches.tsv", "\n".join(["batch\tclips\tseconds\tsource_file", *rows]) + "\n")
    for number in range(done):
        write_text(run / "ledger" / f"b{number}.enhance.parquet", "")
    write_text(run / FILE, "".join(json.dumps(each) + "\n" for each in lines))
    return run


def two_starts():
    """b0 is done; b1 fails, is tried again and lost with the Snakemake; the second start does it, and is at work on b2."""
    return [
        began(0),
        *job(0, "manifest", None, 1, 3, peak_mb=170.0),
        *enhanced(0, "b0", 10, gpu_peak_mb=5000.0),
        *job(0, "enhance", "b1", 10, 5, "failed", reason="no luck", peak_mb=1500.0),
        line(20, 0, "submitted", "enhance", "b1", 2),
        began(100),
        *enhanced(100, "b1", 101, took=20, passed=50, rejected=14),
        line(130, 100, "submitted", "enhance", "b2"),
        line(130, 100, "failed", "fetch", None, file="a.tar", given_up=True),
    ]


@contextlib.contextmanager
def at_work(run):
    """As if this process were the Snakemake of the run."""
    run_lock.claim(run)
    try:
        yield
    finally:
        run_lock.release(run)


def families(*runs, **options):
    return list(read_text(exposition(RunCollector(runs, **options))))


def series(*runs):
    """{name: {values of its own labels: value}} of a single run."""
    found = defaultdict(dict)
    for family in families(*runs, keep_seconds=0):
        for sample in family.samples:
            own = tuple(sample.labels[name] for name in sample.labels if name not in ("dataset", "run"))
            found[sample.name.removeprefix("speechmill_")][own] = sample.value
    return found


def test_what_is_exported_is_what_the_account_says(tmp_path):
    run = write_run(tmp_path / "thai", two_starts())
    write_json(run / "logs" / "panoptes.json", {"dropped": 2, "undelivered": 3, "last_error": "away"})
    with at_work(run):
        found = series(run)
    assert found["run_readable"] == {(): 1}
    assert found["run_info"] == {("1.2.3",): 1}
    assert {state for (state,), value in found["run_state"].items() if value} == {"running"}
    assert found["run_starts_total"] == {(): 2}
    assert found["run_started_timestamp_seconds"] == {(): EPOCH.timestamp()}
    assert found["last_finished_timestamp_seconds"] == {(): EPOCH.timestamp() + 123}
    assert found["manifest_clips"] == {(): 256}
    assert found["clips"] == {("enhance", "passed"): 110, ("enhance", "rejected"): 18}
    assert found["audio_seconds"] == {("enhance", "passed"): 330, ("enhance", "rejected"): 27}
    assert found["batches_planned"]["enhance",] == found["batches_planned"]["score",] == 4
    assert (found["batches_done"]["enhance",], found["batches_done"]["score",]) == (2, 0)
    assert found["jobs"]["enhance", "running"] == 1
    assert found["jobs_given_up"]["fetch",] == 1
    assert found["jobs_given_up"]["enhance",] == 0
    assert found["jobs_submitted_total"] == {("manifest",): 1, ("enhance",): 5, ("fetch",): 1}
    ended = {status: found["jobs_ended_total"]["enhance", status] for status in ("finished", "failed", "lost")}
    assert ended == {"finished": 2, "failed": 1, "lost": 1}
    assert found["jobs_run_seconds_total"]["enhance",] == 10 + 5 + 20
    assert found["jobs_queue_seconds_total"]["enhance",] == pytest.approx(3 * 2)
    assert found["processed_clips_total"] == {("enhance",): 128}
    assert found["processed_audio_seconds_total"] == {("enhance",): 357}
    assert found["job_memory_peak_bytes"] == {("manifest",): 170e6, ("enhance",): 1500e6}
    assert found["job_gpu_memory_peak_bytes"] == {("enhance",): 5e9}
    assert found["panoptes_untold_events"] == {(): 5}
    assert found["disk_free_bytes"][()] > 0


def now_at_work():
    """An account whose jobs finished just now, so that there is a rate."""
    begin = (datetime.now(UTC) - EPOCH).total_seconds() - 100
    lines = [began(begin), *enhanced(begin, "b0", begin + 1), *enhanced(begin, "b1", begin + 50)]
    return begin, [*lines, line(begin + 90, begin, "submitted", "enhance", "b2")]


def test_rates_and_time_left_are_told_only_of_a_run_at_work(tmp_path):
    run = write_run(tmp_path / "thai", now_at_work()[1])
    names = {"clips_per_second", "audio_seconds_per_second", "time_left_seconds"}
    with at_work(run):
        found = series(run)
    assert found["clips_per_second"]["enhance",] == pytest.approx(128 / 99, rel=0.1)
    assert found["audio_seconds_per_second"]["enhance",] == pytest.approx((360 + 12) / 99, rel=0.1)
    assert found["time_left_seconds"][()] == pytest.approx(99, rel=0.1)  # as much as was done
    assert not names & set(series(run))


def test_a_batch_that_is_repeated_counts_once_in_the_gauge_and_twice_in_the_work(tmp_path):
    again = [began(40), *enhanced(40, "b0", 50, passed=64, rejected=0)]
    run = write_run(tmp_path / "thai", [began(0), *enhanced(0, "b0", 1), *again])
    found = series(run)
    assert found["clips"] == {("enhance", "passed"): 64, ("enhance", "rejected"): 0}
    assert found["processed_clips_total"] == {("enhance",): 128}
    assert found["jobs_run_seconds_total"] == {("enhance",): 20}


@st.composite
def accounts(draw):
    """Starts that die or end, with jobs that finish, fail or never end, in any order; and where a line is torn."""
    lines, told = [], {"clips": {"passed": 3}, "audio_seconds": {"passed": 9.5}}
    for start in range(draw(st.integers(1, 3))):
        begin = 1000 * start
        jobs = draw(
            st.lists(
                st.tuples(
                    st.sampled_from(["enhance", "score", "fetch"]),
                    st.integers(0, 3),
                    st.sampled_from(["finished", "failed", "lost"]),
                    st.integers(-3, 20),
                ),
                max_size=6,
            )
        )
        attempts = defaultdict(int)
        open_ends, texts = [], [began(begin)]
        for stage, batch, end, waited in jobs:
            attempts[stage, batch] += 1
            submitted, ended = job(
                begin, stage, f"b{batch}", begin + 1, 7.25, end, attempts[stage, batch], waited, **told
            )
            texts.append(submitted)
            if end != "lost":
                open_ends.append(ended)
            if open_ends and draw(st.booleans()):
                texts.append(open_ends.pop(draw(st.integers(0, len(open_ends) - 1))))
        lines += [*texts, *open_ends]
    return lines


@given(accounts(), st.data())
@settings(max_examples=40)
def test_no_counter_falls_while_the_account_grows_whatever_dies_in_between(lines, data):
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "thai", [])
        path = run / FILE
        last = {}
        for each in lines:
            text = json.dumps(each) + "\n"
            if data.draw(st.booleans()):  # read while it is written, or cut short by a crash and written again
                path.write_text(path.read_text() + text[: len(text) // 2])
                counters = _counters(run)
                assert all(counters[name] >= value for name, value in last.items())
                torn = path.read_text()
                path.write_text(torn + (text[len(text) // 2 :] if data.draw(st.booleans()) else "\n" + text))
            else:
                path.write_text(path.read_text() + text)
            counters = _counters(run)
            assert all(counters[name] >= value for name, value in last.items())
            last = counters
        finished = [each for each in lines if each["event"] == "finished"]
        stages = {each["stage"] for each in lines} - {"run"}
        for stage in stages:
            mine = [each for each in finished if each["stage"] == stage]
            assert last["speechmill_jobs_ended_total", stage, "finished"] == len(mine)
            assert last.get(("speechmill_processed_clips_total", stage), 0) == 3 * len(mine)


def _counters(run):
    return {
        (sample.name, *list(sample.labels.values())[2:]): sample.value
        for family in families(run, keep_seconds=0)
        if family.type == "counter"
        for sample in family.samples
    }


def test_names_and_texts_keep_the_rules_of_prometheus(tmp_path):
    run = write_run(tmp_path / "thai", two_starts())
    collector = RunCollector([run])
    by_name = {family.name: family for family in read_text(exposition(collector))}
    for name, family in FAMILIES.items():
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", name)
        assert (family.type == "counter") == name.endswith("_total")
        assert not re.search(r"milli|minutes|hours|_mb|kilo|percent", name)
        assert set(family.labels) <= OWN_LABELS
    registry = prometheus._registry(collector)
    open_metrics = {family.name for family in read_openmetrics(openmetrics_text(registry).decode())}
    assert open_metrics == {name.removesuffix("_total") for name in by_name}
    assert all(family.documentation for family in by_name.values())


def test_the_number_of_series_does_not_grow_with_the_batches(tmp_path):
    def size(name, batches):
        lines = [began(0)]
        for number in range(batches):
            lines += [
                *enhanced(0, f"b{number}", 1),
                *job(0, "score", f"b{number}", 20, 5, "failed", reason=f"r{number}"),
            ]
        run = write_run(tmp_path / name, lines, batches=batches, done=batches)
        samples = [sample for family in families(run) for sample in family.samples]
        assert {label for sample in samples for label in sample.labels} <= OWN_LABELS
        return len(samples)

    assert size("few", 2) == size("many", 300) < 150


def test_a_run_that_cannot_be_read_is_told_as_such_and_hides_no_other(tmp_path, capsys):
    good = write_run(tmp_path / "good", two_starts())
    bad = write_run(tmp_path / "bad", two_starts())
    (bad / "owner.json").write_text('{"host"')
    collector = RunCollector([bad, good, tmp_path / "none"], keep_seconds=0)

    def readable():
        shown = next(each for each in read_text(exposition(collector)) if each.name == "speechmill_run_readable")
        return {sample.labels["dataset"]: sample.value for sample in shown.samples}

    assert readable() == {"bad": 0, "good": 1, "none": 0}
    assert readable() == {"bad": 0, "good": 1, "none": 0}
    said = capsys.readouterr().err
    assert (
        said.count(f"{bad}/owner.json cannot be read") == said.count(f"{tmp_path / 'none'}: there is no run here") == 1
    )
    (bad / "owner.json").unlink()
    good.rename(tmp_path / "moved")
    assert readable() == {"bad": 1, "good": 0, "none": 0}


def test_the_alerts_of_a_run_are_counted(tmp_path, monkeypatch):
    run = write_run(tmp_path / "thai", two_starts())
    alerts = {"open": ["stalled", "disk"], "undelivered": 4}
    monkeypatch.setattr("speechmill.monitor.record.alerts_state", lambda path: alerts)
    found = series(run)
    assert (found["alerts_open"], found["alerts_undelivered"]) == ({(): 2}, {(): 4})
    monkeypatch.setattr("speechmill.monitor.record.alerts_state", lambda path: None)
    assert not {"alerts_open", "alerts_undelivered"} & set(series(run))


def test_no_jobs_are_told_where_slurm_does_not_answer(tmp_path, monkeypatch):
    lines = [each | {"slurm_job": "17"} for each in two_starts()]
    run = write_run(tmp_path / "thai", lines)
    squeue = tmp_path / "bin" / "squeue"
    write_text(squeue, "#!/bin/sh\necho slurm_load_jobs error: Unable to contact slurm controller >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    found = series(run)
    assert found["queue_readable"] == {(): 0}
    assert "jobs" not in found


def test_two_runs_of_a_data_set_are_told_apart_and_one_named_twice_is_one(tmp_path):
    first, second = (write_run(tmp_path / name / "thai", two_starts()) for name in ("one", "two"))
    (tmp_path / "link").symlink_to(first)
    shown = next(each for each in families(first, second, tmp_path / "link") if each.name == "speechmill_run_readable")
    assert [sample.labels for sample in shown.samples] == [
        {"dataset": "thai", "run": str(first)},
        {"dataset": "thai", "run": str(second)},
    ]


def test_a_folder_with_any_name_is_exported(tmp_path):
    run = write_run(Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff"\\\nthai')), two_starts())
    shown = next(each for each in families(run) if each.name == "speechmill_run_readable")
    assert [(sample.labels["dataset"], sample.value) for sample in shown.samples] == [('?"\\\nthai', 1)]


def without_disk(text):
    """Other processes write to the same disk meanwhile."""
    return [line for line in text.splitlines() if "disk_free" not in line]


def test_within_the_pause_a_scrape_reads_nothing(tmp_path):
    run = write_run(tmp_path / "thai", [began(0)])
    kept, fresh = RunCollector([run], keep_seconds=3600), RunCollector([run], keep_seconds=0)
    before = exposition(kept)
    assert without_disk(before) == without_disk(exposition(fresh))
    write_run(run, two_starts())
    assert exposition(kept) == before
    assert "speechmill_run_starts_total" in before
    assert exposition(fresh) != before


def test_many_scrapes_at_once_get_whole_answers(tmp_path):
    run = write_run(tmp_path / "thai", two_starts())
    collector = RunCollector([run], keep_seconds=0)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(exposition(collector))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(list(read_text(answer))) for answer in answers} == {len(families(run))}


def test_the_command_prints_and_fails_for_a_run_that_is_not_there(tmp_path, capsys):
    run = write_run(tmp_path / "thai", two_starts())
    assert main(["metrics", str(run)]) == 0
    assert "speechmill_processed_clips_total" in capsys.readouterr().out
    assert main(["metrics", str(run), str(tmp_path / "no")]) == 1
    told = capsys.readouterr()
    assert 'run_readable{dataset="no"' in told.out
    assert "there is no run here" in told.err


def test_the_file_is_written_until_the_run_is_no_longer_at_work(tmp_path):
    run = write_run(tmp_path / "thai", now_at_work()[1])
    path = tmp_path / "node" / "speechmill.prom"
    assert main(["metrics", str(run), "--textfile", str(path)]) == 1  # its folder is not there
    path.parent.mkdir()
    run_lock.claim(run)
    writer = threading.Thread(
        target=main, args=(["metrics", str(run), "--textfile", str(path), "--every", "0.05"],), daemon=True
    )
    writer.start()
    try:
        wait_for(path.exists)
        states = {
            sample.labels["state"]
            for family in read_text(path.read_text())  # whole whenever it is looked at
            if family.name == "speechmill_run_state"
            for sample in family.samples
            if sample.value
        }
        assert states == {"running"}
        assert writer.is_alive()
    finally:
        run_lock.release(run)
        writer.join(seconds(30))
    assert not writer.is_alive()
    assert 'state="running"} 0.0' in path.read_text()
    assert [each.name for each in path.parent.iterdir()] == ["speechmill.prom"]


def test_every_needs_a_file(capsys):
    for wrong in (["--every", "5"], ["--textfile", "x.prom", "--every", "0"], ["--textfile", "x", "--listen", "1"]):
        with pytest.raises(SystemExit):
            main(["metrics", "run", *wrong])
    assert "--every needs --textfile and a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9510", ("127.0.0.1", 9510)),
        ("0.0.0.0:9510", ("0.0.0.0", 9510)),
        ("[::1]:9510", ("::1", 9510)),
        ("node7:80", ("node7", 80)),
    ],
)
def test_an_address_is_read(text, expected):
    assert prometheus.listen_address(text) == expected


@pytest.mark.parametrize("text", [":9510", "node7", "node7:", "65536", "-1", "1.5", "a:b", ""])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(SpeechmillError, match="ADDRESS:PORT"):
        prometheus.listen_address(text)


def test_it_is_served_on_this_machine_alone_until_interrupted(tmp_path):
    run = write_run(tmp_path / "thai", two_starts())
    command = [sys.executable, "-m", "speechmill", "metrics", "--listen", "0", str(run)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = server.stdout.readline().split()[-1]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=seconds(30)) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            text = answer.read().decode()
        assert {family.name for family in read_text(text)} == {family.name for family in families(run)}
        taken = address.split(":")[-1].split("/")[0]
        again = subprocess.run(
            [*command[:-2], taken, str(run)], capture_output=True, text=True, timeout=seconds(60), cwd=ROOT
        )
        assert again.returncode == 1
        assert f"cannot listen on 127.0.0.1, port {taken}" in again.stderr
    finally:
        server.send_signal(2)
        _, said = server.communicate(timeout=seconds(30))
    assert server.returncode == 130
    assert said == ""


def test_it_says_so_where_other_machines_can_read_it(tmp_path):
    run = write_run(tmp_path / "thai", two_starts())
    command = [sys.executable, "-m", "speechmill", "metrics", "--listen", "0.0.0.0:0", str(run)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert "http://0.0.0.0:" in server.stdout.readline()
        assert "no password" in server.stderr.readline()
    finally:
        server.send_signal(2)
        server.communicate(timeout=seconds(30))


def panels():
    return [pytest.param(panel, id=panel["title"]) for panel in DASHBOARD["panels"]]


def selectors(expression):
    """Every (metric name, {label: pattern}) of a PromQL expression, and the labels that it groups or matches by."""
    found, by = [], set()
    todo = [expression]
    while todo:
        node = todo.pop()
        if isinstance(node, promql.VectorSelector):
            found.append((node.name, {each.name: each.value for each in node.matchers.matchers}))
        elif isinstance(node, promql.MatrixSelector):
            todo.append(node.vector_selector)
        elif isinstance(node, promql.AggregateExpr):
            by |= set(node.modifier.labels if node.modifier else ())
            todo.append(node.expr)
        elif isinstance(node, promql.BinaryExpr):
            by |= set(node.modifier.matching.labels if node.modifier and node.modifier.matching else ())
            todo += [node.lhs, node.rhs]
        elif isinstance(node, promql.Call):
            todo += node.args
        elif isinstance(node, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
            todo.append(node.expr)
        else:
            assert isinstance(node, promql.NumberLiteral | promql.StringLiteral), type(node)
    return found, by


def everything(folder):
    """A run that exports every family there is."""
    begin, lines = now_at_work()
    ranked = {"clips": {"accepted": 3}, "audio_seconds": {"accepted": 9.0}}
    lines += job(begin, "score", "b0", begin + 70, 2, gpu_peak_mb=3.0)
    run = write_run(folder / "thai", [*lines, *job(begin, "rank", None, begin + 80, 2, **ranked)])
    write_text(run / "ranking" / "ranked.tsv", "")
    write_json(run / "logs" / "panoptes.json", {"dropped": 0, "undelivered": 0})
    return run


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """{name of a series: its label sets} of a run that has everything."""
    run = everything(tmp_path)
    alerts = {"open": [], "undelivered": 0}
    monkeypatch.setattr("speechmill.monitor.record.alerts_state", lambda path: alerts)
    with at_work(run):
        found = families(run)
    named = defaultdict(list)
    for family in found:
        for sample in family.samples:
            named[sample.name].append(sample.labels)
    assert set(named) == {f"speechmill_{name}" for name in FAMILIES}
    return named


@pytest.mark.parametrize("panel", panels())
def test_a_panel_asks_for_what_is_exported(panel, exported):
    assert panel["targets"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        expression = target["expr"].replace('"$dataset"', '"thai"').replace('"$run"', '".*"')
        assert "$" not in expression
        found, by = selectors(promql.parse(expression))
        for name, matchers in found:
            there = [
                labels
                for labels in exported[name]
                if all(re.fullmatch(pattern, labels.get(label, "")) for label, pattern in matchers.items())
            ]
            assert there, f"nothing is exported for {name} {matchers}"
            assert {"dataset", "run"} <= set(matchers)  # or it would mix runs that nobody chose
        labels = {label for name, _ in found for each in exported[name] for label in each}
        assert by | set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


def test_what_the_dashboard_asks_for_would_be_missed_if_it_were_wrong():
    found, by = selectors(promql.parse('sum by (batch) (rate(speechmill_x{state="a"}[5m])) / on (run) (y > 0)'))
    assert found == [("y", {}), ("speechmill_x", {"state": "a"})]
    assert by == {"batch", "run"}


def test_the_dashboard_works_with_any_prometheus():
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "dataset", "run"]
    assert variables["datasource"]["query"] == "prometheus"
    for panel in DASHBOARD["panels"]:
        for holder in (panel, *panel["targets"]):
            assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_no_two_panels_lie_on_each_other():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_every_state_of_a_run_has_a_word_and_a_colour():
    timeline = next(panel for panel in DASHBOARD["panels"] if panel["type"] == "state-timeline")
    (mapping,) = timeline["fieldConfig"]["defaults"]["mappings"]
    shown = {value: each["text"] for value, each in mapping["options"].items()}
    asked = re.findall(r'(\d) \* speechmill_run_state{[^}]*state="(\w+)"}', timeline["targets"][0]["expr"])
    assert dict(asked) | {"0": "unreadable"} == shown
    assert {state for _, state in asked} == set(prometheus.RUN_STATES)
    assert len({each["color"] for each in mapping["options"].values()}) == len(shown)


def test_the_table_of_metrics_is_that_of_the_exporter():
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `speechmill_(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    told = {name: (kind, tuple(re.findall(r"\w+", labels)), meaning) for name, kind, labels, meaning in rows}
    assert told == {name: tuple(family) for name, family in FAMILIES.items()}
