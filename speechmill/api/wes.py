"""GA4GH Workflow Execution Service 1.1 over the same runs: one registered workflow, whose parameters are those of
`POST /pipeline/trigger`. Errors are problem details with WES's `msg` and `status_code` besides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

import speechmill
from speechmill.api import views
from speechmill.api.calls import Key, Named, Reader, Served, Starter, page_of_runs, page_of_tasks
from speechmill.api.guard import check_json
from speechmill.api.problems import Problem, documented
from speechmill.api.store import Busy, Run
from speechmill.api.wes_models import RunId, RunList, RunLog, RunRequest, RunStatus, ServiceInfo, TaskList, TaskLog
from speechmill.errors import SpeechmillError

PREFIX = "/ga4gh/wes/v1"
WORKFLOW = "speechmill/Snakefile"
TYPE = "SMK"
ENGINE = "snakemake"
MOST = 1000  # of a page
STATES = {
    "queued": "QUEUED",
    "starting": "INITIALIZING",
    "running": "RUNNING",
    "retrying": "RUNNING",
    "lost": "UNKNOWN",  # for a moment: its runner died, another one takes it
    "draining": "CANCELING",
    "cancelling": "CANCELING",
    "cancelled": "CANCELED",
    "succeeded": "COMPLETE",
}
EXIT_CODES = {"succeeded": 0, "finished": 0, "failed": 1, "cancelled": 130}
SCHEMA = RunRequest.model_json_schema()
SCHEMA["properties"]["workflow_params"] = SCHEMA.pop("$defs")["Params"]  # OpenAPI has no place for definitions here
BODY = {"content": {kind: {"schema": SCHEMA} for kind in ("multipart/form-data", "application/json")}}
Size = Annotated[int, Query(ge=1, description=f"of a page; more than {MOST} is taken as {MOST}")]
Token = Annotated[str | None, Query(max_length=300, description="next_page_token of the page before")]


class Route(APIRoute):
    """Errors as WES clients read them."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Problem as error:
                raise _told(error.status, error.detail, **error.extras) from error
            except RequestValidationError as error:
                raise _told(
                    400, "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:20])
                ) from error
            except Busy as error:
                raise _told(409, str(error), active_run_id=error.active) from error
            except SpeechmillError as error:
                raise _told(400, str(error)) from error

        return answer


router = APIRouter(prefix=PREFIX, route_class=Route, tags=["GA4GH WES 1.1"])


@router.get("/service-info", responses={200: {"model": ServiceInfo}, **documented()})
def service_info(request: Request, caller: Reader, service: Served) -> Response:
    """What this service runs."""
    of_jobs = service.store.failed_in_jobs()
    by_state = service.store.counts()
    counts = Counter({"EXECUTOR_ERROR": of_jobs, "SYSTEM_ERROR": by_state.pop("failed") - of_jobs})
    for state, count in by_state.items():
        counts[STATES[state]] += count
    about = {
        "id": "speechmill",
        "name": "speechmill",
        "description": "Speech corpora enhanced, scored, ranked and published",
        "type": {"group": "org.ga4gh", "artifact": "wes", "version": "1.1.0"},
        "organization": {"name": "speechmill", "url": str(request.base_url)},
        "version": speechmill.__version__,
        "workflow_type_versions": {TYPE: {"workflow_type_version": [type_version()]}},
        "supported_wes_versions": ["1.1.0"],
        "supported_filesystem_protocols": ["file"],
        "workflow_engine_versions": {ENGINE: {"workflow_engine_version": [version(ENGINE)]}},
        "default_workflow_engine_parameters": [],
        "system_state_counts": dict(counts),
        "auth_instructions_url": f"{request.base_url}openapi.json",
        "tags": {"workflow_url": WORKFLOW},
    }
    return JSONResponse(about)


@router.get("/runs", responses={200: {"model": RunList}, **documented()})
def list_runs(caller: Reader, service: Served, page_size: Size = 100, page_token: Token = None) -> Response:
    """All runs, the newest first."""
    found, more = page_of_runs(service, min(page_size, MOST), page_token or None)
    return JSONResponse({"runs": [_summary(run) for run in found], "next_page_token": more or ""})


async def run_request(request: Request) -> RunRequest:
    """The request of a run, as a form or as JSON.

    Raises:
        Problem: it is not valid, or asks for what this service does not do.
    """
    if "form" in request.headers.get("content-type", ""):
        try:
            async with request.form(max_files=20, max_fields=20) as form:
                if any(isinstance(value, UploadFile) for value in form.values()):
                    raise Problem(400, f"files are not taken: the one workflow here is {WORKFLOW}")
                given: Any = {name: _of_form(name, str(value)) for name, value in form.items()}
        except HTTPException as error:
            raise Problem(400, f"the form cannot be read: {error.detail}") from error
    else:
        given = check_json(await request.body())
    try:
        asked = RunRequest.model_validate(given)
    except ValidationError as error:
        texts = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:20])
        raise Problem(400, f"the run request is not valid: {'; '.join(texts)}") from error
    _check(asked)
    return asked


@router.post("/runs", responses={200: {"model": RunId}, **documented(409)}, openapi_extra={"requestBody": BODY})
def run_workflow(
    caller: Starter, service: Served, asked: Annotated[RunRequest, Depends(run_request)], key: Key = None
) -> Response:
    """Begin a run."""
    params = asked.workflow_params
    return JSONResponse({"run_id": service.trigger(caller.name, params.dataset_name, params.config, key).id})


