"""A loopback OpenAI-compatible server that takes its time and fails on demand; also what the fault tests ask.

`python -m bench.endpoint --seconds 1 --refused 0.2 ...` prints its port and serves until it is ended. Each request must
hold the words "task <number>", by which replies are counted: GET /answered gives replies by number.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

from aiohttp import web

REPLY = (
    "1. The high-level plan is: [walk, then win]\n2. The critical steps are: conversation[2]\n"
    "3. Reason: [Step 2 (Critical Action): it wins.]"
)
_TASK = re.compile(r"\btask (\d+)\b")


class _Server:
    def __init__(self, given: argparse.Namespace) -> None:
        self._given, self._draws = given, random.Random(given.seed)
        self._answered: Counter[str] = Counter()
        self._active = self._most = 0
        self._first: float | None = None

    async def complete(self, request: web.Request) -> web.Response:
        asked = await request.text()
        self._first = self._first or time.time()
        self._active += 1
        self._most = max(self._most, self._active)
        try:
            return await self._answer(asked)
        finally:
            self._active -= 1

    async def _answer(self, asked: str) -> web.Response:
        given, draw = self._given, self._draws.random()
        for share, answer in ((given.refused, self._refuse), (given.broken, self._break), (given.hanging, self._hang)):
            if draw < share:
                return await answer()
            draw -= share
        await asyncio.sleep(given.seconds)
        found = _TASK.search(asked)
        self._answered[found[1] if found else "?"] += 1
        content = "I am a teapot." if draw < given.garbage else REPLY
        if draw < given.garbage / 2:
            return web.Response(text="<html>no JSON</html>")
        return web.json_response(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 60, "total_tokens": 1060},
            }
        )

    async def answered(self, _: web.Request) -> web.Response:
        return web.json_response(self._answered)

    async def most(self, _: web.Request) -> web.Response:
        return web.json_response(self._most)

    async def first(self, _: web.Request) -> web.Response:
        first, self._first = self._first, None
        return web.json_response(first)

    async def _refuse(self) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": str(self._given.retry_after)})

    async def _break(self) -> web.Response:
        return web.Response(status=500)

    async def _hang(self) -> web.Response:
        await asyncio.sleep(3600)
        return web.Response(status=504)


async def _serve(given: argparse.Namespace) -> None:
    server, app = _Server(given), web.Application(client_max_size=2**24)
    app.router.add_post("/v1/chat/completions", server.complete)
    app.router.add_get("/answered", server.answered)
    app.router.add_get("/most", server.most)
    app.router.add_get("/first", server.first)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


class Endpoint:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        self.base_url = self._root + "/v1"

    def answered(self) -> dict[str, int]:
        """Replies given, by task number."""
        with urlopen(f"{self._root}/answered") as reply:
            return json.load(reply)

    def first_request(self) -> float:
        """When the first request came since this was last asked, in Unix seconds."""
        with urlopen(f"{self._root}/first") as reply:
            return float(json.load(reply))

    def most_at_once(self) -> int:
        """Requests that were under way together, at most."""
        with urlopen(f"{self._root}/most") as reply:
            return int(json.load(reply))


@contextmanager
def endpoint(**given: float) -> Iterator[Endpoint]:
    """A server in a process of its own, ended at the end; keys are the options of this module."""
    options = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    server = subprocess.Popen([sys.executable, "-m", "bench.endpoint", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield Endpoint(int(server.stdout.readline()))
    finally:
        server.kill()
        server.wait()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a reply takes")
    parser.add_argument("--refused", type=float, default=0.0, help="share of 429")
    parser.add_argument("--retry-after", type=float, default=1.0, help="seconds that a 429 asks to wait")
    parser.add_argument("--broken", type=float, default=0.0, help="share of 500")
    parser.add_argument("--garbage", type=float, default=0.0, help="share of replies without sense or form")
    parser.add_argument("--hanging", type=float, default=0.0, help="share that never comes")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    _main()
