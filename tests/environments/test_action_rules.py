"""How an action is taken from a reply, environment by environment, as AgentGym's clients do it."""

from __future__ import annotations

import pytest

from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import MALFORMED
from atlas_ray.types import Task
from tests.support.serving import TOOLS

MAZE_AND_WORDLE, LAST, SINGLE = ("maze", "wordle"), ("webshop", "sciworld", "alfworld"), ("babyai", "textcraft")
FORMS = {
    "usual": ("Thought:\nI go.\n\nAction:\nmove up", "move up"),
    "on one line": ("Thought: I go. Action: move up", "move up"),
    "end of sequence": ("Thought: I go.\nAction: move up</s>", "move up"),
    "around it": ("  Action:   move up  \n\n", "move up"),
    "empty": ("Thought: I go.\nAction:", ""),
}


@pytest.mark.parametrize("env", [*MAZE_AND_WORDLE, *LAST, *SINGLE])
@pytest.mark.parametrize(("reply", "action"), FORMS.values(), ids=FORMS)
def test_replies_with_one_action_are_read_alike(env: str, reply: str, action: str) -> None:
    assert registry.get(env).take_action(reply) == action


CASES = [
    # without a marker
    (MAZE_AND_WORDLE, "move up", "move up"),
    (MAZE_AND_WORDLE, " s h i r e\n", "s h i r e"),
    (LAST, "move up", ""),
    (SINGLE, "move up", ""),
    # more than one
    (MAZE_AND_WORDLE, "Action: move up\nAction: move down", "move up"),
    (MAZE_AND_WORDLE, "Action: move up\nThought: and on\nAction: move down", "move up\nThought: and on"),
    (LAST, "Action: move up\nAction: move down", "move down"),
    (SINGLE, "Action: move up\nAction: move down", None),
    (SINGLE, "Action: move up Action: move down", "move up Action move down"),
    # what follows on further lines
    (MAZE_AND_WORDLE, "Action: move up\nand on", "move up\nand on"),
    (LAST, "Action: move up\nand on", "move up\nand on"),
    (SINGLE, "Action: move up\nand on", "move up"),
    (SINGLE, "Action:\n\nmove up", "move up"),
    # white space and other signs
    (MAZE_AND_WORDLE, "Action: move  up", "move  up"),
    (LAST, "Action: move  up", "move  up"),
    (SINGLE, "Action: move   up", "move up"),
    (SINGLE, "Action: get 1  oak   log ,  please!", "get 1 oak log , please"),
    (SINGLE, "Action: `pick up red ball 1`.", "pick up red ball 1"),
    (SINGLE, "Action: go - to - door", "go to door"),
    # WebShop's actions say themselves what they are
    (("webshop",), "search[red lamp]", "search[red lamp]"),
    (("webshop",), "I buy it. click[Buy Now]", "I buy it. click[Buy Now]"),
    (("webshop",), "Thought: I could search[lamp].\nAction: click[b0]", "click[b0]"),
    (("webshop",), "Thought: nothing to do", ""),
    # the tools are told everything
    (TOOLS, "Thought: so\nAction: f with Action Input: {}", "Thought: so\nAction: f with Action Input: {}"),
    (TOOLS, "no action", "no action"),
    (TOOLS, "Action: a\nAction: b", "Action: a\nAction: b"),
]


@pytest.mark.parametrize(
    ("env", "reply", "action"), [(env, reply, action) for envs, reply, action in CASES for env in envs]
)
def test_replies_are_read_by_each_environments_rule(env: str, reply: str, action: str | None) -> None:
    assert registry.get(env).take_action(reply) == action


async def test_two_actions_get_an_error_turn_and_no_call() -> None:
    session = LocalSession(registry.get("textcraft"))
    await session.reset(Task("textcraft", "textcraft_0"))
    before = await session.step("Action: inventory")
    told = await session.step("Action: get 1 log\nAction: inventory")
    assert (told.observation, told.done) == (MALFORMED, False)
    assert await session.step("Action: inventory") == before
