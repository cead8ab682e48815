"""Real runs of the workflow in the web page of the real Panoptes."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from speechmill.storage.files import read_json

from ..panoptes import Panoptes
from ..patience import seconds
from ..runs import Run, make_corpus, wait_for


@pytest.fixture(scope="module")
def panoptes(tmp_path_factory):
    server = Panoptes(tmp_path_factory.mktemp("panoptes"))
    yield server
    server.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.route(lambda url: "127.0.0.1" not in url, lambda route: route.abort())  # its fonts and scripts from elsewhere
    yield page
    page.close()


def start(run: Run, panoptes: Panoptes, *arguments: str) -> subprocess.Popen:
    """Snakemake in a session of its own."""
    environment = run.environment() | {"SPEECHMILL_PANOPTES": panoptes.address}
    with open(run.directory / "snakemake.log", "wb") as log:
        return subprocess.Popen(
            run.command(*arguments), env=environment, stdout=log, stderr=log, start_new_session=True
        )


def job_processes(script: str, snakemake: int) -> list[int]:
    """Processes of a script, in the session of a Snakemake."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            session = int((process / "stat").read_text().rpartition(")")[2].split()[3])
        except OSError:  # it has ended
            continue
        if session == snakemake and any(word.endswith(f".{script}".encode()) for word in command):
            found.append(int(process.name))
    return found


def workflow_status(page, panoptes: Panoptes, name: str) -> str:
    page.goto(f"{panoptes.address}/workflows/")
    return page.locator("#workFlowsTable tbody tr", has_text=name).locator(".badge").inner_text()


def jobs(page, panoptes: Panoptes, workflow: int) -> list[tuple[str, str]]:
    """Name and status of the rows of the page."""
    page.goto(f"{panoptes.address}/workflow/{workflow}")
    rows = page.locator("#jobsTable tbody tr").all_inner_texts()
    return [(cells[1].strip(), cells[2].strip()) for cells in (row.split("\t") for row in rows)]


def has_job(panoptes: Panoptes, workflow: int, name: str) -> bool:
    return name in {job["name"] for job in panoptes.jobs(workflow).values()}


def colour(page, name: str) -> str:
    row = page.locator("#jobsTable tbody tr", has_text=name).first
    return row.locator(".badge").get_attribute("class")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("browser") / "run", batch_size=5)
    make_corpus(run.directory / "corpus")
    return run


@pytest.fixture(scope="module")
def succeeded(run, panoptes, browser, screenshots):
    """A run of which one job is killed and repeated, and what the page showed meanwhile."""
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    process = start(run, panoptes, "--until", "rank")
    state = run.results / "logs" / "panoptes.json"
    wait_for(lambda: state.exists() and read_json(state)["workflow"])
    number, name = (read_json(state)[key] for key in ("workflow", "name"))
    wait_for(lambda: panoptes.jobs(number))
    shown = {"number": number, "name": name, "first": jobs(page, panoptes, number)}
    (killed, *_) = wait_for(lambda: job_processes("enhance.py", process.pid))
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: has_job(panoptes, number, "enhance, attempt 2"))
    shown["repeated"] = jobs(page, panoptes, number)
    shown["repeated status"] = workflow_status(page, panoptes, name)
    if screenshots:
        wait_for(lambda: has_job(panoptes, number, "rank"))
        page.set_viewport_size({"width": 1000, "height": 1150})
        page.goto(f"{panoptes.address}/workflow/{number}")
        page.screenshot(path=screenshots / "panoptes.png")
    assert process.wait(seconds(300)) == 0
    page.close()
    return shown


def test_a_run_and_its_jobs_go_from_running_to_done(succeeded, panoptes, page):
    assert "Running" in dict(succeeded["first"]).values()
    assert workflow_status(page, panoptes, succeeded["name"]) == "Done"
    last = jobs(page, panoptes, succeeded["number"])
    assert {status for _, status in last} == {"Done"}
    assert {"preflight", "manifest", "enhance", "score", "rank"} <= {name for name, _ in last}
    assert "100.00%" in page.locator(".progress-bar").first.inner_text()


def test_a_repeated_attempt_is_seen_and_does_not_paint_the_run_red(succeeded, panoptes, page):
    assert succeeded["repeated status"] == "Running"
    assert dict(succeeded["repeated"])["enhance, attempt 2"] == "Running"
    assert "Error" not in dict(succeeded["repeated"]).values()
    assert ("enhance, attempt 2", "Done") in jobs(page, panoptes, succeeded["number"])
    assert "badge-success" in colour(page, "enhance, attempt 2")


def test_a_job_that_fails_for_good_is_red_with_its_files_and_log(succeeded, run, panoptes, page, tmp_path):
    broken = run.copy(tmp_path / "broken")
    table = broken.results / "manifest" / "clips-00001.parquet"
    table.write_bytes(b"damaged")
    process = start(broken, panoptes, "--forcerun", "enhance", "--until", "enhance", "--retries", "0")
    assert process.wait(seconds(300)) == 1
    state = read_json(broken.results / "logs" / "panoptes.json")
    assert state["workflow"] != succeeded["number"]
    assert workflow_status(page, panoptes, state["name"]) == "Error"
    failed = [name for name, status in jobs(page, panoptes, state["workflow"]) if status == "Error"]
    assert failed == ["enhance"]
    row = page.locator("#jobsTable tbody tr", has_text="Error")
    assert "badge-danger" in row.locator(".badge").get_attribute("class")
    row.locator("a").first.click()
    text = page.locator("main").inner_text()
    assert "results/demo/logs/enhance/clips-00001.log" in text
    assert "results/demo/enhanced/clips-00001.parquet" in text
    assert workflow_status(page, panoptes, succeeded["name"]) == "Done"  # the earlier start stays as it was
