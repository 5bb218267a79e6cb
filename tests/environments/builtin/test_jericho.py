"""The built-in Jericho: the stories' texts, subgoals, and what is no part of them. What every simulator must hold is in
`test_every_simulator.py`."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jericho", reason="pip install 'atlas-ray[jericho]'")

from atlas_ray.environments.builtin.jericho.simulator import Jericho, tasks
from atlas_ray.environments.builtin.jericho.stories import STORIES, VARIANTS, story
from atlas_ray.environments.registry import get

FOLDER = Path(__file__).parents[3] / "atlas_ray" / "environments" / "builtin" / "jericho" / "stories"


def begun(name: str, variant: int = 7, half: bool = False) -> tuple[Jericho, str]:
    simulator = Jericho()
    index = next(
        n for n, task in enumerate(tasks()) if (task.name, task.variant, task.start > 0) == (name, variant, half)
    )
    return simulator, simulator.reset(index).observation


def test_a_story_is_told_and_pays_by_subgoals() -> None:
    simulator, first = begun("lighthouse")
    assert first == (
        "Your goals: find the tower's key, open the tower, get the oil, fill the lamp, light the lamp.\n\n"
        "The ship of Oskar is out in the storm, and the lamp is dark. Light it."
        " The keeper used to hide the tower's key under the barrel.\n"
        "Cove\nA pebble beach. A path leads north to the yard. Here lie a net, a boat, a barrel, a crate and a pot."
    )
    said = [
        ("look under net", "You find nothing there.", 0.0),
        ("search barrel", "You find an iron key there.", 0.2),
        ("take key", "Taken.", 0.2),
        ("north", "Yard\nA yard in the wind. The cottage is east, the cove south. The tower's door is north.", 0.2),
        ("north", "You can't since the tower's door is in the way.", 0.2),
        ("unlock door with key", "You unlock the tower's door.", 0.2),
        ("open door", "You open the tower's door.", 0.4),
    ]
    for command, told, progress in said:
        result = simulator.step(command)
        assert (result.observation, result.progress, result.done) == (told, pytest.approx(progress), False)
    for command in ("east", "take oil", "west", "north", "up", "light lamp", "fill lamp"):
        result = simulator.step(command)
    assert result.progress == pytest.approx(0.8)
    last = simulator.step("light lamp")
    assert last.observation.startswith("The lamp flares up")
    assert "RESTART" not in last.observation
    assert (last.reward, last.done) == (1.0, True)
    assert simulator.step("north") == simulator.step("look")  # nothing follows the end


@pytest.mark.parametrize("name", STORIES)
def test_half_way_starts_do_not_count_earlier_subgoals(name: str) -> None:
    simulator, first = begun(name, half=True)
    task = next(t for t in tasks() if t.name == name and t.start)
    goals = [m.goal for m in story(name, 7).milestones[task.start :] if m.goal]
    assert first.startswith(f"Your goals: {', '.join(goals)}.")
    assert "You're carrying" in first
    assert simulator.step("look").progress == 0


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("variant", [0, 6, 12, 18, 24])
def test_the_milestones_lead_through_the_story(name: str, variant: int) -> None:
    simulator, _ = begun(name, variant)
    progress = [0.0]
    for _ in range(15):
        result = simulator.step(simulator._due[0])
        progress.append(result.reward)
    assert progress == sorted(progress)
    assert (progress[-1], result.done) == (1.0, True)


@pytest.mark.parametrize(
    "command",
    ["save", "RESTORE", "quit", "q", "undo", "restart", "script", "look. save", "look then quit", "zzvariant 3"],
)
def test_interpreter_commands_are_refused(command: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    simulator, _ = begun("archive")
    result = simulator.step(command)
    assert (result.observation, result.done) == ("That is no part of the story.", False)
    assert "Reading Room" in simulator.step("look").observation
    assert not list(tmp_path.iterdir())


def test_variants_differ_and_splits_share_none() -> None:
    spec = get("jericho")
    assert (spec.n_test, spec.n_train) == (40, 160)
    assert len(tasks()) == 200 == VARIANTS * len(STORIES) * 2
    test, train = ({(t.name, t.variant) for t in part} for part in (tasks()[:40], tasks()[40:]))
    assert test.isdisjoint(train)


def test_compiled_stories_match_their_sources(tmp_path: Path) -> None:
    compiler = Path("/usr/bin/inform6")
    if not compiler.exists():
        pytest.skip("needs Debian's inform6-compiler and inform6-library")
    for name in STORIES:
        made = tmp_path / f"{name}.z5"
        include = f"+include_path={FOLDER},/usr/share/inform6/library"
        subprocess.run(
            [str(compiler), include, str(FOLDER / f"{name}.inf"), str(made)], check=True, capture_output=True
        )
        ours, theirs = (bytearray(file.read_bytes()) for file in (made, FOLDER / f"{name}.z5"))
        for data in (ours, theirs):
            data[0x12:0x18] = bytes(6)  # the date of compilation
            data[0x1C:0x1E] = bytes(2)  # the checksum, which hangs on it
        assert ours == theirs, f"{name}.inf has changed: compile it"


def test_agents_mention_the_next_subgoal() -> None:
    simulator, _ = begun("greenhouse")
    decision = simulator.expert(random.Random(1))
    assert decision.action == "take kettle"
    assert "herb and water go into it" in decision.thought
