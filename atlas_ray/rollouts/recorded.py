"""A recorded trajectory played again: whether its environment repeats it, without any model.

Flows in: an expert's trajectory; flows out: the episode of its replies, its answers compared with the recorded ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas_ray.config import EnvironmentsConfig, LimitsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.agentgym.task_numbers import numbered
from atlas_ray.environments.client import open_session
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.protocol import Opening
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.types import Episode, Message, Task, Trajectory


async def play_again(trajectory: Trajectory, config: EnvironmentsConfig, limits: LimitsConfig | None = None) -> Episode:
    """The episode of a trajectory's replies; it ends as `replay_mismatch` where an answer differs.

    Args:
        trajectory: Its replies are played, its answers compared.
        config: Where its environment is played, and with which tolerance.
        limits: Seconds for an answer and in all; None: the usual ones.

    Raises:
        UserError: If the environment is unknown, or cannot be played here.
    """
    replies, opening = trajectory.replies, Opening.recorded(trajectory)
    session = open_session(registry.get(trajectory.env), config)
    request = EpisodeRequest(
        numbered(trajectory.task, config),
        Sampling(),
        seed=0,
        prefix=replies,
        recorded=trajectory.answers,
        opening=OpeningTemplate.verbatim(opening) if opening else None,
        first_observation=None if opening is None else opening.observation,
        max_rounds=len(replies),
    )
    try:
        return await run_episode(_Given(), session, request, limits)
    finally:
        await session.close()


class _Given:
    """A policy that says nothing of its own: all turns are given."""

    name = "recorded"

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> _Given:
        """Starts a conversation."""
        return self

    async def generate(self, seed: int) -> Reply:
        """Never asked."""
        raise AssertionError("a replay has no turn of its own")

    def append(self, message: Message) -> None:
        """Given turns need no memory here."""
