"""The application: calls, errors, and the guard before them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import speechmill
from speechmill.api import routes_more, routes_runs
from speechmill.api.guard import Guard
from speechmill.api.keeper import Keeper
from speechmill.api.problems import Problem, add_handlers
from speechmill.api.service import Service
from speechmill.api.store import Busy, KeyReused
from speechmill.errors import ConfigError, SpeechmillError
from speechmill.monitor.prometheus import RunCollector

THREADS = 100  # blocking calls at the same time


def make_app(service: Service, keep: bool = True) -> FastAPI:
    """The API of a service; with `keep`, runs are started and looked after from here."""
    keeper = Keeper(service) if keep else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        if keeper:
            keeper.start()
        yield
        if keeper:
            keeper.stop()

    app = FastAPI(
        title="speechmill",
        version=speechmill.__version__,
        description=__doc__,
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service, app.state.keeper = service, keeper
    app.state.collector = RunCollector([], read=service.records.of_run)
    app.include_router(routes_runs.router)
    app.include_router(routes_more.router)
    add_handlers(app)

    @app.exception_handler(Busy)
    def busy(request: Request, error: Busy) -> JSONResponse:
        detail = f"{error}; GET /pipeline/status/ID shows a run, POST /pipeline/runs/ID/cancel ends it"
        return Problem(409, detail, active_run_id=error.active).response(request.url.path)

    @app.exception_handler(KeyReused)
    @app.exception_handler(ConfigError)
    def refused(request: Request, error: SpeechmillError) -> JSONResponse:
        return Problem(422, str(error)).response(request.url.path)

    @app.exception_handler(SpeechmillError)
    @app.exception_handler(OSError)
    @app.exception_handler(sqlite3.Error)
    def unable(request: Request, error: Exception) -> JSONResponse:
        return Problem(503, f"{error}; mend it and try again").response(request.url.path)

    settings = service.settings
    app.add_middleware(
        Guard,
        tokens=service.tokens,
        audit=service.audit,
        body_bytes=settings.body_bytes,
        requests_per_second=settings.requests_per_second,
        changes_per_minute=settings.changes_per_minute,
        failures_per_minute=settings.failures_per_minute,
    )
    return app
