"""What the environment server takes from a client: how long a request may be and take, and which form it must have.

Flows in: connections and requests; flows out: bodies as pydantic models, FastAPI's words on what does not fit, or an
end of the connection. aiohttp alone waits for ever.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import weakref
from typing import Any

from aiohttp import web
from pydantic import ValidationError

MAX_BODY = 2**20
REQUEST_SECONDS = 30.0  # that a client may take over a request
KEEP_SECONDS = 120.0  # that a connection may idle between two
_SERVED = weakref.WeakSet[asyncio.BaseTransport]()  # connections that a request came over


def note(request: web.Request) -> None:
    """Keeps in mind that a whole request (its head, at least) came over its connection."""
    if request.transport is not None:
        _SERVED.add(request.transport)


async def body_of(request: web.Request) -> bytes:
    """The whole body.

    Raises:
        web.HTTPRequestTimeout: If it does not come in time.
        web.HTTPRequestEntityTooLarge: If it is too long.
    """
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None


async def close_idle_connections(runner: web.AppRunner) -> None:
    """Closes connections on which no request came in time, for as long as it is let run."""
    assert runner.server is not None
    before: set[asyncio.Transport] = set()
    while True:
        await asyncio.sleep(REQUEST_SECONDS)
        lines = {c.transport for c in runner.server.connections if c.transport is not None}
        silent = {line for line in lines if line not in _SERVED}
        for line in silent & before:
            line.abort()
        before = silent


class Malformed(Exception):
    """FastAPI's list of what is wrong with a request."""

    def __init__(self, *details: dict[str, Any]) -> None:
        super().__init__(details)
        self.details = list(details)


async def read_form(request: web.Request, form: type[Any]) -> Any:
    """The request's JSON body as `form`.

    Raises:
        Malformed: If there is none, it is no JSON, or it does not fit.
    """
    raw = await body_of(request)
    try:
        value = json.loads(raw) if raw else None
    except json.JSONDecodeError as error:
        detail = {"type": "json_invalid", "loc": ["body", error.pos], "msg": "JSON decode error", "input": {}}
        raise Malformed(detail | {"ctx": {"error": error.msg}}) from None
    except (ValueError, RecursionError):
        raise Malformed({"type": "json_invalid", "loc": ["body"], "msg": "JSON decode error", "input": {}}) from None
    if value is None:
        raise Malformed({"type": "missing", "loc": ["body"], "msg": "Field required", "input": None})
    return checked(form, value, "body")


def checked(form: type[Any], value: Any, where: str) -> Any:
    """A decoded value as `form`.

    Args:
        form: A pydantic model.
        value: What came.
        where: In which part of the request, for the details.

    Raises:
        Malformed: If it does not fit.
    """
    try:
        return form.model_validate(value, from_attributes=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise Malformed(*({**d, "loc": [where, *d["loc"]]} for d in details)) from None


@web.middleware
async def plain_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """Errors outside the endpoints in FastAPI's form."""
    note(request)
    try:
        return await handler(request)
    except web.HTTPException as error:
        return web.json_response({"detail": error.reason}, status=error.status)


def guard(token: str | None) -> Any:
    """Lets through what carries the token, if there is one; `GET /` is open to all."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode(errors="replace")
        if token is not None and request.path != "/" and not hmac.compare_digest(given, expected):
            return web.json_response({"detail": "Not authenticated"}, status=401)
        return await handler(request)

    return guard
