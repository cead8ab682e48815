"""The calls beside runs: before one, by the clock, and about the server itself."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from speechmill.api import models, schedules
from speechmill.api.calls import Reader, Served, Starter
from speechmill.api.problems import Problem, documented
from speechmill.api.service import Overloaded
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.monitor.prometheus import RunCollector

KEEPER_SECONDS = 120.0  # without a look at the runs, something is wrong
FIGURE = {"value": 1.4, "basis": "20 workers, bound by workers; 0.1 h of other jobs", "range": [0.7, 2.8]}
PLANNED = {"example": {"dataset": "demo", "run": "/data/results/demo", "wall_hours": FIGURE, "notes": []}}
router = APIRouter()


@router.post("/pipeline/validate", responses={200: {"model": models.Validation}, **documented()})
def validate(request: models.TriggerRequest, caller: Reader, service: Served) -> Response:
    """A dry run: whether a run could begin, and how many jobs of each rule it would have."""
    try:
        found = service.validate(request.dataset_name, request.config)
    except Overloaded as error:
        raise Problem(503, str(error), {"Retry-After": "10"}) from error
    return JSONResponse({"valid": found.valid, "problems": found.problems, "jobs": found.jobs})


@router.post(
    "/pipeline/plan",
    responses={200: {"description": "the estimate", "content": {"application/json": PLANNED}}, **documented()},
)
def plan(request: models.TriggerRequest, caller: Reader, service: Served) -> Response:
    """What a run would take, each number with what it rests on."""
    try:
        return JSONResponse(service.estimate(request.dataset_name, request.config))
    except ConfigError:
        raise
    except SpeechmillError as error:
        raise Problem(503, str(error)) from error


@router.get("/pipeline/corpora", responses={200: {"model": list[models.Corpus]}, **documented()})
def corpora(caller: Reader, service: Served) -> Response:
    """The corpora that this server can run, each with its active run."""
    return JSONResponse(service.corpora())


@router.get("/pipeline/schedules", responses={200: {"model": models.Schedules}, **documented()})
def list_schedules(caller: Reader, service: Served) -> Response:
    """What the clock begins."""
    return JSONResponse({"schedules": [schedules.shown(each) for each in service.store.schedules()]})


@router.post("/pipeline/schedules", status_code=201, responses={201: {"model": models.Schedule}, **documented(409)})
def add_schedule(request: models.ScheduleRequest, caller: Starter, service: Served) -> Response:
    """Begin runs by the clock; what was missed is not made up for, and a corpus that is at work is left out."""
    return JSONResponse(schedules.shown(schedules.add(service, request, caller.name)), 201)


@router.delete("/pipeline/schedules/{schedule_id}", status_code=204, responses=documented(404))
def delete_schedule(
    schedule_id: Annotated[str, Path(pattern=models.RUN_ID)], caller: Starter, service: Served
) -> Response:
    """End a schedule; runs that it began go on."""
    if not service.store.delete_schedule(schedule_id):
        raise Problem(404, f"there is no schedule {schedule_id}: GET /pipeline/schedules lists all")
    return Response(status_code=204)


@router.get("/healthz", responses={200: {"model": models.Health}})
async def health() -> Response:
    """Whether the server answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", responses={200: {"model": models.Readiness}, **documented()})
def readiness(request: Request, service: Served) -> Response:
    """Whether runs can begin, and what is wrong where they cannot."""
    troubles = service.troubles()
    keeper = request.app.state.keeper
    if keeper and (not keeper.is_alive() or time.monotonic() - keeper.looked_at > KEEPER_SECONDS):
        troubles.append("nobody looks after the runs: start the server again")
    if troubles:
        raise Problem(503, "; ".join(troubles), problems=troubles)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=PlainTextResponse, responses=documented())
def prometheus(request: Request, caller: Reader, service: Served) -> Response:
    """Runs as Prometheus metrics."""
    collector: RunCollector = request.app.state.collector
    collector.runs = [folder for folder in service.folders() if (folder / "logs").is_dir()]
    registry = CollectorRegistry()
    registry.register(collector)
    counts = GaugeMetricFamily("speechmill_api_runs", "Runs that the API knows by state", labels=["state"])
    for state, count in service.store.counts().items():
        counts.add_metric([state], count)
    registry.register(_Given(counts))
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


class _Given:
    """A metric that is known already."""

    def __init__(self, family: GaugeMetricFamily):
        self.family = family

    def collect(self) -> list[GaugeMetricFamily]:
        return [self.family]
