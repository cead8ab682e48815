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
Weight = Annotated[Number, Field(ge=0, allow_inf_nan=False)]


def like(**example: Any) -> ConfigDict:
    """With an example for OpenAPI."""
    return ConfigDict(json_schema_extra={"examples": [example]})


RUN = "20260301120000-1a2b3c4d"
TIMES = {"created": "2026-03-01T12:00:00.000+00:00", "started": "2026-03-01T12:00:03.120+00:00", "ended": None}
OF_RUN = {"run_id": RUN, "dataset": "demo", "state": "running"}
SUMMARY = OF_RUN | TIMES | {"run_dir": "/data/results/demo", "last_error": None, "estimated_duration_hours": 0.4}
STAGE = {"stage": "enhance", "done": 3, "total": 12, "running": 2, "waiting": 7, "failed_attempts": 0, "given_up": 0}
STATUS = {
    "state_history": [{"state": "queued", "time": TIMES["created"], "why": "triggered"}],
    "restarts": 0,
    "stages": [STAGE],
    "rules": {"enhance": {"finished": 3, "submitted": 2}},
    "retries": 0,
    "clips": 120000,
    "hours": 151.2,
    "seconds_left": 1140.0,
    "published": None,
    "alerts": None,
}
TASK = {
    "task": "enhance",
    "batch": "clips-00003",
    "file": None,
    "status": "finished",
    "start": "2026-03-01T12:01:10.000+00:00",
    "end": "2026-03-01T12:05:32.000+00:00",
    "duration": 262.0,
    "retries": 0,
    "host": "gpu7",
    "device": "cuda",
    "slurm_job": "4711",
}
LINE = {
    "time": TIMES["started"],
    "level": "warning",
    "text": "too short",
    "clip": "a/b.wav",
    "human": "warning: too short",
}
SCHEDULE: dict[str, Any] = {
    "id": RUN,
    "dataset_name": "demo",
    "cron": "@daily",
    "config": {},
    "caller": "me",
    "created": TIMES["created"],
}
SCHEDULE |= {"next_due": "2026-03-02T00:00:00+00:00", "last_due": None, "last_outcome": None}


class Strict(BaseModel):
    """A request: what is not named here is refused, and nothing is taken for something else."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TriggerRequest(Strict):
    model_config = like(dataset_name="demo", config={"rank": {"threshold": 0.6}})
    dataset_name: Annotated[str, Field(pattern=DATASET, description="a file of config/datasets/ without .yaml")]
    config: Annotated[
        dict[str, Any], Field(description="settings that differ from the corpus's own; some are allowed")
    ] = {}


class RerankRequest(Strict):
    model_config = like(profile="tts", threshold=0.7)
    profile: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] = None
    threshold: Annotated[Number | None, Field(ge=0, le=1)] = None
    weights: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=100)], Weight] | None,
        Field(max_length=50, description="of groups of the profile, in place of its own"),
    ] = None


class ScheduleRequest(TriggerRequest):
    model_config = like(dataset_name="demo", cron="@daily")
    cron: Annotated[str, Field(min_length=1, max_length=100, description="five fields of cron in UTC, or @daily, ...")]


class Triggered(BaseModel):
    model_config = like(status="triggered", run_id=RUN, dataset="demo", estimated_duration_hours=0.4)
    status: Literal["triggered"]
    run_id: str
    dataset: str
    estimated_duration_hours: float | None


class Accepted(BaseModel):
    model_config = like(run_id=RUN, state="cancelling")
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
    model_config = like(runs=[SUMMARY], next_cursor=None)
    runs: list[Summary]
    next_cursor: str | None


class Change(BaseModel):
    state: State
    time: str
    why: str | None


class Status(Summary):
    model_config = like(**SUMMARY, **STATUS)
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
    model_config = like(tasks=[TASK], next_cursor=None)
    tasks: list[Task]
    next_cursor: str | None


class Metrics(BaseModel):
    model_config = like(
        **OF_RUN,
        tasks=[TASK],
        throughput={"enhance": {"audio_hours_per_hour": 210.0, "clips_per_hour": 166000.0}},
        clips={"enhance": {"passed": 29100, "rejected": 900}},
        hours={"enhance": {"passed": 36.9, "rejected": 0.9}},
    )
    run_id: str
    dataset: str
    state: State
    tasks: list[Task]
    throughput: dict[str, dict[str, float | None]]
    clips: dict[str, dict[str, int]]
    hours: dict[str, dict[str, float]]


class Lines(BaseModel):
    model_config = like(lines=[LINE])
    lines: list[dict[str, Any]]


class Validation(BaseModel):
    model_config = like(valid=True, problems=[], jobs={"preflight": 1, "source": 1})
    valid: bool
    problems: list[str]
    jobs: dict[str, int]


class Corpus(BaseModel):
    model_config = like(name="demo", kind="folder", license="CC0-1.0", active_run_id=RUN)
    name: str
    kind: str | None
    license: str | None
    active_run_id: str | None


class Schedule(BaseModel):
    model_config = like(**SCHEDULE)
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
    model_config = like(schedules=[SCHEDULE])
    schedules: list[Schedule]


class Health(BaseModel):
    model_config = like(status="ok")
    status: Literal["ok"]


class Readiness(BaseModel):
    model_config = like(status="ready")
    status: Literal["ready"]
