"""What the calls share: who may make them, the run that they name, and cursors."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request, Security
from fastapi.security import HTTPBearer

from speechmill.api.auth import Caller
from speechmill.api.models import RUN_ID
from speechmill.api.problems import Problem
from speechmill.api.service import Service
from speechmill.api.store import Run

BEARER = HTTPBearer(auto_error=False, description="speechmill serve --new-token NAME makes one")
CURSOR_LETTERS = 300


async def service_of(request: Request) -> Service:  # neither waits: a thread for each would take longer
    found: Service = request.app.state.service
    return found


def may(scope: str) -> Callable[..., Awaitable[Caller]]:
    """The caller, whose token has the scope."""

    async def check(request: Request, _: Annotated[Any, Security(BEARER)]) -> Caller:
        caller: Caller = request.state.caller
        if scope not in caller.scopes:
            raise Problem(
                403, f"this token may not {scope}: ask whoever runs the server for one with the scope {scope}"
            )
        return caller

    return check


def run_of(
    service: Annotated[Service, Depends(service_of)],
    run_id: Annotated[str, Path(pattern=RUN_ID, examples=["20260301120000-1a2b3c4d"])],
) -> Run:
    """The run that an address names."""
    run = service.store.get(run_id)
    if run is None:
        raise Problem(404, f"there is no run {run_id}: GET /pipeline/runs lists all")
    return run


Served = Annotated[Service, Depends(service_of)]
Reader = Annotated[Caller, Depends(may("read"))]
Starter = Annotated[Caller, Depends(may("trigger"))]
Named = Annotated[Run, Depends(run_of)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Cursor = Annotated[str | None, Query(max_length=CURSOR_LETTERS, description="next_cursor of the page before")]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,200}$",
        description="the same key begins one run only, however often it is sent",
    ),
]


def page_of_runs(
    service: Service, limit: int, cursor: str | None, state: str | None = None, dataset: str | None = None
) -> tuple[list[Run], str | None]:
    """Runs, the newest first, and the cursor of the next page.

    Raises:
        Problem: the cursor is none of ours.
    """
    before = read_cursor(cursor, 2)
    found = service.store.runs(state, dataset, limit + 1, (before[0], before[1]) if before else None)
    more = make_cursor(found[limit - 1].created, found[limit - 1].id) if len(found) > limit else None
    return found[:limit], more


def page_of_tasks(
    tasks: Sequence[Mapping[str, Any]],
    limit: int,
    cursor: str | None,
    is_wanted: Callable[[Mapping[str, Any]], bool] = lambda task: True,
) -> tuple[list[Mapping[str, Any]], str | None]:
    """Of the tasks of a run those that are wanted, and the cursor of the next page.

    Raises:
        Problem: the cursor is none of this run.
    """
    if after := read_cursor(cursor, 3):
        names = [_parts(task) for task in tasks]
        if after not in names:
            raise Problem(422, "cursor names a task that this run does not have: begin with the first page")
        tasks = tasks[names.index(after) + 1 :]
    wanted = [task for task in tasks if is_wanted(task)]
    return wanted[:limit], make_cursor(*_parts(wanted[limit - 1])) if len(wanted) > limit else None


def _parts(task: Mapping[str, Any]) -> tuple[str, ...]:
    return task["task"], task["batch"] or "", task["file"] or ""


def make_cursor(*parts: str) -> str:
    return base64.urlsafe_b64encode("\n".join(parts).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, count: int) -> tuple[str, ...] | None:
    """The parts of a cursor.

    Raises:
        Problem: it is none of ours.
    """
    if cursor is None:
        return None
    try:
        parts = tuple(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode().split("\n"))
    except (binascii.Error, ValueError):
        parts = ()
    if len(parts) != count:
        raise Problem(422, "cursor is no next_cursor of an earlier answer: leave it out to begin with the first page")
    return parts
