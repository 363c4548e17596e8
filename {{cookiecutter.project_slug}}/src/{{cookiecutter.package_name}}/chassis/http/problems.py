"""The frameworks' own errors in the form of all others: problem+json (RFC 9457), by their exception handlers."""

from http import HTTPStatus
from typing import Any

from starlette.convertors import IntegerConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..errors import PROBLEM_JSON, problem
from ..logs import REQUEST


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


def _respond(status: int, detail: str | None = None, headers: Any = None, **more: Any) -> Response:
    return Response(problem(status, detail, **more), status, headers, PROBLEM_JSON)


async def _http(request: Request, error: HTTPException) -> Response:
    if error.status_code in {204, 304}:
        return Response(status_code=error.status_code, headers=error.headers)
    if isinstance(error.detail, str):
        # Without a text of its own, the detail is the title once more.
        detail = error.detail if error.detail != HTTPStatus(error.status_code).phrase else None
        return _respond(error.status_code, detail, error.headers)
    return _respond(error.status_code, headers=error.headers, errors=error.detail)


async def _invalid(request: Request, error: Any) -> Response:
    errors = [{"loc": [*map(str, each["loc"])], "msg": each["msg"], "type": each["type"]} for each in error.errors()]
    return _respond(422, "The request is not what this route takes.", errors=errors)


async def _left(request: Request, error: Exception) -> Response:
    """Answer nobody; the line of the request says 499, as nginx does for a client that did not wait."""
    return Response(status_code=499)


async def _unhandled(request: Request, error: Exception) -> Response:
    return _respond(500, request_id=REQUEST.get({}).get("request_id"))
