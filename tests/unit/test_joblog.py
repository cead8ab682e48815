"""Logs of jobs as JSON lines, and what a person sees of them."""

import json
import os
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechmill.cli.main import main
from speechmill.errors import SpeechmillError
from speechmill.runlog import joblog
from speechmill.runlog.joblog import LogStream, Problems, encode, human, last_attempt, parse, read
from speechmill.runlog.log_reader import logs_of


@pytest.fixture
def stream(tmp_path):
    descriptor = os.open(tmp_path / "a.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield LogStream(descriptor)
    os.close(descriptor)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_one_line(text):
    data = encode({"level": "info", "text": text, "clip": text})
    assert data.count(b"\n") == 1
    (line,) = parse(data)
    assert line == {"level": "info", "text": text, "clip": text}


@given(st.binary())
def test_any_bytes_can_be_read_and_shown_on_lines_without_control_characters(data):
    for line in parse(data):
        shown = human(line)
        assert "\n" not in shown
        assert shown.isprintable()


def test_lines_of_threads_stay_whole(stream, tmp_path):
    def work(name):
        for number in range(200):
            print(f"{name} {number}", file=stream)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [line["text"] for line in read(tmp_path / "a.log")]
    assert sorted(said) == sorted(f"{name} {number}" for name in "abcd" for number in range(200))


def test_of_a_progress_bar_a_line_per_minute_is_kept_and_its_end(stream, tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(joblog.time, "monotonic", lambda: clock[0])
    stream._shown = clock[0]
    for percent in range(100):
        clock[0] += 5
        stream.write(f"\r{percent}%")
    stream.write("\r100%\n")
    print("done", file=stream)
    stream.write("\rcut short")
    stream.end_line()
    said = [line["text"] for line in read(tmp_path / "a.log")]
    assert said == [*(f"{percent}%" for percent in range(12, 100, 13)), "100%", "done", "cut short"]


def test_a_log_of_a_long_job_with_many_bad_clips_has_its_beginning(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    stream.record("info", "begins", event="begin", stage="enhance", node="n1")
    problems = Problems()
    for number in range(2000):
        problems.add("x" * 10_000, clip=f"{number:024}", file="a.tar, " + "y" * 60, error_class="truncated")
    for number in range(2000):
        stream.record("info", f"line {number} " + "z" * 100)
    stream.record("info", "done", event="end", stage="enhance", status="done")
    lines = last_attempt(tmp_path / "a.log", "enhance")
    assert (lines[0]["node"], lines[-1]["status"]) == ("n1", "done")


def test_problems_name_clip_and_file_and_are_bounded(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(joblog, "PROBLEMS", 3)
    problems = Problems()
    for number in range(10):
        problems.add("too short", clip=f"c{number}", file="a.tar, 3", error_class="truncated")
    lines = read(tmp_path / "a.log")
    assert [line.get("clip") for line in lines] == ["c0", "c1", "c2", None]
    assert human(lines[0])[9:] == "warning: truncated: too short (clip c0, file a.tar, 3)"
    assert problems.count == 10


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(line if isinstance(line, str) else json.dumps({"text": "", **line}) + "\n" for line in lines)
    )


def begin(stage, number):
    return {"event": "begin", "stage": stage, "number": number}


END = {"event": "end", "status": "done"}


def test_the_last_attempt_is_found_in_its_own_log_or_in_the_story_of_its_batch(tmp_path):
    own, story = tmp_path / "logs" / "score" / "b0.log", tmp_path / "logs" / "batches" / "b0.log"
    assert last_attempt(own, "score") == []
    write(story, begin("score", 1), END, begin("score", 2), "a library\n", END, begin("rank", 3), END)
    assert [line.get("number") for line in last_attempt(own, "score")] == [2, None, None]
    assert last_attempt(own, "enhance") == []
    write(own, begin("score", 4))
    assert [line.get("number") for line in last_attempt(own, "score")] == [4]


def test_logs_of_a_run_by_name_with_their_problems(tmp_path, capsys):
    warning = {"level": "warning", "text": "it is \x1b[31m red", "clip": "c", "time": "2026-01-01T10:20:30.000+00:00"}
    write(tmp_path / "logs" / "batches" / "b0.log", begin("enhance", 1), warning, END)
    write(tmp_path / "logs" / "score" / "b0.log", begin("score", 2), "at work\n")  # not filed away yet
    write(tmp_path / "logs" / "score" / "b1.log", begin("score", 2), END)  # failed, and filed away
    write(tmp_path / "logs" / "publish.log", begin("publish", 3), END)
    names = [str(path.relative_to(tmp_path / "logs")) for path in logs_of(tmp_path)]
    assert names == ["batches/b0.log", "score/b0.log", "publish.log"]
    assert [path.parent.name for path in logs_of(tmp_path, "b0")] == ["batches", "score"]
    assert main(["logs", str(tmp_path), "--problems"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["10:20:30 warning: it is [31m red (clip c)"]
    assert main(["logs", str(tmp_path), "b0", "--json", "--tail", "1"]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["", "at work"]


@pytest.mark.parametrize("name", ["../secret", "no-such", "a b", ""])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    write(tmp_path / "secret.log", "x\n")
    (tmp_path / "logs").mkdir()
    with pytest.raises(SpeechmillError, match=r"not a valid name|no log of"):
        logs_of(tmp_path, name)
