"""A policy behind an endpoint, with its key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from atlas_ray.config import EndpointConfig
from atlas_ray.models.endpoint import EndpointPolicy, EndpointSpec

KEY = "sk-secret-of-this-test"


@asynccontextmanager
async def policy(answer: Callable[[dict[str, Any]], web.Response], retries: int = 0) -> AsyncIterator[EndpointPolicy]:
    async def handle(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        body = await request.json()
        return completion("OK") if body["max_tokens"] == 1 else answer(body)  # the one token that is asked for first

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    config = EndpointConfig(
        base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", api_key_env="ATLAS_TEST_KEY", max_retries=retries
    )
    built = await EndpointSpec("closed", "some-model", config).build()
    try:
        yield built
    finally:
        await built.close()
        await runner.cleanup()


def completion(text: str, finish: str = "stop") -> web.Response:
    return web.json_response(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
            "usage": {
                "prompt_tokens": 11,
                "completion_tokens": 3,
                "total_tokens": 14,
                "prompt_tokens_details": {"cached_tokens": 8},
            },
        }
    )
