"""Our server against the wire forms of AgentGym's: a table of each environment's requests and answers, walked through.

The table is written from AgentGym's servers, not from `dialects.py`, so that AgentGym's own clients find what they ask
for: paths, bodies, keys, types and error forms. Faults of those servers are left out: nothing is evaluated, ids are
neither lost nor handed out twice, what is refused changes nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from atlas_ray.environments import registry
from atlas_ray.environments.http.server import create_app
from atlas_ray.errors import UserError
from tests.support.serving import running

NUMBER, TEXT, FLAG = (int, float), str, bool
STEP = {"observation": TEXT, "reward": NUMBER, "done": FLAG}
SCORED = {"observation": TEXT, "reward": NUMBER, "score": NUMBER, "done": FLAG}


@dataclass(frozen=True)
class Form:
    """One environment's wire form.

    Attributes:
        create: Body of `/create`; None for none.
        made: Keys and types of its answer; None where that is the bare id.
        key: The id's key in requests.
        index: The task's key in `/reset`.
        more: What else `/reset` is sent.
        reset: Keys and types of its answer; `str` for a bare text, `list` for webshop's pair.
        step: Of `/step`'s answer.
        looks: GETs and the type of each answer.
        closes: Whether `/close` is there.
        bare: Errors are HTTP 500 in plain text, and it carries on after the end.
    """

    prefix: str = ""
    create: dict[str, Any] | None = None
    made: dict[str, Any] | None = field(default_factory=lambda: {"id": int})
    key: str = "id"
    index: str = "data_idx"
    more: dict[str, Any] = field(default_factory=dict)
    reset: dict[str, Any] | type = field(default_factory=lambda: STEP)
    step: dict[str, Any] = field(default_factory=lambda: STEP)
    looks: dict[str, type] = field(default_factory=lambda: {"observation": str})
    closes: bool = True
    bare: bool = False


TOOL = Form(
    create={"id": 0},
    made=None,
    key="env_idx",
    index="id",
    reset=str,
    looks={"observation": str, "list_envs": list},
    closes=False,
    bare=True,
)
FORMS = {
    "maze": Form(
        prefix="/maze",
        index="game",
        reset={"observation": TEXT},
        looks={"observation": str, "available_actions": list, "detail": dict},
        closes=False,
    ),
    "wordle": Form(
        prefix="/wordle",
        index="seed",
        reset={"id": int, "observation": TEXT},
        looks={"filtered_vocab": list, "observation": str, "detail": dict},
        closes=False,
    ),
    "textcraft": Form(create={}, made={"id": int, **STEP}, reset={"id": int, **STEP}),
    "babyai": Form(reset={**SCORED, "deleted": FLAG}, step=SCORED, looks={"observation": dict}),
    "sciworld": Form(
        reset={"task_name": TEXT, "var_num": int, "task_description": TEXT, **SCORED, "deleted": FLAG},
        step=SCORED,
        looks={"task_description": str},
    ),
    "alfworld": Form(
        index="game",
        more={"world_type": "Text"},
        reset={"id": int, "observation": TEXT, "available_actions": list, "task_type": TEXT},
        step={**STEP, "available_actions": list},
        looks={"observation": str, "available_actions": list, "detail": dict},
        closes=False,
    ),
    "webshop": Form(
        made=None,
        key="env_idx",
        index="session_id",
        reset=list,
        step={"state": TEXT, "reward": NUMBER, "done": FLAG, "info": type(None)},
        looks={
            "observation": str,
            "available_actions": dict,
            "state": dict,
            "instruction_text": str,
            "list_envs": list,
        },
        closes=False,
        bare=True,
    ),
    **dict.fromkeys(("weather", "movie", "todo", "academia", "sheet"), TOOL),
    # AgentBoard plays these two in process; over HTTP they speak as most others do
    "pddl": Form(),
    "jericho": Form(),
}
BUILT_IN = [name for name in FORMS if registry.get(name).simulator is not None]


class Client:
    """Asks one environment's server as AgentGym's client does, and checks the form of every answer."""

    def __init__(self, form: Form, http: aiohttp.ClientSession) -> None:
        self.form, self.http = form, http

    async def ask(self, method: str, name: str, asked: Any, status: int = 200) -> Any:
        sent = {"params": asked} if method == "GET" else {"json": asked}
        async with self.http.request(method, f"{self.form.prefix}/{name}", **sent) as response:
            assert response.status == status, await response.text()
            return await (response.text() if status == 500 else response.json())

    async def create(self) -> int:
        answer = await self.ask("POST", "create", self.form.create)
        number = answer if self.form.made is None else fits(answer, self.form.made)["id"]
        assert type(number) is int
        return number

    async def reset(self, number: int, index: int) -> Any:
        answer = await self.ask("POST", "reset", {self.form.key: number, self.form.index: index, **self.form.more})
        return fits(answer, self.form.reset) if isinstance(self.form.reset, dict) else answer

    async def step(self, number: int, action: str) -> dict[str, Any]:
        return fits(await self.ask("POST", "step", {self.form.key: number, "action": action}), self.form.step)

    async def refused(self, method: str, name: str, asked: Any) -> str:
        """The error, in the environment's form."""
        if self.form.bare:
            return await self.ask(method, name, asked, 500)
        answer = await self.ask(method, name, asked)
        assert list(answer) == ["error"]
        return answer["error"]


