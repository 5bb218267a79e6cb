"""Records as run folders hold them, and a configuration to begin a run with."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel

from atlas_ray.config import PLACEMENT
from atlas_ray.types import (
    Category,
    Episode,
    GoldStep,
    Message,
    Selection,
    StopReason,
    Trajectory,
    Usage,
)


class Config(BaseModel):
    seed: int = 0
    run: Annotated[str, PLACEMENT] = "here"
    workers: Annotated[int, PLACEMENT] = 1
    ratio: float = 0.3


def an_episode(number: int, error: str | None = None, reward: float = 1.0) -> Episode:
    return Episode(
        id=f"maze/maze_{number}@0+0",
        env="maze",
        item_id=f"maze_{number}",
        policy="p",
        sample=0,
        start_step=0,
        seed=0,
        messages=(Message("user", "go"), Message("assistant", "Action: up", True)),
        reward=reward,
        raw_reward=reward,
        success=reward == 1,
        progress=reward,
        rounds=1,
        stop_reason=StopReason.MODEL_ERROR if error else StopReason.DONE,
        usage=Usage(3, 1, 2, 1, 0.5),
        error=error,
    )


def a_trajectory() -> Trajectory:
    gold = (GoldStep(1, 1, Category.PLAN_CREATION),)
    return Trajectory(
        "maze/maze_1", "maze", "maze_1", (Message("user", "x"), Message("assistant", "y", True)), 1.0, gold
    )


def a_selection() -> Selection:
    return Selection(
        "maze/maze_1",
        "maze",
        "maze_1",
        "value",
        None,
        2,
        (2,),
        (0.0, 0.5),
        ((0.0, 1.0), (0.5,), (1.0,)),
        categories={2: Category.SELF_CORRECTION},
        usage=Usage(1, 0, 2, 1, 0.1),
    )


def a_row(item_id: str = "maze_1", reply: str = "Thought: go.\nAction: move up") -> dict[str, object]:
    turns = [("human", "Play.", None), ("gpt", "OK", False), ("human", "Goal at 1, 5.", None), ("gpt", reply, True)]
    return {"conversations": [{"from": f, "value": v, "loss": x} for f, v, x in turns], "item_id": item_id}
