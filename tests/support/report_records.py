"""Arms, episodes and selections that a report is made of, and the page made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.recipes.report import site_of
from atlas_ray.report.html import write_report
from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.report.results import build_results
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Category, Episode, GoldStep, Message, Selection, StopReason, Trajectory

SCRIPT = "<script>alert(1)</script>"


IMAGE = "<img src=http://evil.example/x.png onerror=alert(2)>"


SPECS = {
    "maze": EnvironmentSpec("maze", "in", 15, "success", "first"),
    "wordle": EnvironmentSpec("wordle", "in", 8, "success", "first"),
    "blocksworld": EnvironmentSpec("blocksworld", "out", 15, "progress", "first"),
}


def conversation(env: str, item: str, replies: int) -> tuple[Message, ...]:
    turns = [Message("user", f"How to play {env}"), Message("assistant", "OK"), Message("user", f"{item} starts")]
    for step in range(replies):
        turns += [Message("assistant", f"Thought: {SCRIPT}\nAction: go {step}", True), Message("user", IMAGE)]
    return tuple(turns)


def episode(arm: str, env: str, task: int, success: bool, stop: StopReason = StopReason.DONE) -> Episode:
    item, reward = f"{env}_{task}", float(success)
    messages = conversation(env, item, 2)
    return Episode(f"{env}/{item}@0", env, item, arm, 0, 0, task, messages, reward, reward, success, reward, 2, stop)


def arm(name: str, wins: dict[str, int], tasks: int = 40, **training: Any) -> Arm:
    """An arm that succeeds on the first so many tasks of each environment."""
    fields = {"selector": None, "ratio": None, "step_fraction": None, "loss_token_fraction": None, "train_steps": None}
    played = [episode(name, env, task, task < won) for env, won in wins.items() for task in range(tasks)]
    return Arm(name, f"models/{name}", **{**fields, **training}, episodes=played)


GOLD = (GoldStep(2, 1, Category.PLAN_CREATION), GoldStep(4, 2, Category.CRITICAL_ACTION))


def trajectory(env: str, task: int, steps: int = 4, gold: tuple[GoldStep, ...] = GOLD) -> Trajectory:
    item = f"{env}_{task}"
    return Trajectory(f"{env}/{item}", env, item, conversation(env, item, steps), 1.0, gold)


def selection(name: str, t: Trajectory, *chosen: int, **fields: Any) -> Selection:
    return Selection(t.id, t.env, t.item_id, name, 0.3, len(t.steps), chosen, **fields)


def report_input(*arms: Arm, **changes: Any) -> ReportInput:
    expert = [trajectory("maze", 100), trajectory("wordle", 101)]
    selections = {
        "gold": [
            selection("gold", t, 2, scores=(0, 1, 0, 0.5), categories={2: Category.PLAN_CREATION}) for t in expert
        ],
        "random": [selection("random", expert[0], 4), selection("random", expert[1], 3)],
        "value": [selection("value", expert[0], 1, 2), selection("value", expert[1], error="no rollouts")],
    }
    fields: dict[str, Any] = {
        "recipe": "quickstart",
        "seeds": [0],
        "git_commit": "abc",
        "versions": {"ray": "2.60.0"},
        "seconds": {"collect": 12.0, "train/gold": 75.5, "train/random": 60.0},
        "trajectories": expert,
        "selections": selections,
        "specs": SPECS,
        "n_expected": dict.fromkeys(SPECS, 40),
    }
    return ReportInput(arms=arms, **{**fields, **changes})


def realistic() -> ReportInput:
    return report_input(
        arm("base", {"maze": 4, "wordle": 8, "blocksworld": 10}),
        arm(
            "gold",
            {"maze": 30, "wordle": 20, "blocksworld": 12},
            selector="gold",
            ratio=0.3,
            step_fraction=0.25,
            loss_token_fraction=0.2871234567,
            train_steps=54,
        ),
        arm("random", {"maze": 30, "wordle": 18, "blocksworld": 11}, selector="random", ratio=0.3),
    )


def page_of(given: ReportInput, where: Path) -> str:
    folder = RunFolder(str(where))
    write_report(folder, build_results(given), site_of(given))
    return folder.read_bytes("index.html").decode()
