"""Errors as RFC 9457 problem details: what is wrong, and what to do about it."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from speechmill.utils.text import plain

MEDIA_TYPE = "application/problem+json"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong, and what to do"},
        "instance": {"type": "string"},
        "active_run_id": {"type": ["string", "null"]},
        "problems": {"type": "array", "items": {"type": "string"}},
    },
    "examples": [
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "there is no run X: GET /pipeline/runs lists all",
        }
    ],
}


class Problem(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None, **extras: Any):
        super().__init__(detail)
        self.status, self.detail, self.headers, self.extras = status, detail, dict(headers or {}), extras

    def response(self, path: str) -> JSONResponse:
        body = {"type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status}
        body |= {"detail": _printable(self.detail), "instance": _printable(path[:300])}
        return JSONResponse(body | self.extras, self.status, self.headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the errors that a call may answer with, besides those of every call."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": SCHEMA}}}
        for status in sorted({400, 401, 403, 408, 413, 422, 429, 503, *statuses})
    }


def add_handlers(app: FastAPI) -> None:
    """Every error of the application as a problem."""

    @app.exception_handler(Problem)
    def known(request: Request, error: Problem) -> JSONResponse:
        return error.response(request.url.path)

    @app.exception_handler(HTTPException)
    def of_framework(request: Request, error: HTTPException) -> JSONResponse:
        detail = {
            404: "there is nothing at this address: see /openapi.json",
            405: "this address takes other methods: see the header Allow and /openapi.json",
        }.get(error.status_code, str(error.detail))
        return Problem(error.status_code, detail, error.headers).response(request.url.path)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors()[:20]]
        problems = [plain(problem) for problem in problems]
        detail = "the request is not valid: " + "; ".join(problems)
        return Problem(422, detail, problems=problems).response(request.url.path)

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> JSONResponse:
        number = secrets.token_hex(4)
        print(f"speechmill: error {number}, whose traceback follows", file=sys.stderr, flush=True)
        detail = f"the server failed in a way nobody foresaw; its output has the reason beside {number}"
        return Problem(500, detail).response(request.url.path)


def _printable(text: str) -> str:
    """Lines may break, and nothing else that cannot be seen remains; every character can be sent."""
    return "\n".join(plain(line, 2000) for line in text.encode("utf-8", "replace").decode().splitlines())