def fits(answer: Any, form: dict[str, Any]) -> dict[str, Any]:
    """The answer, which has the form's keys and types, and none beside but the progress where there is one."""
    assert set(answer) - {"progress"} == set(form)
    for key, kind in form.items():
        assert isinstance(answer[key], kind), (key, answer[key])
    return answer


@asynccontextmanager
async def connected(name: str) -> AsyncIterator[Client]:
    try:
        app = create_app([name])
    except UserError as error:
        pytest.skip(f"{error}: {error.remedy}")
    async with running(app) as url, aiohttp.ClientSession(url) as http:
        yield Client(FORMS[name], http)


@pytest.mark.parametrize("name", BUILT_IN)
async def test_an_episode_has_the_servers_form(name: str) -> None:
    spec = registry.get(name)
    tasks = [spec.index(task.item_id) for task in spec.tasks("test", 2)]
    async with connected(name) as client:
        number = await client.create()
        first = await client.reset(number, tasks[0])
        if client.form.reset is str:
            assert isinstance(first, str)
        if client.form.reset is list:
            assert [type(part) for part in first] == [str, type(None)]
        for look, kind in client.form.looks.items():
            asked = {} if look == "list_envs" else {client.form.key: number}
            assert isinstance(await client.ask("GET", look, asked), kind), look
        for action in ("look", "dance\x00 \ud83d\ude00", "__import__('os').system('false')"):
            step = await client.step(number, action)
            assert step["done"] is False
        look = next(iter(client.form.looks))  # wordle's reset says the same of every task, its words differ

        async def begun(index: int) -> tuple[Any, Any]:
            return await client.reset(number, index), await client.ask("GET", look, {client.form.key: number})

        again = await begun(tasks[0])
        assert again[0] == first, "a reset gives the task anew"
        assert await begun(tasks[1]) != again
        if client.form.closes:
            assert await client.ask("POST", "close", {"id": number}) is True


@pytest.mark.parametrize("name", BUILT_IN)
async def test_refusals_have_the_servers_form_and_change_nothing(name: str) -> None:
    spec = registry.get(name)
    index = spec.index(spec.tasks("test", 1)[0].item_id)
    async with connected(name) as client:
        form, number = client.form, await client.create()
        first = await client.reset(number, index)
        nobody = {form.key: 4_000_000_000}
        await client.refused("POST", "step", {**nobody, "action": "look"})
        await client.refused("POST", "reset", {**nobody, form.index: index, **form.more})
        await client.refused("GET", next(iter(form.looks)), nobody)
        await client.refused("POST", "reset", {form.key: number, form.index: 10**9, **form.more})
        for broken in ({}, {form.key: "x"}, {form.key: number, "action": None}, None, [], 3):
            answer = await client.ask("POST", "step", broken, 422)
            assert {"type", "loc", "msg"} <= set(answer["detail"][0])
        if form.create is not None:
            await client.ask("POST", "create", None, 422)
        assert await client.reset(number, index) == first


@pytest.mark.parametrize("name", BUILT_IN)
async def test_ids_are_unique_and_not_reused(name: str) -> None:
    async with connected(name) as client:
        ids = [await client.create() for _ in range(3)]
        if client.form.closes:
            await client.ask("POST", "close", {"id": ids[0]})
        ids.append(await client.create())
    async with connected(name) as client:  # a restarted server
        ids += [await client.create() for _ in range(2)]
    assert len(set(ids)) == len(ids)


async def test_wordles_words_are_told_before_any_reset() -> None:
    """AgentGym's client asks for them once, and shows them in front of every task."""
    async with connected("wordle") as client:
        number = await client.create()
        words = await client.ask("GET", "filtered_vocab", {"id": number})
        assert len(words) == len(set(words)) >= 11
        for index in range(3):
            await client.reset(number, index)
            assert set(await client.ask("GET", "filtered_vocab", {"id": number})) < set(words)
            guessed = await client.step(number, " ".join(words[0]))
            assert guessed["done"] in (True, False)


# what AgentGym's clients send from making an environment to the first action, in order
ORDERS = {
    **dict.fromkeys(("maze", "babyai", "textcraft", "sciworld", "alfworld"), ("create", "reset", "step")),
    "wordle": ("create", "filtered_vocab", "reset", "step"),
    **dict.fromkeys(
        ("webshop", "weather", "movie", "todo", "academia", "sheet"), ("create", "reset", "observation", "step")
    ),
}


@pytest.mark.parametrize("name", ORDERS)
async def test_agentgyms_clients_are_answered_in_their_own_order(name: str) -> None:
    """Each episode on the same id, and the second as the first."""
    spec = registry.get(name)
    index = spec.index(spec.tasks("test", 1)[0].item_id)
    async with connected(name) as client:
        number, told = await client.create(), list[list[Any]]()
        for _ in range(2):
            answers: list[Any] = []
            for endpoint in ORDERS[name][1:]:
                if endpoint == "reset":
                    answers.append(await client.reset(number, index))
                elif endpoint == "step":
                    answers.append(await client.step(number, "look"))
                elif endpoint == "observation" or not told:
                    answers.append(await client.ask("GET", endpoint, {client.form.key: number}))
                    assert answers[-1]
            told.append(answers)
        assert told[0][-len(told[1]) :] == told[1]