@router.get("/runs/{run_id}", responses={200: {"model": RunLog}, **documented(404)})
def run_log(request: Request, caller: Reader, run: Named, service: Served) -> Response:
    """All about a run but its tasks."""
    status = views.status(run, [], service.reading(run))
    outputs = {"published": status["published"], "clips": status["clips"], "hours": status["hours"]}
    log = _log(f"speechmill {run.dataset}", run.started, run.ended, EXIT_CODES.get(run.state), _logs_url(request, run))
    about = {
        "run_id": run.id,
        "request": {
            "workflow_params": {"dataset_name": run.dataset, "config": json.loads(run.config)},
            "workflow_type": TYPE,
            "workflow_type_version": type_version(),
            "workflow_url": WORKFLOW,
        },
        "state": state_of(run),
        "run_log": log | {"system_logs": [run.last_error] if run.last_error else []},
        "task_logs_url": f"{request.base_url}{PREFIX[1:]}/runs/{run.id}/tasks",
        "task_logs": None,
        "outputs": {name: value for name, value in outputs.items() if value is not None},
    }
    return JSONResponse(about)


@router.get("/runs/{run_id}/status", responses={200: {"model": RunStatus}, **documented(404)})
def run_status(caller: Reader, run: Named) -> Response:
    """The state of a run."""
    return JSONResponse({"run_id": run.id, "state": state_of(run)})


@router.get("/runs/{run_id}/tasks", responses={200: {"model": TaskList}, **documented(404)})
def list_tasks(
    request: Request, caller: Reader, run: Named, service: Served, page_size: Size = 500, page_token: Token = None
) -> Response:
    """The tasks of a run in the order of their first attempt."""
    found, more = page_of_tasks(views.tasks(run, service.reading(run)), min(page_size, MOST), page_token or None)
    logs = [_task(request, run, task) for task in found]
    return JSONResponse({"task_logs": logs, "next_page_token": more or ""})


@router.get("/runs/{run_id}/tasks/{task_id}", responses={200: {"model": TaskLog}, **documented(404)})
def get_task(request: Request, caller: Reader, run: Named, service: Served, task_id: str) -> Response:
    """One task."""
    for task in views.tasks(run, service.reading(run)):
        if task_id_of(task) == task_id:
            return JSONResponse(_task(request, run, task))
    raise Problem(404, f"run {run.id} has no such task: {PREFIX}/runs/{run.id}/tasks lists all")


@router.post("/runs/{run_id}/cancel", responses={200: {"model": RunId}, **documented(404, 409)})
def cancel_run(caller: Starter, run: Named, service: Served) -> Response:
    """End a run now, with every job of it."""
    return JSONResponse({"run_id": service.stop(run, "cancel").id})


def type_version() -> str:
    """Of the workflow language: Snakemake's major version."""
    return version(ENGINE).split(".")[0]


def state_of(run: Run) -> str:
    """EXECUTOR_ERROR: a job failed for good; SYSTEM_ERROR: what runs the jobs did."""
    if run.state != "failed":
        return STATES[run.state]
    stages = (json.loads(run.final) or {}).get("stages") if run.final else None
    return "EXECUTOR_ERROR" if any(stage["given_up"] for stage in stages or ()) else "SYSTEM_ERROR"


def task_id_of(task: Mapping[str, Any]) -> str:
    return ".".join(task[name] for name in ("task", "batch", "file") if task[name])


def _told(status: int, detail: str, **extras: Any) -> Problem:
    return Problem(status, detail, **(extras | {"msg": detail, "status_code": status}))


def _of_form(name: str, value: str) -> Any:
    """A field of a form, in which objects are JSON."""
    if name not in ("workflow_params", "tags", "workflow_engine_parameters"):
        return value
    return check_json(value.encode())


def _check(asked: RunRequest) -> None:
    only = {
        "workflow_url": (asked.workflow_url, WORKFLOW),
        "workflow_type": (asked.workflow_type, TYPE),
        "workflow_type_version": (asked.workflow_type_version, type_version()),
        "workflow_engine": (asked.workflow_engine or ENGINE, ENGINE),
        "workflow_engine_version": (asked.workflow_engine_version or version(ENGINE), version(ENGINE)),
    }
    for name, (given, known) in only.items():
        if given != known:
            raise Problem(400, f"{name}: only {known} runs here")
    for name in ("tags", "workflow_engine_parameters"):
        if getattr(asked, name):
            raise Problem(400, f"{name}: not taken here; leave it empty")


def _summary(run: Run) -> dict[str, Any]:
    return {"run_id": run.id, "state": state_of(run), "tags": {}} | _times(run.started, run.ended)


def _task(request: Request, run: Run, task: Mapping[str, Any]) -> dict[str, Any]:
    name = task["batch"] or task["file"] or task["task"]
    code = EXIT_CODES.get(task["status"])
    log = _log(task_id_of(task), task["start"], task["end"], code, f"{_logs_url(request, run)}?name={name}")
    about = {"node": task["host"], "slurm_job": task["slurm_job"], "reason": task["reason"]}
    return log | {"id": task_id_of(task), "system_logs": [f"{key}: {value}" for key, value in about.items() if value]}


def _log(name: str, start: str | None, end: str | None, code: int | None, url: str) -> dict[str, Any]:
    about = {"name": name, "stdout": url, "stderr": url} | _times(start, end)
    return about if code is None else about | {"exit_code": code}


def _logs_url(request: Request, run: Run) -> str:
    return f"{request.base_url}pipeline/runs/{run.id}/logs"


def _times(start: str | None, end: str | None) -> dict[str, str]:
    given = {"start_time": start, "end_time": end}
    return {
        name: f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        for name, time in given.items()
        if time
    }
