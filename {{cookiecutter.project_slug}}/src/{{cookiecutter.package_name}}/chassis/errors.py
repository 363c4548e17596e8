"""The exceptions of the chassis, each with the data that a caller needs, and the one form of an error over HTTP."""

import json
from collections.abc import Mapping
from http.client import responses
from typing import Any, NamedTuple

from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .logs import REQUEST


class ChassisError(Exception):
    """The base of all exceptions that the chassis raises on purpose."""


class Problem(NamedTuple):
    """Something that must be put right, with the name of the variable or of the secret file that it is about."""

    setting: str
    problem: str

    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"


class ConfigurationError(ChassisError):
    """The configuration can't be used; *problems* holds every reason, *warnings* what may have led to them."""

    def __init__(self, problems: list[Problem], warnings: list[Problem] | None = None) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems, self.warnings = problems, warnings or []


class SecretNotSetError(ChassisError, LookupError):
    """An optional secret was asked for, and its file is not there."""


def problem(
    status: int, detail: str | None = None, headers: Mapping[str, str] | None = None, **more: object
) -> Response:
    """Return the response for an error, as RFC 9457 (problem+json) has it."""
    about = {"status": status, "title": responses.get(status), "detail": detail, **more}
    members = {name: value for name, value in about.items() if value is not None}
    body = json.dumps(members, separators=(",", ":"), default=str)  # A detail may hold a date.
    return Response(body, status, headers, "application/problem+json")


class _Integer(IntegerConvertor):
    """Whole numbers in a path, as many digits as Python converts: with one more, Starlette's own is a ValueError."""

    regex = "[0-9]{1,4300}"


register_url_convertor("int", _Integer())


def use_problems(app: Any) -> None:
    """Let *app*, of Starlette or FastAPI, answer errors as problem+json where the service has no handler of its own."""
    for route in getattr(app, "routes", None) or ():
        # What is mounted may be an application with handlers of its own.
        use_problems(getattr(route, "app", None))
    handlers: dict[Any, Any] | None = getattr(app, "exception_handlers", None)
    if handlers is None:
        return
    handlers.setdefault(Exception, _unhandled)
    handlers.setdefault(HTTPException, _http)
    handlers.setdefault(ClientDisconnect, _left)
    for error, handler in handlers.items():
        if getattr(handler, "__module__", "").startswith("fastapi."):
            # FastAPI's defaults; the one for invalid requests repeats the input, which JSON may not be able to hold.
            handlers[error] = {"RequestValidationError": _invalid, "HTTPException": _http}.get(error.__name__, handler)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code in {204, 304}:
        return Response(status_code=error.status_code, headers=error.headers)
    if isinstance(error.detail, str):
        # Without a text of its own, the detail is the title once more.
        detail = error.detail if error.detail != responses.get(error.status_code) else None
        return problem(error.status_code, detail, error.headers)
    return problem(error.status_code, headers=error.headers, errors=error.detail)


async def _invalid(request: Request, error: Any) -> Response:
    errors = [{"loc": [*map(str, each["loc"])], "msg": each["msg"], "type": each["type"]} for each in error.errors()]
    return problem(422, "The request is not what this route takes.", errors=errors)


async def _left(request: Request, error: Exception) -> Response:
    """Answer nobody; the line of the request says 499, as nginx does for a client that did not wait."""
    return Response(status_code=499)


async def _unhandled(request: Request, error: Exception) -> Response:
    return problem(500, request_id=REQUEST.get({}).get("request_id"))
