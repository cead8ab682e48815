"""The JSON of requests and answers, for checking the former and for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RUN_ID = r"^[0-9]{14}-[0-9a-f]{8}$"
DATASET = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
State = Literal[
    "queued",
    "starting",
    "running",
    "retrying",
    "cancelling",
    "draining",
    "lost",
    "succeeded",
    "failed",
    "cancelled",
]
TaskState = Literal["waiting", "running", "finished", "failed", "lost"]
Number = float | int


class Strict(BaseModel):
    """A request: what is not named here is refused, and nothing is taken for something else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TriggerRequest(Strict):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"dataset_name": "demo", "config": {"rank": {"threshold": 0.6}}}]}
    )
    dataset_name: Annotated[str, Field(pattern=DATASET, description="a file of config/datasets/ without .yaml")]
    config: Annotated[
        dict[str, Any], Field(description="settings that differ from the corpus's own; some are allowed")
    ] = {}


class RerankRequest(Strict):
    model_config = ConfigDict(json_schema_extra={"examples": [{"profile": "tts", "threshold": 0.7}]})
    profile: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] = None
    threshold: Annotated[Number | None, Field(ge=0, le=1)] = None


class ScheduleRequest(TriggerRequest):
    model_config = ConfigDict(json_schema_extra={"examples": [{"dataset_name": "demo", "cron": "@daily"}]})
    cron: Annotated[str, Field(min_length=1, max_length=100, description="five fields of cron in UTC, or @daily, ...")]


class Triggered(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "triggered",
                    "run_id": "20260301120000-1a2b3c4d",
                    "dataset": "demo",
                    "estimated_duration_hours": 0.4,
                }
            ]
        }
    )
    status: Literal["triggered"]
    run_id: str
    dataset: str
    estimated_duration_hours: float | None


class Accepted(BaseModel):
    run_id: str
    state: State


class Summary(BaseModel):
    run_id: str
    dataset: str
    state: State
    created: str
    started: str | None
    ended: str | None
    run_dir: str
    last_error: str | None
    estimated_duration_hours: float | None


class Runs(BaseModel):
    runs: list[Summary]
    next_cursor: str | None


class Change(BaseModel):
    state: State
    time: str
    why: str | None


class Status(Summary):
    state_history: list[Change]
    restarts: int
    stages: list[dict[str, Any]]
    rules: dict[str, dict[str, int]]
    retries: int
    clips: int | None
    hours: float | None
    seconds_left: float | None
    published: dict[str, Any] | None
    alerts: dict[str, Any] | None


class Task(BaseModel):
    model_config = ConfigDict(extra="allow")
    task: str
    batch: str | None
    file: str | None
    status: TaskState
    start: str | None
    end: str | None
    duration: float | None
    retries: int
    host: str | None
    device: str | None
    slurm_job: str | None


class Tasks(BaseModel):
    tasks: list[Task]
    next_cursor: str | None


class Metrics(BaseModel):
    run_id: str
    dataset: str
    state: State
    tasks: list[Task]
    throughput: dict[str, dict[str, float | None]]
    clips: dict[str, dict[str, int]]
    hours: dict[str, dict[str, float]]


class Lines(BaseModel):
    lines: list[dict[str, Any]]


class Validation(BaseModel):
    valid: bool
    problems: list[str]
    jobs: dict[str, int]


class Corpus(BaseModel):
    name: str
    kind: str | None
    license: str | None
    active_run_id: str | None


class Schedule(BaseModel):
    id: str
    dataset_name: str
    cron: str
    config: dict[str, Any]
    caller: str
    created: str
    next_due: str
    last_due: str | None
    last_outcome: str | None


class Schedules(BaseModel):
    schedules: list[Schedule]


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    status: Literal["ready"]
