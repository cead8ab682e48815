"""The Airflow DAG of docs/integrations, run by Airflow itself against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..runs import ROOT

AIRFLOW = os.environ.get("SPEECHMILL_AIRFLOW") or shutil.which("airflow")
pytestmark = pytest.mark.skipif(
    not AIRFLOW,
    reason="no airflow: python3 -m venv V && V/bin/pip install 'apache-airflow>=3', then SPEECHMILL_AIRFLOW=V/bin/airflow",
)
FIRST, SECOND = "2026-03-01T00:00:00+00:00", "2026-03-02T00:00:00+00:00"


class Airflow:
    """An Airflow of its own, with the DAG as its head says that it is installed."""

    def __init__(self, home: Path):
        self.home, self.dags = home, home / "dags"
        self.dags.mkdir(parents=True)
        text = (ROOT / "docs" / "integrations" / "airflow_dag.py").read_text(encoding="utf-8")
        assert text.count("poke_interval=300") == text.count("minutes=5") == 1
        text = text.replace("poke_interval=300", "poke_interval=1").replace("minutes=5", "seconds=1")
        (self.dags / "airflow_dag.py").write_text(text, encoding="utf-8")
        shutil.copy(ROOT / "speechmill" / "client.py", self.dags / "speechmill_client.py")
        self.call("db", "migrate")

    def call(
        self, *arguments: str, url: str = "", token: str = "", seconds: float = 300
    ) -> subprocess.CompletedProcess:
        connection = json.dumps({"conn_type": "http", "host": url, "password": token})
        environment = {"PATH": f"{Path(AIRFLOW).parent}:{os.environ['PATH']}", "HOME": str(self.home)} | {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW_CONN_SPEECHMILL_API": connection,
        }
        with open(self.home / "out", "w+", encoding="utf-8") as out:
            command = [AIRFLOW, *arguments]
            child = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, cwd=self.home, start_new_session=True
            )
            try:
                status = child.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)  # it takes no notice of SIGTERM
                status = child.wait()
            out.seek(0)
            return subprocess.CompletedProcess(command, status, out.read())

    def run(self, server, date: str, token: str | None = None) -> tuple[int, dict[str, str], str]:
        """Exit status, the last state of every task, and all that was said."""
        file = str(self.dags / "airflow_dag.py")
        done = self.call("dags", "test", "speechmill", date, "-f", file, url=server.url, token=token or server.token)
        states = json.loads(
            self.call("tasks", "states-for-dag-run", "speechmill", date, "-o", "json").stdout.splitlines()[-1]
        )
        return done.returncode, {state["task_id"]: state["state"] for state in states}, done.stdout


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    return Airflow(tmp_path_factory.mktemp("airflow"))


def test_a_day_triggers_a_run_and_waits_for_its_end(airflow, server):
    before = {run["run_id"] for run in server.get("/pipeline/runs").json()["runs"]}
    status, states, said = airflow.run(server, FIRST)
    assert states == {"trigger": "success", "wait": "success"}, said[-4000:]
    made = [run for run in server.get("/pipeline/runs").json()["runs"] if run["run_id"] not in before]
    assert [run["state"] for run in made] == ["succeeded"]
    assert server.token not in said
    assert (status, made[0]["run_id"] in said) == (0, True)
    # The task again, in the same DAG run: no second run of the corpus.
    again = airflow.call("tasks", "test", "speechmill", "trigger", FIRST, url=server.url, token=server.token)
    assert again.returncode == 0, again.stdout[-4000:]
    assert len(server.get("/pipeline/runs").json()["runs"]) == len(before) + 1


def test_a_day_on_which_the_corpus_is_busy_is_skipped(airflow, own_server):
    run_id = own_server.trigger()
    _, states, said = airflow.run(own_server, SECOND)
    assert states == {"trigger": "skipped", "wait": "skipped"}, said[-4000:]
    assert run_id in said


def test_a_refused_token_fails_at_once(airflow, server):
    _, states, said = airflow.run(server, "2026-03-03T00:00:00+00:00", token="wrong")
    assert states["trigger"] == "failed", said[-4000:]
    assert re.search("no valid token", said)


def test_the_schedule_is_daily_without_catch_up_and_one_at_a_time(airflow):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import airflow_dag as m; d = m.speechmill();"
        "print(d.timetable.summary if hasattr(d.timetable, 'summary') else d.schedule, d.catchup, d.max_active_runs)"
    )
    python = Path(AIRFLOW).parent / "python"
    environment = {"AIRFLOW_HOME": str(airflow.home), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [python if python.exists() else sys.executable, "-c", code, airflow.dags],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[-2:] == ["False", "1"], done.stderr[-2000:]
    assert "@daily" in done.stdout or "0 0 * * *" in done.stdout
