"""Test tasks and ALFWorld's mappings in the forms that AgentGym publishes: names, keys and shapes of ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVAL: dict[str, list[str]] = {
    "alfworld_test.json": ["alfworld_2420", "alfworld_2421"],
    "babyai_test.json": ["babyai_3", "babyai_41"],
    "maze_test.json": ["lmrlgym_maze_12", "lmrlgym_maze_0", "lmrlgym_maze_24"],
    "movie_test.json": ["tool_movie_0", "movie_23"],
    "sciworld_test.json": ["sciworld_1417", "sciworld_4638"],
    "sqlgym_test.json": ["sqlgym_9850", "sqlgym_10795", "sqlgym_10481"],
    "textcraft_test.json": ["textcraft_544", "textcraft_7"],
    "todo_test.json": ["todo_104", "tool_todo_21"],
    "webarena_test.json": ["webarena_24", "webarena_238"],
    "weather_test.json": ["weather_311", "weather_4"],
    "webshop_test.json": ["webshop_5238", "webshop_0"],
    "wordle_test.json": ["lmrlgym_wordle_3", "lmrlgym_wordle_9"],
    "tool_academia_test.json": ["tool_academia_0", "tool_academia_19"],
    "tool_sheet_test.json": ["tool_sheet_0", "tool_sheet_19"],
}
KNOWN = ("alfworld", "babyai", "maze", "movie", "sciworld", "textcraft", "todo", "weather", "webshop", "wordle")
KNOWN += ("academia", "sheet")

TRIALS = {
    0: ("look_at_obj_in_light-AlarmClock-None-DeskLamp-301", "trial_T20190907_174127_043461"),
    1: ("look_at_obj_in_light-AlarmClock-None-DeskLamp-301", "trial_T20190907_174142_375532"),
    2420: ("pick_cool_then_place_in_recep-Mug-None-CoffeeMachine-23", "trial_T20190908_143209_571893"),
}


def write_eval(folder: Path, **more: list[str]) -> dict[str, Any]:
    """A folder with AgentEval's fourteen files; `more` ids by a file's first word. The settings that name it."""
    folder.mkdir()
    for name, ids in EVAL.items():
        every = [*ids, *more.get(name.removesuffix("_test.json"), [])]
        rows = [{"item_id": item_id, "conversations": None} for item_id in every]
        (folder / name).write_text(json.dumps(rows, indent=4), "utf-8")
    return {"path": str(folder)}


def write_mappings(folder: Path) -> str:
    """An AgentGym checkout as far as ALFWorld's mappings go."""
    place = folder / "agentenv-alfworld" / "configs"
    place.mkdir(parents=True)
    for part, numbers in {"train": (0, 1), "test": (2420,)}.items():
        rows = [{"item_id": n, "task_type": TRIALS[n][0], "task_id": TRIALS[n][1]} for n in numbers]
        (place / f"mappings_{part}.json").write_text(json.dumps(rows, indent=4), "utf-8")
    return str(folder)
