"""Environments of verifiers (0.4 and later): `environments.register.NAME=verifiers:[PYTHON:]ID[?KEY=VALUE&...]`.

The library's own dependencies shut out this package's, so it lives in a Python of its own and plays there, in a process
that ends with this one (`verifiers_worker.py`). The taskset gives the tasks, by number, and the reward, at the end. Its
tools are called by native calls, or in text, `Action: NAME with Action Input: {...}`.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

from atlas_ray.environments.foreign.tool_text import read_call, tool_instruction
from atlas_ray.environments.protocol import EnvironmentSpec, Opening, StepResult
from atlas_ray.environments.tool_session import NOT_CALLED
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.text import printable
from atlas_ray.types import Message, Task, ToolCall

N_TEST, N_TRAIN = 200, 10_000  # of a taskset without end; of others the first half, up to as many, are test tasks
_ROUNDS = 30
_DESCRIBE_SECONDS = 300.0
_WORKER = Path(__file__).with_name("verifiers_worker.py")
_OVER, _NOTHING = "The episode is over.", "Go on."


@dataclass(frozen=True)
class Place:
    """An environment of an installed package.

    Attributes:
        id: The taskset's.
        settings: The taskset's own, as text.
        python: The Python that has it installed.
    """

    id: str
    settings: tuple[tuple[str, str], ...] = ()
    python: str = sys.executable

    @classmethod
    def of(cls, text: str) -> Place:
        """What `[PYTHON:]ID[?KEY=VALUE&...]` names."""
        where, _, settings = text.partition("?")
        python, _, name = where.rpartition(":")
        return cls(name, tuple(parse_qsl(settings)), python or sys.executable)

    def command(self, what: str) -> list[str]:
        """The command line of its worker."""
        # -P: this folder's modules are called as the libraries are
        settings = {key: _setting(text) for key, text in self.settings}
        return [self.python, "-P", str(_WORKER), what, self.id, json.dumps(settings)]


def _setting(text: str) -> Any:
    """A list or an object, which are given as JSON; text else, of which the library makes numbers."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def environment(name: str, place: str) -> EnvironmentSpec:
    """The environment of a taskset.

    Args:
        name: What it is to be called.
        place: `[PYTHON:]ID[?KEY=VALUE&...]`.

    Raises:
        UserError: If it cannot be loaded, a judge of its rubric has no key, or it runs in containers alone.
    """
    at = Place.of(place)
    told = _described(at)
    if told["judges"]:
        raise UserError(
            f"the rubric of {at.id} asks a judge: {'; '.join(told['judges'])}, which is not set",
            "set that variable on every machine that plays, to any value for a server of your own",
        )
    if told["container"]:
        raise UserError(f"tasks of {at.id} run in containers", "register an environment that plays in a process")
    tasks = told["tasks"]
    n_test = N_TEST if tasks is None else min(N_TEST, (tasks + 1) // 2)
    return EnvironmentSpec(
        *(name, "out", _ROUNDS, "reward", "whole"),
        session=lambda spec: VerifiersSession(spec, at),
        tells_tools=told["tools"],
        n_train=N_TRAIN if tasks is None else tasks - n_test,
        n_test=n_test,
    )


@functools.cache
def _described(at: Place) -> dict[str, Any]:
    """What the worker tells of an environment.

    Raises:
        UserError: If it cannot.
    """
    try:
        told = subprocess.run(at.command("describe"), capture_output=True, timeout=_DESCRIBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"verifiers' {at.id} does not load: {error}", _REMEDY) from None
    if told.returncode:
        raise UserError(f"verifiers' {at.id} does not load: {_end_of(told.stderr)}", _REMEDY)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


_REMEDY = (
    "install verifiers (0.4 or later) and the environment's package in a Python of their own, and name it: "
    "verifiers:/path/to/python:ID"
)


def _end_of(log: bytes) -> str:
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    return printable(" | ".join(lines[-2:])[-500:]) or "it said nothing"


class VerifiersSession:
    """One episode at a time, played by the worker.

    Attributes:
        tools: Schemas of the episode's tools, in OpenAI's form.
    """

    def __init__(self, spec: EnvironmentSpec, at: Place) -> None:
        self.spec, self._at = spec, at
        self.tools: Sequence[Mapping[str, Any]] = ()
        self._episode: _Episode | None = None
        self._end: StepResult | None = None

    async def reset(self, task: Task) -> Opening:
        """Starts the task.

        Raises:
            EnvironmentFailure: If there is no such task, or the environment fails.
        """
        system, asked = await self._begin(task)
        about = system or f"You act in the environment {self.spec.name}."
        return Opening(tool_instruction(about, self.tools) if self.tools else about, asked)

    async def reset_for_calls(self, task: Task) -> Opening:
        """Starts the task as the library's own chat loop does: its system turn, if any, and its tools.

        Raises:
            EnvironmentFailure: If there is no such task, or the environment fails.
        """
        system, asked = await self._begin(task)
        return Opening(system, asked, "", json.dumps(self.tools))

    async def step(self, reply: str) -> StepResult:
        """Gives the environment a reply, or the call of a tool that it names.

        Raises:
            EnvironmentFailure: If the environment fails.
        """
        if self._end is not None:
            return self._end
        call = read_call(reply) if self.tools else None
        new = await self._reply(reply, [] if call is None else [ToolCall(call[0], json.dumps(call[1]))])
        return self._end or StepResult(_told(new) or _NOTHING, 0.0, False)

    async def call(self, reply: Message) -> StepResult:
        """Gives the environment a reply with its calls; one that calls nothing is an answer too.

        Raises:
            EnvironmentFailure: If the environment fails.
        """
        new = await self._reply(reply.content, reply.calls)
        results = [_text(message) for message in new if message["role"] == "tool"]
        results += [NOT_CALLED] * (len(reply.calls) - len(results))
        turns = [Message("tool", told, call_id=c.id) for c, told in zip(reply.calls, results, strict=False)]
        if self._end is not None:
            return replace(self._end, turns=tuple(turns))
        beside = [message for message in new if message["role"] != "tool"]
        if beside or not turns:
            turns.append(Message("user", _told(beside) or _NOTHING))
        return StepResult("", 0.0, False, turns=tuple(turns))

    async def close(self) -> None:
        """Gives the episode up, if it goes on."""
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.close()

    async def _begin(self, task: Task) -> tuple[str, str]:
        """Starts the task: its system turn, and what is asked in it."""
        await self.close()
        self._end = None
        self._episode = _worker(self._at).open(self.spec.number(task))
        told = await self._next()
        if told["event"] == "end":
            raise EnvironmentFailure(f"{self.spec.name} ended before it began: {told['error'] or 'it asked nothing'}")
        self.tools = told["tools"]
        system = [_text(m) for m in told["messages"] if m["role"] == "system"]
        asked = [m for m in told["messages"] if m["role"] != "system"]
        return "\n\n".join(system), _told(asked) or "Begin."

    async def _reply(self, text: str, calls: Sequence[ToolCall]) -> Sequence[Mapping[str, Any]]:
        """The messages that come after a reply; where the episode has ended, what its calls gave."""
        assert self._episode is not None
        self._episode.reply(text, [asdict(call) for call in calls])
        told = await self._next()
        if told["event"] == "turn":
            self.tools = told["tools"]
        else:
            self._end = StepResult(_OVER, float(told["reward"]), True)
        new: Sequence[Mapping[str, Any]] = told["new"]
        return new

    async def _next(self) -> Mapping[str, Any]:
        """What the worker tells next.

        Raises:
            EnvironmentFailure: If that is an error.
        """
        assert self._episode is not None
        told = await self._episode.told.get()
        if told["event"] == "end":
            self._episode = None
            if told["error"]:
                raise EnvironmentFailure(f"{self.spec.name} failed: {told['error']:.500}")
        return told


def _told(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as one text; with their roles where others than the user speak among several."""
    named = len(messages) > 1 and any(m["role"] == "assistant" for m in messages)
    texts = [f"{m['role']}: {_text(m)}" if named else _text(m) for m in messages]
    return "\n\n".join(filter(None, texts))


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if part.get("type") == "text" else f"[{part.get('type')}]" for part in content)


class _Episode:
    """One episode in the worker, as this event loop sees it."""

    def __init__(self, worker: _Worker, number: int) -> None:
        self._worker, self._number, self._loop = worker, number, asyncio.get_running_loop()
        self.told: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()

    def reply(self, text: str, calls: Sequence[Mapping[str, Any]]) -> None:
        self._worker.say({"do": "reply", "id": self._number, "text": text, "calls": calls})

    def close(self) -> None:
        self._worker.forget(self._number)

    def take(self, event: Mapping[str, Any]) -> None:
        """From the worker's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.told.put_nowait, event)


class _Worker:
    """The process that plays an environment's episodes, for all sessions of this process."""

    def __init__(self, at: Place) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the worker writes to it)
        self._process = subprocess.Popen(
            at.command("play"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._numbers, self._lock = itertools.count(), threading.Lock()
        self._episodes: dict[int, _Episode] = {}
        atexit.register(self._process.terminate)
        threading.Thread(target=self._listen, name=f"verifiers' {at.id}", daemon=True).start()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def open(self, task: int) -> _Episode:
        """Starts an episode."""
        number = next(self._numbers)
        episode = self._episodes[number] = _Episode(self, number)
        self.say({"do": "open", "id": number, "task": task})
        return episode

    def forget(self, number: int) -> None:
        """Gives an episode up."""
        if self._episodes.pop(number, None) is not None:
            self.say({"do": "close", "id": number})

    def say(self, line: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            with self._lock:
                self._process.stdin.write(json.dumps(line) + "\n")
                self._process.stdin.flush()
        except OSError:
            pass  # it has ended: whoever waits is told so

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            episode = self._episodes.get(event.get("id", -1))
            if event["event"] == "end":
                self._episodes.pop(event["id"], None)
            if episode is not None:
                episode.take(event)
        self._process.wait()
        self._log.seek(0)
        error = f"its process ended: {_end_of(self._log.read())}"
        for number in [*self._episodes]:
            self._episodes.pop(number).take({"event": "end", "reward": 0.0, "new": [], "error": error})


_workers: dict[Place, _Worker] = {}
_starting = threading.Lock()


def _worker(at: Place) -> _Worker:
    """The environment's process in this one; another where it has ended."""
    with _starting:
        if at not in _workers or _workers[at].ended:
            _workers[at] = _Worker(at)
        return _workers[at]
