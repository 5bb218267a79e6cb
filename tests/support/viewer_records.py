"""Records for tests of the report's viewer, hostile text among them, and the folder made of them."""

from __future__ import annotations

from pathlib import Path

from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.report.drawing import Figure
from atlas_ray.report.html import write_report
from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.report.results import build_results
from atlas_ray.report.site import SiteInput
from atlas_ray.report.tables import Cell, Column, Table
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Category, Episode, GoldStep, Message, Selection, StopReason, Trajectory

# Each sets `window.hit` if any of it runs.
SCRIPT = "</script><script>window.hit = 1</script>"
IMAGE = "<img src=x onerror='window.hit = 2'>"
HOSTILE_ENV = f"evil{SCRIPT}"
HOSTILE_ITEM = f"evil_1{IMAGE}"
HOSTILE_ID = f"{HOSTILE_ENV}/{HOSTILE_ITEM}"
GOLD = (GoldStep(2, 1, Category.PLAN_CREATION), GoldStep(4, 2, Category.CRITICAL_ACTION))
SPECS = {env: EnvironmentSpec(env, "in", 15, "success", "first") for env in ("maze", "wordle")}


def conversation(env: str, item: str, replies: int, said: str = "") -> tuple[Message, ...]:
    turns = [Message("user", f"How to play {env}"), Message("assistant", "OK"), Message("user", f"{item} starts")]
    for step in range(1, replies + 1):
        turns += [
            Message("assistant", f"Thought: step {step} of {item}\nAction: go {step}", True),
            Message("user", f"door {step} opens {said}"),
        ]
    return tuple(turns)


def trajectory(env: str, item: str, steps: int = 5, said: str = "", reward: float | None = 1.0) -> Trajectory:
    return Trajectory(f"{env}/{item}", env, item, conversation(env, item, steps, said), reward, GOLD)


def selection(name: str, t: Trajectory, *chosen: int, **fields: object) -> Selection:
    return Selection(t.id, t.env, t.item_id, name, 0.3, len(t.steps), chosen, **fields)  # type: ignore[arg-type]


def episode(model: str, env: str, item: str, stop: StopReason, *, success: bool, said: str = "") -> Episode:
    messages = conversation(env, item, 2 if success else 3, said)
    reward = float(success)
    return Episode(f"{env}/{item}@0", env, item, model, 0, 0, 0, messages, reward, reward, success, reward, 2, stop)


def site(many: int = 300, **changes: object) -> SiteInput:
    expert = [trajectory("maze", f"maze_{i}", said="xylophone" if i == 217 else "") for i in range(many)]
    expert += [trajectory("wordle", "wordle_7", reward=0.0), trajectory("wordle", "wordle_8", reward=None)]
    hostile = trajectory(HOSTILE_ENV, HOSTILE_ITEM, said=f"{SCRIPT} {IMAGE} \u2028 line")
    expert.append(hostile)
    gold = [selection("gold", t, 2, 4, scores=(0, 2, 0, 1, 0), categories={2: Category.PLAN_CREATION}) for t in expert]
    llm = [selection("llm", t, 1, 2, plan="walk", reason="doors matter", model="judge") for t in expert[:-2]]
    llm += [selection("llm", expert[-2], error="the reply names no step")]
    llm += [selection("llm", hostile, 3, reason=f"because {SCRIPT} {IMAGE}", plan=IMAGE)]
    names = ["base", "gold", f"model{IMAGE}"]
    episodes = {
        name: [
            episode(name, "maze", "maze_900", StopReason.DONE, success=name == "gold"),
            episode(name, "maze", "maze_901", StopReason.MAX_ROUNDS, success=False, said=SCRIPT),
            episode(name, "maze", "maze_902", StopReason.ENV_ERROR, success=False),
        ]
        for name in names
    }
    fields: dict[str, object] = {
        "trajectories": expert,
        "selections": {"gold": gold, "llm": llm, f"odd,{IMAGE}": []},
        "episodes": episodes,
        "tables": [Table(f"Table 1 {SCRIPT}", [Column("arm"), Column("maze")], [[Cell("gold"), Cell("61.5")]])],
        "figures": [Figure("figure2", f"Figure 2 {SCRIPT}", f"Bars {IMAGE}", '<svg viewBox="0 0 9 9"></svg>')],
        "downloads": ["tables/table 1.csv"],
    }
    return SiteInput(**{**fields, **changes})  # type: ignore[arg-type]


def write(where: Path, given: SiteInput) -> Path:
    """Writes the report and returns its page."""
    write_to(RunFolder(str(where)), given)
    return where / "index.html"


def write_to(folder: RunFolder, given: SiteInput) -> None:
    """Writes the report."""
    arms = [Arm(name, name, None, None, None, None, None, played) for name, played in given.episodes.items()]
    whole = ReportInput(
        recipe=f"quick{IMAGE}",
        seeds=[0],
        git_commit="abc",
        versions={"ray": "2.60.0"},
        seconds={"collect": 12.0},
        arms=arms,
        trajectories=given.trajectories,
        selections=given.selections,
        specs=SPECS,
        n_expected=dict.fromkeys(SPECS, 3),
    )
    write_report(folder, build_results(whole), given)
