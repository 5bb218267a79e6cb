"""The scripted expert and novice as policies; by calls of tools where those are asked for.

A conversation plays its own copy of the built-in simulator beside the session and decides on that, so that it works
against a local and a remote session alike.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from atlas_ray.environments.protocol import Decision, Detouring
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.types import Message, Task


class ScriptedPolicy:
    """A built-in simulator's own agent. Its replies depend on (seeds, task, step) and the replies so far alone.

    Args:
        role: Which of its agents.
        seed: Of what they draw.
        waste: Share of an expert's steps that lie on detours, which are habits of it and from which it recovers.
    """

    def __init__(self, role: Literal["expert", "novice"], seed: int = 0, waste: float = 0.0) -> None:
        self.name, self.role, self.seed, self.waste = role, role, seed, waste

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> ScriptedConversation:
        """Starts an episode; the conversation's text does not matter, nor how replies are drawn.

        Raises:
            UserError: If the task's environment has no built-in simulator, no such task, or an expert without detours.
        """
        return ScriptedConversation(task, self, calls=sampling.tools is not None)


class ScriptedConversation:
    """One episode of a scripted policy."""

    def __init__(self, task: Task, policy: ScriptedPolicy, *, calls: bool = False) -> None:
        self._spec = get(task.env)
        if self._spec.simulator is None:
            raise UserError(f"{task.env} has no scripted {policy.role}", "only built-in environments have one")
        self._task, self._policy, self._steps, self._calls = task, policy, 0, calls
        self._simulator = self._spec.simulator()
        self._simulator.reset(self._spec.number(task))
        if policy.waste and not isinstance(self._simulator, Detouring):
            raise UserError(f"{task.env}'s expert makes no detours", "leave out `waste`, or the environment")

    def _decide(self, rng: random.Random) -> Decision:
        simulator, policy = self._simulator, self._policy
        if policy.role == "novice":
            return simulator.novice(rng)
        detour = simulator.detour(rng, policy.waste) if policy.waste and isinstance(simulator, Detouring) else None
        return detour or simulator.expert(rng)

    async def generate(self, seed: int) -> Reply:
        """Decides on the replica and plays the decision there."""
        decision = self._decide(random.Random(f"{self._policy.seed}/{seed}/{self._task.id}/{self._steps + 1}"))
        reply = Reply(decision.reply, category=decision.category, weight=decision.weight)
        if self._calls and self._spec.tools:
            calls = (self._spec.tools.call(decision.action),)
            reply = replace(reply, text="", thought=decision.thought, calls=calls)
        self.append(reply.message)
        return reply

    def append(self, message: Message) -> None:
        """Plays a given reply on the replica, which knows what the environment answers."""
        if message.role != "assistant":
            return
        self._steps += 1
        tools = self._spec.tools if self._calls else None
        for text in map(tools.action, message.calls) if tools else [message.content]:
            action = self._spec.take_action(text)
            if action is not None:
                self._simulator.step(action)
