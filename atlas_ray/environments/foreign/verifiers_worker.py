"""Plays a verifiers environment for another process: runs in the Python that has verifiers, and imports nothing else
of this package.

Flows in, as lines of JSON: `open` (an episode of a task), `reply` (text, and the calls in it), `close`; flows out:
`turn` (the messages since the last reply, and the tools' schemas) and `end` (the reward or an error, and what the last
calls gave). The library runs the episode and scores it; its model is this process, which holds each request until the
other one replies.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import types
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import verifiers.v1 as vf
from aiohttp import ClientSession, ClientTimeout, web
from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.configs.client import resolve_api_key
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp

_HARNESS = "atlas_ray_harness"  # a module of this name is made below
_FOREVER = ClientTimeout(total=None)


class BridgeHarness(vf.Harness[vf.HarnessConfig]):
    """A chat loop in this process: a model call, the calls of tools in its answer, and again until there are none."""

    APPENDS_SYSTEM_PROMPT = SUPPORTS_MCP = SUPPORTS_RESUME = True
    EXECUTES_CODE = NEEDS_CONTAINER = False
    results: ClassVar[dict[str, list[dict[str, Any]]]] = {}  # of the last answer's calls, by trace

    async def launch(  # type: ignore[override]
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        """Plays until the model calls no tool."""
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or []]
        servers = {"mcpServers": {name: {"url": url} for name, url in mcp_urls.items()}}
        async with (
            ClientSession(timeout=_FOREVER, headers={"Authorization": f"Bearer {secret}"}) as http,
            AsyncExitStack() as held,
        ):
            tools, places, connected = await connect_mcp(servers, held)
            asked = {"model": ctx.model} | ({"tools": tools} if tools else {})
            while trace.stop_condition is None:
                async with http.post(f"{endpoint}/chat/completions", json=asked | {"messages": messages}) as answer:
                    if answer.status != 200:
                        return vf.ProgramResult(exit_code=1, stdout="", stderr=(await answer.text())[-2000:])
                    message = (await answer.json())["choices"][0]["message"]
                messages.append({k: v for k, v in message.items() if v})
                results = self.results[trace.id] = []
                for call in message.get("tool_calls") or ():
                    name, given = call["function"]["name"], _arguments(call["function"]["arguments"])
                    if name not in places:
                        told: Any = f"error: unknown tool {name!r}"
                    elif given is None:
                        told = "error: tool arguments must be a JSON object"
                    else:
                        told = await call_mcp(connected, places, name, given)
                    results.append({"role": "tool", "tool_call_id": call["id"], "content": told})
                if not results:
                    break
                messages += results
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


def _arguments(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Bridge:
    """The environment, its episodes under way, and the model that they ask."""

    def __init__(self, env: vf.Env[Any], out: Any) -> None:
        self._env, self._out = env, out
        self._tasks = iter(env.taskset)
        self._known: list[vf.Task[Any, Any, Any]] = []
        self._episodes: dict[int, asyncio.Task[None]] = {}
        self._by_trace: dict[str, int] = {}
        self._asking: dict[int, str] = {}  # the trace that an episode's last request is of
        self._replies: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._context: vf.ModelContext | None = None

    async def run(self) -> None:
        """Works until the other process closes the line."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = vf.EvalClientConfig(base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", api_key_var="NOT_NEEDED")
        self._context = vf.ModelContext(model="policy", client=client)
        lines = asyncio.StreamReader(limit=2**26)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        async with self._env.serving():
            self._tell({"event": "ready"})
            while line := await lines.readline():
                self._take(json.loads(line))
            for episode in self._episodes.values():
                episode.cancel()
            await asyncio.gather(*self._episodes.values(), return_exceptions=True)
        await runner.cleanup()

    def _take(self, told: Mapping[str, Any]) -> None:
        number = told["id"]
        if told["do"] == "open":
            self._episodes[number] = asyncio.create_task(self._play(number, told["task"]))
        elif told["do"] == "reply" and number in self._replies:
            self._replies.pop(number).set_result(told)
        elif told["do"] == "close" and number in self._episodes:
            self._episodes[number].cancel()

    async def _play(self, number: int, index: int) -> None:
        error, reward, traces, new = "", 0.0, list[vf.Trace](), list[dict[str, Any]]()

        def minted(trace: vf.Trace) -> None:
            traces.append(trace)
            self._by_trace[trace.id] = number

        try:
            assert self._context is not None
            episode = await self._env.run_episode(self._task(index), self._context, on_trace=minted)
            failed = [*episode.errors, *(trace.last_error for trace in episode.traces if trace.last_error)]
            error = f"{failed[0].type}: {failed[0].message}" if failed else ""
            reward = sum(trace.reward for trace in episode.traces) / max(1, len(episode.traces))
        except Exception as failure:  # noqa: BLE001 (whatever the environment raises)
            error = f"{type(failure).__name__}: {failure}"
        finally:
            self._episodes.pop(number, None)
            self._replies.pop(number, None)
            asking = self._asking.pop(number, None)
            for trace in traces:
                self._by_trace.pop(trace.id, None)
                results = BridgeHarness.results.pop(trace.id, [])
                new = results if trace.id == asking else new
        self._tell({"event": "end", "id": number, "reward": reward, "new": new, "error": error[-2000:]})

    def _task(self, index: int) -> vf.Task[Any, Any, Any]:
        self._known += itertools.islice(self._tasks, max(0, index + 1 - len(self._known)))
        if index >= len(self._known):
            raise ValueError(f"it has {len(self._known)} tasks, and number {index} was asked for")
        return self._known[index]

    async def _answer(self, request: web.Request) -> web.Response:
        """The model: tells what it is asked, and answers with the reply that comes."""
        trace = request.headers.get("X-Session-ID", "")
        number = self._by_trace.get(trace)
        if number is None:
            return web.json_response({"error": {"message": "the episode is closed"}}, status=400)
        self._asking[number] = trace
        body = await request.json()
        told = body["messages"]
        replied = [place for place, message in enumerate(told) if message["role"] == "assistant"]
        new = told[replied[-1] + 1 :] if replied and replied[-1] + 1 < len(told) else told
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        self._tell({"event": "turn", "id": number, "messages": told, "new": new, "tools": body.get("tools") or []})
        given = await reply
        calls = [
            {"id": call.pop("id") or f"call_{uuid.uuid4().hex[:12]}", "type": "function", "function": call}
            for call in given["calls"]
        ]
        message = {"role": "assistant", "content": given["text"]} | ({"tool_calls": calls} if calls else {})
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        return web.json_response(
            {"id": uuid.uuid4().hex, "object": "chat.completion", "created": 0, "model": "policy"}
            | {"choices": [choice], "usage": usage}
        )

    def _tell(self, event: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()


def load(environment: str, settings: Mapping[str, Any]) -> vf.Env[Any]:
    """The environment of this id; all its agents play here, by the one chat loop."""
    from verifiers.v1.utils.loaders import resolve_env_config

    config = resolve_env_config({"taskset": {"id": environment, **settings}})
    agent = {"harness": {"id": _HARNESS}, "runtime": {"type": "subprocess"}}
    raw = {"taskset": config.taskset.model_dump()} | dict.fromkeys(agent_config_fields(config), agent)
    return vf.load_environment(type(config).model_validate(raw))


def describe(env: vf.Env[Any]) -> dict[str, Any]:
    """What is to be known before any episode: the tasks, and what the environment needs."""
    judges = [
        f"{judge.model} at {judge.base_url}, whose key is in {judge.api_key_var}"
        for judge in env.taskset.config.task.judges
        if resolve_api_key(judge) == "EMPTY"
    ]
    taskset, kind = env.taskset, type(env.taskset).task_type()
    tasks = sum(1 for _ in taskset) if taskset.bounded else None
    tools = bool(taskset.toolsets(taskset.config) or kind.toolsets(taskset.config.task))
    return {"tasks": tasks, "judges": judges, "container": kind.NEEDS_CONTAINER, "tools": tools}


def main() -> None:
    """`describe` or `play`, an environment's id, and its settings as JSON."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no message
    sys.path.append(os.getcwd())
    made = types.ModuleType(_HARNESS)
    made.__dict__.update(BridgeHarness=BridgeHarness, __all__=["BridgeHarness"])
    sys.modules[_HARNESS] = made
    what, environment, settings = sys.argv[1:]
    env = load(environment, json.loads(settings))
    if what == "describe":
        out.write(json.dumps(describe(env)))
        out.flush()
    else:
        asyncio.run(Bridge(env, out).run())


if __name__ == "__main__":
    main()
