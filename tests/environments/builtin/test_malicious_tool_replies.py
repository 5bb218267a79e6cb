"""What no reply may do to the tool environments: crash them, be evaluated, or fill the conversation."""

from __future__ import annotations

import json
import random

import pytest

from atlas_ray.environments.registry import get
from tests.support.simulators import BOXES, TOOLS, make_simulator

NAMES = sorted({name for box in BOXES.values() for name in box.tools})
PARAMETERS = sorted({key for box in BOXES.values() for tool in box.tools.values() for key in tool.parameters})
WORDS = (
    "A1",
    "B2",
    "Sheet1",
    "rows",
    "row",
    "des",
    "2020-01-01",
    "Oslo",
    "PaperNet",
    "SUM",
    "../x",
    "True",
    "\ud800",
    "é☃١",
)
NUMBERS = (0, -1, 1, 3, 2.5, 1e308, -(10**20), 10**30, float("nan"), float("inf"))


def value(rng: random.Random, depth: int = 3) -> object:
    """Anything that JSON can say, and some that it cannot."""
    match rng.randrange(7 if depth else 4):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(20)))
        case 2 | 3:
            return rng.choice((*WORDS, None, True))
        case 4:
            return {str(value(rng, 0)): value(rng, depth - 1) for _ in range(rng.randrange(3))}
        case _:
            return [value(rng, depth - 1) for _ in range(rng.randrange(4))]


def fuzzed(rng: random.Random, env: str) -> str:
    """A reply that is mostly a call of a tool with wild input, else broken or no call at all."""
    name = rng.choice([*BOXES[env].tools, *BOXES[env].tools, *NAMES, str(value(rng, 0))])
    tool = BOXES[env].tools.get(name)
    given = {key: value(rng) for key in (tool.parameters if tool else rng.sample(PARAMETERS, 3))}
    reply = f"Thought: {value(rng, 0)}\nAction: {name} with Action Input: {json.dumps(given)}"
    if rng.random() < 0.2:
        at = rng.randrange(len(reply))
        reply = reply[:at] + str(value(rng, 0)) + reply[at + rng.randrange(4) :]
    return reply


CODE = [
    "Action: finish with Action Input: __import__('os').system('touch /tmp/evaluated')",
    "Action: finish with Action Input: {'answer': open('/etc/passwd').read()}",
    'Action: update_cell with Action Input: {"position": "A1", "value": "=__import__(\'os\')"}',
    'Action: filter_cells with Action Input: {"query": "re.compile(\'(a+)+$\')"}',
    'Action: open_sheet with Action Input: {"name": "/etc/passwd"}',
]
BOMBS = [
    *("x" * 2**20, " " * 2**20, "\n" * 2**20, "Action: " * 2**17, "with Action Input:" * 2**16, "\ud800\x00"),
    "Action: finish with Action Input: " + "[" * 2**19,
    "Action: finish with Action Input: " + '{"a":' * 2**16,
    'Action: finish with Action Input: {"answer": ' + "9" * 2**19 + "}",
    'Action: update_cell with Action Input: {"position": "A1", "value": "' + "\\u0000" * 2**17 + '"}',
    'Action: finish with Action Input: {"answer": "\\ud800"}',
    'Action: insert_rows with Action Input: {"row_idx": 1, "values_list": [' + "[1]," * 2000 + "[1]]}",
]


@pytest.mark.parametrize("env", TOOLS)
def test_random_replies_get_an_answer(env: str) -> None:
    """2,000 of each environment."""
    rng, simulator, spec = random.Random(f"fuzz/{env}"), make_simulator(env), get(env)
    done, answered = True, 0
    for n in range(2_000):
        if done:
            simulator.reset(rng.randrange(400))
        expert = rng.random() < 0.3  # so that it gets somewhere
        reply = simulator.expert(rng).reply if expert else fuzzed(rng, env)
        result = simulator.step(spec.take_action(reply))
        assert len(result.observation) < 10_000
        result.observation.encode()
        assert 0 <= result.reward <= 1
        done = result.done
        answered += not expert and "ERROR" not in result.observation
        if n % 5 == 0:
            assert "with Action Input: " in simulator.novice(rng).reply
    assert answered > 20  # some are understood


@pytest.mark.parametrize("env", TOOLS)
def test_code_and_deep_nesting_are_plain_text(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("eval", "exec", "compile", "open"):
        monkeypatch.setattr(f"builtins.{name}", lambda *_, name=name: pytest.fail(f"{name} was called"))
    simulator, spec = make_simulator(env), get(env)
    for reply in CODE + BOMBS:
        simulator.reset(0)
        result = simulator.step(spec.take_action(reply))
        assert result.reward == 0
        assert len(result.observation) < 10_000
