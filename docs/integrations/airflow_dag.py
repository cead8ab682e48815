"""An Airflow DAG (Airflow 3) that has speechmill run a corpus once a day, through its REST API, and waits for the end.

To install it, copy this file into the DAG folder, and `speechmill/client.py` beside it as `speechmill_client.py`: nothing
else of speechmill is needed there. The connection `speechmill_api` holds the server's address and a token with the scope
trigger:

    airflow connections add speechmill_api --conn-json '{"conn_type": "http", "host": "https://login1:8571", "password": "TOKEN"}'

Missed days are not caught up with, and one run is at work at a time. While another run works on the corpus, the day is
skipped. A task that is repeated begins no second run; clearing a failed one goes on where the run ended.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk import Connection, PokeReturnValue, dag, task
from speechmill_client import ApiError, Client

DATASET = "demo"
CONFIG: dict[str, object] = {}  # settings that differ from the corpus's own, such as {"rank": {"threshold": 0.6}}
CONNECTION = "speechmill_api"


def client() -> Client:
    connection = Connection.get(CONNECTION)
    return Client(connection.host or "", connection.password or "")


@dag(
    dag_id="speechmill",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5)},
    tags=["speech"],
    doc_md=__doc__,
)
def speechmill() -> None:
    @task
    def trigger(dag_run=None) -> str:  # type: ignore[no-untyped-def]
        with client() as api:
            try:
                # The key is that of the DAG run: whoever repeats this task gets the run that it began.
                run = api.trigger(DATASET, CONFIG, key=f"airflow:{dag_run.dag_id}:{dag_run.run_id}")
                if api.status(run.run_id).state in ("failed", "cancelled"):
                    api.resume(run.run_id)
            except ApiError as error:
                if error.status == 409:
                    raise AirflowSkipException(str(error)) from error
                if error.status in (401, 403, 404, 422):  # repeating it would not help
                    raise AirflowFailException(str(error)) from error
                raise
            return run.run_id

    # Between two looks the sensor holds no worker. After two weeks it gives up waiting; the run goes on.
    @task.sensor(poke_interval=300, timeout=14 * 86400, mode="reschedule")
    def wait(run: str) -> PokeReturnValue:
        with client() as api:
            status = api.status(run)
        print(f"run {run}: {status.state}, about {status.seconds_left} s left")
        if status.is_over and not status.succeeded:
            raise AirflowFailException(f"run {run} {status.state}: {status.last_error}")
        return PokeReturnValue(status.is_over, {"run_id": run, "published": status.published})

    wait(trigger())


speechmill()
