"""The calls about runs: begin, follow, end."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse, StreamingResponse

from speechmill.api import models, streams, views
from speechmill.api.calls import Cursor, Key, Limit, Named, Reader, Served, Starter, page_of_runs, page_of_tasks
from speechmill.api.problems import Problem, documented
from speechmill.api.store import Run
from speechmill.errors import SpeechmillError
from speechmill.runlog import joblog, log_reader
from speechmill.runs.plan import LOG

MOST_LINES = 5000
MOST_STREAMS = 200  # of events, of one token
router = APIRouter(prefix="/pipeline")


def triggered(run: Run) -> JSONResponse:
    about = {"status": "triggered", "run_id": run.id, "dataset": run.dataset, "estimated_duration_hours": run.hours}
    return JSONResponse(about)


@router.post("/trigger", responses={200: {"model": models.Triggered}, **documented(409)})
def trigger(request: models.TriggerRequest, caller: Starter, service: Served, key: Key = None) -> Response:
    """Begin a run of a corpus."""
    return triggered(service.trigger(caller.name, request.dataset_name, request.config, key))


@router.get("/status/{run_id}", responses={200: {"model": models.Status}, **documented(404)})
def status(caller: Reader, run: Named, service: Served) -> Response:
    """How far a run is: state, stages, what is left, what failed."""
    return JSONResponse(views.status(run, service.store.history(run.id), service.reading(run)))


@router.get("/metrics/{run_id}", responses={200: {"model": models.Metrics}, **documented(404)})
def metrics(caller: Reader, run: Named, service: Served) -> Response:
    """What every task of a run took, and rates, clips and hours of audio by stage."""
    reading = service.reading(run)
    made = lambda: bytes(JSONResponse(views.metrics(run, reading)).body)  # noqa: E731
    return Response(reading.once(("metrics", run.id, run.state, run.ended), made), media_type="application/json")


@router.get("/runs", responses={200: {"model": models.Runs}, **documented()})
def runs(
    caller: Reader,
    service: Served,
    state: models.State | None = None,
    dataset: Annotated[str | None, Query(pattern=models.DATASET)] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """All runs, the newest first."""
    found, more = page_of_runs(service, limit, cursor, state, dataset)
    return JSONResponse({"runs": [views.summary(run) for run in found], "next_cursor": more})


@router.get("/runs/{run_id}/tasks", responses={200: {"model": models.Tasks}, **documented(404)})
def tasks(
    caller: Reader,
    run: Named,
    service: Served,
    status: models.TaskState | None = None,
    stage: Annotated[str | None, Query(pattern=r"^[a-z_]{1,40}$")] = None,
    limit: Limit = 500,
    cursor: Cursor = None,
) -> Response:
    """The tasks of a run in the order of their first attempt."""

    def is_wanted(task: Mapping[str, Any]) -> bool:
        return status in (None, task["status"]) and stage in (None, task["task"])

    found, more = page_of_tasks(views.tasks(run, service.reading(run)), limit, cursor, is_wanted)
    return JSONResponse({"tasks": found, "next_cursor": more})


@router.get("/runs/{run_id}/logs", responses={200: {"model": models.Lines}, **documented(404)})
def log_lines(
    caller: Reader,
    run: Named,
    name: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,200}$", description="batch, stage or file")] = None,
    tail: Annotated[int, Query(ge=1, le=MOST_LINES)] = 200,
    problems: bool = False,
) -> Response:
    """The last lines of a log: of a batch or a stage, without a name of the run as a whole."""
    run_dir = Path(run.run_dir)
    if name is None:
        lines: list[Any] = joblog.read(run_dir / LOG, joblog.TAIL_BYTES)
        lines = [line for line in lines if not problems or line.get("level") in log_reader.WORSE][-tail:]
    else:
        try:
            found = deque(log_reader.lines_of(run_dir, name, problems, tail), MOST_LINES)
            lines = [line | {"log": str(path)} for path, line in found]
        except SpeechmillError as error:
            raise Problem(404, str(error)) from error
    return JSONResponse({"lines": [views.log_line(line) for line in lines]})


@router.get(
    "/runs/{run_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}}, 204: {"description": "all was told"}, **documented(404)},
)
def follow(
    caller: Reader,
    run: Named,
    service: Served,
    last_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,18}-[0-9]{1,18}$")] = None,
) -> Response:
    """Server-sent events `state`, `job` and `progress`, from the beginning of the run or after Last-Event-ID."""
    if service.streams[caller.name] >= MOST_STREAMS:
        detail = f"this token has {MOST_STREAMS} streams of events open: end some"
        raise Problem(429, detail, {"Retry-After": "60"})
    follower = streams.Follower(service, run, last_id)
    if last_id and follower.is_done():
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    texts = streams.stream(follower, service.streams, caller.name)
    return StreamingResponse(texts, media_type="text/event-stream", headers=headers)


@router.post(
    "/runs/{run_id}/cancel", status_code=202, responses={202: {"model": models.Accepted}, **documented(404, 409)}
)
def cancel(caller: Starter, run: Named, service: Served, mode: Literal["now", "drain"] = "now") -> Response:
    """End a run: `now` with all its jobs, or `drain`: running jobs end, nothing new begins."""
    return accepted(service.stop(run, "cancel" if mode == "now" else "drain"))


@router.post(
    "/runs/{run_id}/resume", status_code=202, responses={202: {"model": models.Accepted}, **documented(404, 409)}
)
def resume(caller: Starter, run: Named, service: Served) -> Response:
    """Go on with a run that failed or was cancelled; what is done stays done."""
    return accepted(service.resume(run, caller.name))


@router.post("/runs/{run_id}/rerank", responses={200: {"model": models.Triggered}, **documented(404, 409)})
def rerank(request: models.RerankRequest, caller: Starter, run: Named, service: Served, key: Key = None) -> Response:
    """Begin a run on the same corpus with another profile, threshold or weights: what is enhanced and scored stays."""
    rank = request.model_dump(exclude_none=True)
    if not rank:
        raise Problem(422, "name a profile, a threshold or weights")
    return triggered(service.rerank(caller.name, run, rank, key))


def accepted(run: Run) -> JSONResponse:
    return JSONResponse({"run_id": run.id, "state": run.state}, 202)
