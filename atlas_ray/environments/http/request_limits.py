"""What the environment server grants a client: so much of a body, and so long for a request.

Flows in: connections and requests; flows out: whole bodies, or an end of the connection. aiohttp alone waits for ever.
"""

from __future__ import annotations

import asyncio
import weakref

from aiohttp import web

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
