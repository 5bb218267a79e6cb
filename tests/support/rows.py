"""The same trajectory as a row of each data format, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atlas_ray.config import DataConfig
from atlas_ray.trajectories.formats.agenttraj import to_row
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.rejected import Rejected
from atlas_ray.types import Message, Trajectory

AGENTTRAJ: dict[str, Any] = {
    "conversations": [
        {"from": "human", "loss": None, "value": "You walk in a maze."},
        {"from": "gpt", "loss": False, "value": "OK"},
        {"from": "human", "loss": None, "value": "Goal at 1, 1."},
        {"from": "gpt", "loss": True, "value": "Thought: up\nAction: move up"},
        {"from": "human", "loss": None, "value": "Nearer."},
        {"from": "gpt", "loss": True, "value": "Action: move up"},
        {"from": "human", "loss": None, "value": "Success"},
    ],
    "item_id": "lmrlgym_maze_3",
}
MESSAGES = (
    Message("user", "You walk in a maze."),
    Message("assistant", "OK"),
    Message("user", "Goal at 1, 1."),
    Message("assistant", "Thought: up\nAction: move up", True),
    Message("user", "Nearer."),
    Message("assistant", "Action: move up", True),
    Message("user", "Success"),
)
SHAREGPT = {
    "id": "maze_3",
    "conversations": [{"from": t["from"], "value": t["value"]} for t in AGENTTRAJ["conversations"]],
}
OPENAI = {
    "item_id": "maze_3",
    "messages": [
        {"role": m.role, "content": m.content} | ({"weight": int(m.trainable)} if m.role == "assistant" else {})
        for m in MESSAGES
    ],
}


def write(path: Path, value: Any) -> str:
    """Writes JSON or JSONL, by the suffix."""
    lines = value if path.suffix == ".jsonl" else [value]
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def read(path: str | Path, **options: Any) -> tuple[list[Trajectory], list[Rejected]]:
    rejected: list[Rejected] = []
    return read_trajectories(DataConfig(path=str(path), **options), rejected), rejected


def changed(position: int, **turn: Any) -> dict[str, Any]:
    """The AgentTraj-L row with one turn changed."""
    turns = [dict(t) for t in AGENTTRAJ["conversations"]]
    turns[position] |= turn
    return AGENTTRAJ | {"conversations": turns}


def write_agenttraj(path: str | Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes a `.json` file of AgentTraj-L's form."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps([to_row(t) for t in trajectories], ensure_ascii=False), "utf-8")
