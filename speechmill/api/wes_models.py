"""The JSON of GA4GH WES 1.1, as far as this service uses it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from speechmill.api.models import DATASET, RUN, Strict, like

State = Literal[
    "UNKNOWN",
    "QUEUED",
    "INITIALIZING",
    "RUNNING",
    "PAUSED",
    "COMPLETE",
    "EXECUTOR_ERROR",
    "SYSTEM_ERROR",
    "CANCELED",
    "CANCELING",
    "PREEMPTED",
]


PARAMS = {"dataset_name": "demo", "config": {"rank": {"threshold": 0.6}}}
REQUEST = {
    "workflow_params": PARAMS,
    "workflow_type": "SMK",
    "workflow_type_version": "9",
    "workflow_url": "speechmill/Snakefile",
}
LOGS = f"http://127.0.0.1:8571/pipeline/runs/{RUN}/logs"
LOG = {
    "name": "speechmill demo",
    "start_time": "2026-03-01T12:00:03Z",
    "stdout": LOGS,
    "stderr": LOGS,
    "system_logs": [],
}
TASK = LOG | {"id": "enhance.clips-00003", "name": "enhance.clips-00003", "exit_code": 0}
STATUS = {"run_id": RUN, "state": "RUNNING"}


class Params(Strict):
    dataset_name: Annotated[str, Field(pattern=DATASET)]
    config: dict[str, Any] = Field(default_factory=dict)


class RunRequest(Strict):
    model_config = like(**REQUEST)
    workflow_params: Params
    workflow_type: str
    workflow_type_version: str
    workflow_url: str
    workflow_engine: str | None = None
    workflow_engine_version: str | None = None
    workflow_engine_parameters: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)


class RunId(BaseModel):
    model_config = like(run_id=RUN)
    run_id: str


class RunStatus(RunId):
    model_config = like(**STATUS)
    state: State


class RunSummary(RunStatus):
    model_config = like(**STATUS, tags={})
    start_time: str | None = None
    end_time: str | None = None
    tags: dict[str, str]


class RunList(BaseModel):
    model_config = like(runs=[STATUS | {"tags": {}}], next_page_token="")
    runs: list[RunSummary]
    next_page_token: str


class Log(BaseModel):
    name: str
    start_time: str | None = None
    end_time: str | None = None
    stdout: str
    stderr: str
    exit_code: int | None = None
    system_logs: list[str]


class RunLog(RunStatus):
    model_config = like(
        **STATUS,
        request=REQUEST,
        run_log=LOG,
        task_logs_url=f"http://127.0.0.1:8571/ga4gh/wes/v1/runs/{RUN}/tasks",
        task_logs=None,
        outputs={},
    )
    request: dict[str, Any]
    run_log: Log
    task_logs_url: str
    task_logs: None
    outputs: dict[str, Any]


class TaskLog(Log):
    model_config = like(**TASK)
    id: str


class TaskList(BaseModel):
    model_config = like(task_logs=[TASK], next_page_token="")
    task_logs: list[TaskLog]
    next_page_token: str


class ServiceInfo(BaseModel):
    model_config = ConfigDict(extra="allow") | like(
        id="speechmill",
        name="speechmill",
        type={"group": "org.ga4gh", "artifact": "wes", "version": "1.1.0"},
        organization={"name": "speechmill", "url": "http://127.0.0.1:8571"},
        version="1.0.0",
        workflow_type_versions={"SMK": {"workflow_type_version": ["9"]}},
        supported_wes_versions=["1.1.0"],
        supported_filesystem_protocols=["file"],
        workflow_engine_versions={"snakemake": {"workflow_engine_version": ["9.0.0"]}},
        default_workflow_engine_parameters=[],
        system_state_counts={"RUNNING": 1, "COMPLETE": 12},
        auth_instructions_url="http://127.0.0.1:8571/openapi.json",
        tags={"workflow_url": "speechmill/Snakefile"},
    )
    id: str
    name: str
    type: dict[str, str]
    organization: dict[str, str]
    version: str
    workflow_type_versions: dict[str, dict[str, list[str]]]
    supported_wes_versions: list[str]
    supported_filesystem_protocols: list[str]
    workflow_engine_versions: dict[str, dict[str, list[str]]]
    default_workflow_engine_parameters: list[dict[str, str]]
    system_state_counts: dict[str, int]
    auth_instructions_url: str
    tags: dict[str, str]
