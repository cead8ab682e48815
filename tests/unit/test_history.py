"""A report against the one before: what is kept, what is compared, and lines that a power cut tore."""

import copy
import json

import pytest

from speechmill.report.history import FILE, compare_with_previous, entry_of, previous, record_report
from speechmill.storage.files import read_json

from .report_corpus import Corpus

SUMMARY = {
    "dataset": "demo",
    "source_revision": "sha256:00",
    "config": {"dataset": "demo", "rank": {"threshold": 0.6, "profile": "asr"}},
    "batches": 2,
    "failed_batches": {},
    "clips": {"input": 100, "accepted": 60, "rejected": 30, "errored": 6, "duplicate": 4},
    "hours": {"input": 2.0, "accepted": 1.1},
    "input_hours": {"accepted": 1.2, "rejected": 0.6, "errored": 0.1, "duplicate": 0.1},
    "rejected_by": {"closeness": 20, "speech_s": 10},
    "errored_by": {"unreadable": 6},
    "near_duplicates": 1,
    "metrics": {"snr_db": {"p5": 1.0, "p50": 12.0, "p95": 30.0}, "mos": {"p5": 1.0, "p50": 3.0, "p95": 4.0}},
    "profile": "asr",
    "profile_sha256": "aa",
    "threshold": 0.6,
    "versions": {"numpy": "2.0", "dnsmos": "ab"},
    "timing": {"rank": {"jobs": 2, "seconds": 1.0}},
}


def changed(**values):
    summary = copy.deepcopy(SUMMARY)
    for name, value in values.items():
        summary[name] = summary[name] | value if isinstance(value, dict) else value
    return summary


STRICTER = changed(
    threshold=0.7,
    clips={"accepted": 50, "rejected": 40},
    hours={"accepted": 0.9},
    input_hours={"accepted": 1.0, "rejected": 0.8},
    rejected_by={"closeness": 30},
    config={"rank": {"threshold": 0.7, "profile": "asr"}},
)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "report").mkdir()
    return tmp_path


def lines(run):
    return [json.loads(line) for line in (run / "report" / FILE).read_text("utf-8").splitlines()]


def test_a_report_that_is_made_again_adds_nothing_and_is_compared_with_the_same(run):
    for summary, before, count in ((SUMMARY, None, 1), (STRICTER, 0.6, 2), (SUMMARY, 0.7, 3)):
        for _ in range(3):
            found = previous(run, summary)
            assert (found and found["threshold"]) == before
            record_report(run, summary)
            assert len(lines(run)) == count


def test_what_decides_nothing_is_no_other_report(run):
    record_report(run, SUMMARY)
    timing = {"rank": {"jobs": 9, "seconds": 9.0}}
    record_report(run, changed(timing=timing, versions={"numpy": "2.1"}, config={"batch_size": 7}))
    assert len(lines(run)) == 1
    record_report(run, changed(profile_sha256="bb"))
    assert len(lines(run)) == 2


def test_the_comparison_has_every_difference_and_its_causes(run):
    record_report(run, SUMMARY)
    now = copy.deepcopy(STRICTER)
    now["metrics"] = {"snr_db": {"p5": 1.0, "p50": 13.0, "p95": 30.0}, "squim": {"p5": 0.0, "p50": 0.5, "p95": 1.0}}
    now["versions"] = {"numpy": "2.1", "dnsmos": "ab", "squim": "cd"}
    found = compare_with_previous(now, previous(run, now))
    rows = {(row["group"], row["name"]): (row["before"], row["after"], row["difference"]) for row in found["rows"]}
    assert rows["clips", "input"] == (100, 100, 0)
    assert rows["clips", "accepted"] == (60, 50, -10)
    assert rows["percent", "accepted"] == (60.0, 50.0, -10.0)
    assert rows["hours", "published"] == (1.1, 0.9, pytest.approx(-0.2))
    assert rows["hours", "rejected"] == (0.6, 0.8, pytest.approx(0.2))
    assert rows["rejected_by", "closeness"] == (20, 30, 10)
    assert ("rejected_by", "speech_s") not in rows
    assert rows["metrics", "snr_db"] == (12.0, 13.0, 1.0)
    assert rows["metrics", "mos"] == (3.0, None, None)
    assert rows["metrics", "squim"] == (None, 0.5, None)
    assert found["facts"] == {"threshold": {"before": 0.6, "after": 0.7}}
    assert found["settings"] == {"rank.threshold": {"before": 0.6, "after": 0.7}}
    assert found["versions"] == {"numpy": {"before": "2.0", "after": "2.1"}, "squim": {"after": "cd"}}
    assert found["time"] == lines(run)[0]["time"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x00\xff\xfe\n",
        b"[1, 2]\n",
        b"[" * 100_000 + b"\n",
        b'{"time": "2026-01-01", "clips": 3}\n',
        json.dumps({"time": "x", **entry_of(changed(clips={"accepted": "60"}))}).encode() + b"\n",
        json.dumps({"time": "x", **entry_of(STRICTER)}).encode()[:200],  # torn, and no end of the line
    ],
)
def test_damaged_lines_are_passed_over_and_new_ones_stay_whole(run, damage):
    record_report(run, SUMMARY)
    with open(run / "report" / FILE, "ab") as file:
        file.write(damage)
    assert previous(run, STRICTER)["threshold"] == 0.6
    record_report(run, STRICTER)
    assert previous(run, SUMMARY)["threshold"] == 0.7
    assert previous(run, changed(threshold=0.5))["threshold"] == 0.7


def test_what_cannot_be_written_is_said_and_stops_nothing(run, capsys):
    (run / "report" / FILE).mkdir()
    assert previous(run, SUMMARY) is None
    record_report(run, SUMMARY)
    assert f"{FILE} could not be written" in capsys.readouterr().err


def test_making_a_report_leaves_a_line_of_what_it_decided(tmp_path):
    corpus = Corpus(tmp_path, clips=12)
    record_report(tmp_path, corpus.report(examples=1))
    (line,) = lines(tmp_path)
    summary = read_json(corpus.summary)
    assert line["clips"] == summary["clips"]
    assert line["hours"]["published"] == summary["hours"]["accepted"]
    assert sum(line["hours"][state] for state in summary["input_hours"]) == pytest.approx(
        line["hours"]["input"], abs=1e-5
    )
    assert line["profile_sha256"] == corpus.profile.sha256
