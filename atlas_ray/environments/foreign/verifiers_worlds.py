"""The built-in worlds as a taskset of verifiers (0.4 and later), `atlas-ray`: for trainers that speak to it.

Flows in: the library's agent, turn by turn; flows out: observations, and the reward in [0, 1] at the end. This module
runs in the Python that has verifiers; it needs of this package what needs no Ray (`pip install --no-deps atlas-ray`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Literal

import verifiers.v1 as vf

from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.errors import UserError
from atlas_ray.types import Task

__all__ = ["WorldEnv", "Worlds"]


class WorldData(vf.TaskData):
    """A task of a world, by its item id."""

    world: str
    item_id: str


class WorldTask(vf.Task[WorldData]):
    """Scored by its world, see `WorldEnv`."""


class WorldsConfig(vf.TasksetConfig):
    """Which tasks: of which built-in environment, and of which split."""

    world: str = "textcraft"
    split: Literal["train", "test"] = "train"


class Worlds(vf.Taskset[WorldTask, WorldsConfig]):
    """The tasks of a world."""

    def load(self) -> Iterator[WorldTask]:
        """Each opens as an episode of ours does: the instruction, what is said to it, the first observation.

        Raises:
            UserError: If there is no such world, or it is not built in.
        """
        spec = registry.get(self.config.world)
        if spec.simulator is None:
            raise UserError(f"{spec.name} is not built in", "taskset.world names one that is, e.g. textcraft")
        simulator = spec.simulator()
        for task in spec.tasks(self.config.split):
            opening = simulator.reset(spec.number(task))
            prompt = [
                vf.UserMessage(content=opening.instruction),
                vf.AssistantMessage(content=opening.acknowledgement),
                vf.UserMessage(content=opening.observation),
            ]
            yield WorldTask(
                WorldData(name=task.id, prompt=prompt, world=spec.name, item_id=task.item_id), self.config.task
            )


class WorldEnvConfig(vf.EnvConfig):
    """One agent plays."""

    agent: vf.AgentConfig = vf.AgentConfig()


class WorldEnv(vf.Env[WorldEnvConfig]):
    """The world answers each reply; its reward at the end is the only one."""

    async def run(self, task: WorldTask, agents: vf.Agents) -> None:
        """Plays until the world is done, or its rounds are used up."""
        spec = registry.get(task.data.world)
        world, reward = LocalSession(spec), 0.0
        try:
            await world.reset(Task(spec.name, task.data.item_id))
            async with agents.agent.interaction(task) as interaction:
                segment = await interaction.turn()
                for turn in range(1, spec.max_rounds + 1):
                    if segment.terminated:
                        break
                    result = await world.step(segment.last_reply)
                    reward = spec.scale(result.reward)
                    if result.done or turn == spec.max_rounds:
                        break
                    segment = await interaction.turn(result.observation)
            interaction.trace.record_reward("reward", reward, 1.0)
        finally:
            await asyncio.shield(world.close())
