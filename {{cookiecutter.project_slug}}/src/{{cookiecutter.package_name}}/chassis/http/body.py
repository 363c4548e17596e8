"""The body of a request: within its limits, and JSON that can be answered with."""

import asyncio
import codecs
import contextlib
import json
import re
import time
from collections.abc import Callable

import attrs
import msgspec
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.types import Message, Receive, Scope

from ..service import Limits

# A longer body of JSON is not checked: it may be meant to be read in parts, and that must take no memory.
CHECKED_BYTES = 1024 * 1024
JSON = re.compile(rb"\s*application/([^;]*[+])?json\s*(;|$)", re.IGNORECASE)


def _is_json(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return JSON.match(headers.get(b"content-type", b"")) is not None and b"content-encoding" not in headers


def _is_odd(body: bytes) -> bool:
    """Return whether *body* is JSON to Python alone, which reads NaN, lone surrogates and UTF-16, and more."""
    try:
        msgspec.json.decode(body.removeprefix(codecs.BOM_UTF8))
    except Exception:
        with contextlib.suppress(Exception):
            json.loads(body)
            return True
    return False


@attrs.define(eq=False)
class RequestBody:
    """Receives a body of *announced* bytes (0: unknown), at most *limit* or what its route has as ``max_body_size``."""

    _receive: Receive
    _scope: Scope
    _announced: int
    _limit: int
    _limits: Limits
    _count_refusal: Callable[[str], None]
    is_refused: bool = False
    _bytes: int = 0
    _waited_s: float = 0.0
    _more: bool = True
    # What has come of JSON, which is checked at its end.
    _json: bytearray | None = None

    def __attrs_post_init__(self) -> None:
        self._json = bytearray() if _is_json(self._scope) else None

    async def receive(self) -> Message:
        """Return the next part.

        Raises:
            HTTPException: 413 if the body is too large, 408 if it is too slow, 422 if it is JSON with what JSON lacks.
        """
        if not self._more:
            return await self._receive()
        limit = self._scope.get(MAX_BODY_SIZE_SCOPE_KEY, self._limit)
        if self._announced <= limit:
            began, earned_s = time.perf_counter(), self._bytes / self._limits.body_bytes_per_s
            try:
                async with asyncio.timeout(self._limits.body_timeout_s + earned_s - self._waited_s):
                    message = await self._next()
            except TimeoutError:
                self._more = False
                raise self._refusal(408, "The body of the request did not come in time.") from None
            self._waited_s += time.perf_counter() - began
            if self._bytes <= limit:
                self._check_json(message.get("body", b""))
                return message
        raise self._refusal(413, f"A request body may have {limit} bytes at most.")

    def _check_json(self, part: bytes) -> None:
        if self._json is None:
            return
        self._json += part
        if len(self._json) > CHECKED_BYTES:
            self._json = None
        elif not self._more and _is_odd(bytes(self._json)):
            raise HTTPException(422, "JSON has no NaN, no Infinity, no number out of range, and no text but UTF-8.")

    async def _next(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        return message

    def _refusal(self, status: int, detail: str) -> HTTPException:
        if not self.is_refused:
            self.is_refused = True
            self._count_refusal("slow" if status == 408 else "body")
        # The rest of the body is still on its way, so the connection can't be used again.
        return HTTPException(status, detail, headers={"Connection": "close"})

    async def drop(self) -> None:
        """Read and drop what is left, for as long as a client may take to see that its body was refused."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.linger_s):
                while self._more and self._bytes < self._limits.linger_bytes:
                    await self._next()
