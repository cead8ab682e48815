"""The JSON of GA4GH WES 1.1, as far as this service uses it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from speechmill.api.models import DATASET, Strict

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


class Params(Strict):
    dataset_name: Annotated[str, Field(pattern=DATASET)]
    config: dict[str, Any] = Field(default_factory=dict)


class RunRequest(Strict):
    workflow_params: Params
    workflow_type: str
    workflow_type_version: str
    workflow_url: str
    workflow_engine: str | None = None
    workflow_engine_version: str | None = None
    workflow_engine_parameters: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)


class RunId(BaseModel):
    run_id: str


class RunStatus(RunId):
    state: State


class RunSummary(RunStatus):
    start_time: str | None = None
    end_time: str | None = None
    tags: dict[str, str]


class RunList(BaseModel):
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
    request: dict[str, Any]
    run_log: Log
    task_logs_url: str
    task_logs: None
    outputs: dict[str, Any]


class TaskLog(Log):
    id: str


class TaskList(BaseModel):
    task_logs: list[TaskLog]
    next_page_token: str


class ServiceInfo(BaseModel):
    model_config = ConfigDict(extra="allow")
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
