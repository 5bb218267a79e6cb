"""The three opening turns: those of the training data in evaluation too, or AgentGym's, or a sentence why not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import validate
from atlas_ray.environments import client
from atlas_ray.environments.agentgym.checkout import checkout_opening
from atlas_ray.environments.builtin.wordle import vocabulary_lines, vocabulary_text
from atlas_ray.environments.openings import OpeningTemplate, surroundings
from atlas_ray.environments.protocol import MALFORMED, Opening
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.openings import examine, find_openings
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.protocol import Policy, Reply, Sampling
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import RecipeConfig
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Message, Task
from tests.support.agentgym import AgentGym
from tests.support.episodes import episode, winning
from tests.support.openings import TESTED, TEXTS, TRAINED, TWELVE, checkout, row, rows_like, server, settings, written
from tests.support.serving import RECORDED, remote, served

RULES = "Reach the goal.\n\nExample:\nGoal at 1, 1.\nYou may go up.\nBegin:\n"


@dataclass(frozen=True)
class Mute:
    """A model, by the name of its folder, that says one thing."""

    name: str
    model: str
    engine: object = None
    revision: str | None = None
    chat_template: str | None = None
    gpus: int = 0

    async def build(self) -> Policy:
        return self

    async def load(self, spec: Mute) -> None: ...

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Mute:
        return self

    async def generate(self, seed: int) -> Reply:
        return Reply("Thought: no\nAction: look")

    def append(self, message: Message) -> None: ...


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0)


@pytest.fixture
def references() -> dict[str, Any]:
    """What AgentGym's clients put before the first reply."""
    file = RECORDED / "openings.json"
    if not file.exists():
        pytest.skip(f"the reference texts {file} are not here")
    return json.loads(file.read_text())


@pytest.fixture
def serving() -> Iterator[Any]:
    """Starts servers; gives the setting that names them."""
    with contextlib.ExitStack() as stack:
        yield lambda *servers: {"servers": {s.env: [stack.enter_context(served(s.app()))] for s in servers}}


@pytest.mark.usefixtures("ray_cluster")
def test_evaluation_opens_as_the_training_data_in_each_of_the_twelve(
    tmp_path: Path, references: dict[str, Any], serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", Mute)
    data = written(tmp_path / "data.json", [r for env in TWELVE for r in rows_like(env, references[env])])
    found = settings(tmp_path, TWELVE, openings={"data": {"path": data}}, environments=serving(*map(server, TWELVE)))
    stage.evaluate(found)
    played = {e.item_id: e.messages[:3] for e in RunFolder(found.run).child("base").read(EPISODES)}
    assert len(played) == 2 * len(TWELVE)
    for env in TWELVE:
        for made in rows_like(env, references[env], TESTED):
            assert [m.content for m in played[made["item_id"]]] == [t["value"] for t in made["conversations"][:3]]
            assert [m.role for m in played[made["item_id"]]] == ["user", "assistant", "user"]
    noted = RunFolder(found.run).child("base").read_json("manifest.json")["openings"]
    assert list(noted) == list(TWELVE)
    assert {opening["source"] for opening in noted.values()} == {"training data (4 of 4 trajectories)"}
    assert noted["maze"]["before"] == references["maze"]["first_observation_prefix"]
    assert (noted["maze"]["instruction"], noted["maze"]["acknowledgement"]) == tuple(
        turn["value"] for turn in references["maze"]["react"]
    )
    assert (
        noted["wordle"]["before"] + "{{vocab}}" + noted["wordle"]["after"] == references["wordle"]["first_observation"]
    )
    assert len({opening["digest"] for opening in noted.values()}) == len(TWELVE)


def test_environments_without_data_open_as_agentgyms_client(
    tmp_path: Path, references: dict[str, Any], serving: Any
) -> None:
    envs = ("academia", "sheet", "maze", "wordle", "webshop")
    data = written(tmp_path / "data.json", rows_like("babyai", references["babyai"]))
    found = find_openings(
        settings(
            tmp_path,
            ("babyai", *envs),
            openings={"data": {"path": data}, "agentgym": checkout(tmp_path, references)},
            environments=serving(*map(server, ("babyai", *envs))),
        )
    )
    for env in envs:
        template = found.of(Task(env, f"{env}_42"))
        assert template is not None
        assert [template.instruction, template.acknowledgement] == [t["value"] for t in references[env]["react"]]
        told = vocabulary_text(["crane", "solar"]) if env == "wordle" else "Task 42."
        shown = template.applied(get(env), Opening("", told)).observation
        assert shown == {
            "maze": references["maze"].get("first_observation_prefix", "") + told,
            "wordle": references["wordle"]["first_observation"].replace("{{vocab}}", "crane\nsolar"),
        }.get(env, told)
    assert found.environments["sheet"].source == "AgentGym's agentenv/agentenv/envs/sheet.py"
    assert found.environments["babyai"].source == "training data (4 of 4 trajectories)"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("\"value\": 'Play maze.'", '"value": f"Play {where()}."', "the first two turns of maze"),
        ("ConversationMessage({", "ConversationMessage(*{", "the first two turns of maze"),
        ("self.first_observation + ", "compose(self._long_first_observation) + ", "the first observation of maze"),
        ("class MazeEnvClient", "class", "SyntaxError"),
    ],
)
def test_a_client_that_cannot_be_read_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    checkout(tmp_path, TEXTS | {"maze": TEXTS["maze"] | {"first_observation_prefix": RULES}})
    file = tmp_path / "agentenv" / "agentenv" / "envs" / "maze.py"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=said):
        checkout_opening(str(tmp_path), "maze")


def test_an_unreadable_client_has_its_own_remedy(tmp_path: Path, serving: Any) -> None:
    """It has its own remedy, beside that of an environment which opens otherwise; a path without clients ends it."""
    there = checkout(tmp_path, TEXTS)
    client = Path(there) / "agentenv" / "agentenv" / "envs" / "academia.py"
    client.write_text(client.read_text().replace("'Play academia.'", "ask()"))
    rows = [row(f"maze_{i}", "Walk.", "Yes.", f"{RULES}task {i} is here, step 0") for i in TRAINED]
    openings = {"data": {"path": written(tmp_path / "data.json", rows)}, "agentgym": there}
    environments = serving(AgentGym("maze"), AgentGym("academia"), AgentGym("sheet"))
    envs = ("maze", "academia", "sheet")
    found = settings(tmp_path, envs, openings=openings, environments=environments)
    assert {d.env for d in examine(found).differences} == {"maze", "academia"}
    with pytest.raises(UserError, match="2 things are wrong") as raised:
        find_openings(found)
    maze, academia = re.split(r"\n  \d\. ", raised.value.what)[1:]
    assert "openings.differing: [maze]" in maze
    assert "check out AgentGym as it is published, or leave openings.agentgym out" in academia
    nowhere = openings | {"agentgym": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match="nowhere is no checkout of AgentGym"):
        examine(settings(tmp_path, envs, openings=nowhere, environments=environments))


def test_a_path_without_clients_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkout of AgentGym"):
        checkout_opening(str(tmp_path), "maze")
    assert checkout_opening(checkout(tmp_path, TEXTS), "jericho") is None


def test_a_checkout_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    checkout(tmp_path / "AgentGym", TEXTS)
    read = checkout_opening("~/AgentGym", "sheet")
    assert read is not None
    assert read[1] == "agentenv/agentenv/envs/sheet.py"


def test_a_server_with_other_tasks_is_named_with_the_first_difference(tmp_path: Path, serving: Any) -> None:
    other, alike = AgentGym("maze"), AgentGym("textcraft")
    rows = [row(f"maze_{i}", "Walk.", "Yes.", f"{RULES}task {i} is here, step 0") for i in TRAINED]
    rows += [row(f"textcraft_{i}", "Craft.", "Yes.", f"task {i}, step 0") for i in TRAINED]
    data = {"data": {"path": written(tmp_path / "data.json", rows)}}
    given = {"openings": data, "environments": serving(other, alike)}
    found = settings(tmp_path, ("maze", "textcraft"), **given)
    with pytest.raises(UserError) as raised:
        find_openings(found)
    assert raised.value.what.startswith("maze: evaluation does not open as the training data does:")
    assert "maze_17: turn 3 has 'Reach the goal." in raised.value.what
    assert "the environment tells 'task 17, step 0' (character 1)" in raised.value.what
    assert "openings.differing: [maze]" in raised.value.remedy
    assert {d.env for d in examine(found).differences} == {"maze"}
    accepted = find_openings(
        settings(tmp_path, ("maze", "textcraft"), **given | {"openings": data | {"differing": ["maze"]}})
    )
    assert accepted.of(Task("maze", "maze_17")) == OpeningTemplate("Walk.", "Yes.")
    assert accepted.of(Task("textcraft", "textcraft_17")) == OpeningTemplate(
        "Craft.", "Yes.", recorded="task 17, step 0"
    )


def test_disagreeing_rows_are_named(tmp_path: Path, serving: Any) -> None:
    rows = [row(f"maze_{i}", f"Walk {i % 2}.", "Yes.", f"task {i}, step 0") for i in (1, 2, 3, 4)]
    rows += [row(f"babyai_{i}", "Look.", "Yes.", f"{RULES * (i == 3)}task {i}, step 0") for i in (1, 2, 3)]
    data = written(tmp_path / "data.json", rows)
    given = {"openings": {"data": {"path": data}}, "environments": serving(AgentGym("maze"), AgentGym("babyai"))}
    maze, babyai = examine(settings(tmp_path, ("maze", "babyai"), **given)).differences
    assert (maze.env, maze.item_id) == ("maze", None)
    assert "most of its 4 trajectories; the commonest begin 2" in maze.reason
    assert (babyai.env, babyai.item_id) == ("babyai", "babyai_3")
    assert "before the environment's text the data has 'Reach the goal" in babyai.reason
    assert "but '' in babyai_1" in babyai.reason


def test_a_server_that_does_not_answer_is_named_before_anything_is_played(tmp_path: Path) -> None:
    data = written(tmp_path / "data.json", [row("maze_1", "Walk.", "Yes.", "task 1, step 0")])
    servers = {"servers": {"maze": ["http://127.0.0.1:1"]}}
    found = settings(tmp_path, ("maze",), openings={"data": {"path": data}}, environments=servers)
    (different,) = examine(found).differences
    assert str(different).startswith("maze_1: it cannot be started: maze at http://127.0.0.1:1")


def test_a_recorded_task_that_cannot_start_is_passed_over(tmp_path: Path, serving: Any) -> None:
    rows = [row(f"maze_{i}", "Walk.", "Yes.", f"{RULES}task {i}, step 0") for i in (999, 1, 998, 2)]
    data = {"data": {"path": written(tmp_path / "data.json", rows)}}
    found = find_openings(settings(tmp_path, ("maze",), openings=data, environments=serving(AgentGym("maze"))))
    assert found.of(Task("maze", "maze_42")) == OpeningTemplate("Walk.", "Yes.", RULES)
    rows = rows[::2]
    data = {"data": {"path": written(tmp_path / "data.json", rows)}}
    lost = examine(settings(tmp_path, ("maze",), openings=data, environments=serving(AgentGym("maze")))).differences
    assert [d.item_id for d in lost] == ["maze_999", "maze_998"]


def test_tasks_match_by_number_and_own_openings_are_logged(
    tmp_path: Path, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = {
        "data": {"path": written(tmp_path / "data.json", [row("lmrlgym_maze_17", "Walk.", "Yes.", "task 17, step 0")])}
    }
    servers = serving(AgentGym("maze"), AgentGym("sheet"))
    with caplog.at_level(logging.WARNING):
        found = find_openings(settings(tmp_path, ("maze", "sheet"), openings=data, environments=servers))
    assert found.of(Task("maze", "maze_17")) == OpeningTemplate("Walk.", "Yes.", recorded="task 17, step 0")
    assert found.of(Task("maze", "maze_1")) == OpeningTemplate("Walk.", "Yes.")
    assert found.of(Task("sheet", "sheet_1")) is None
    assert found.environments["sheet"].source == "the environment's own, in this package's words"
    assert "sheet: no training data and no AgentGym client of it is at hand" in caplog.text


def test_built_in_environments_keep_their_own_opening_without_data(tmp_path: Path) -> None:
    found = find_openings(validate(EvaluateConfig, {"models": {"base": "x"}, "tasks": {"maze": 2}}))
    assert found.of(Task("maze", "maze_1")) is None
    noted = found.environments["maze"].record()
    assert (noted["source"], noted["instruction"]) == ("the environment's own", get("maze").instruction)
    assert noted["acknowledgement"] == "OK"


def test_a_run_with_other_openings_is_not_resumed(tmp_path: Path, serving: Any) -> None:
    environments = serving(AgentGym("maze"))
    file, folder = tmp_path / "data.json", RunFolder(str(tmp_path / "run"))
    for instruction, refused in (("Walk.", False), ("Walk.", False), ("Run.", True)):
        data = written(file, [row(f"maze_{i}", instruction, "Yes.", f"task {i}, step 0") for i in TRAINED])
        found = settings(tmp_path, ("maze",), openings={"data": {"path": data}}, environments=environments)
        folder.begin(found, stage="evaluate")
        with pytest.raises(UserError, match="open otherwise in maze") if refused else contextlib.nullcontext():
            find_openings(found).write_to(folder)
    assert folder.read_json("manifest.json")["openings"]["maze"]["instruction"] == "Walk."


def test_the_old_name_of_the_setting_still_works(caplog: pytest.LogCaptureFixture) -> None:
    values = {"models": {"a": "x"}, "tasks": {"maze": 2}}
    with caplog.at_level(logging.WARNING):
        found = validate(EvaluateConfig, values | {"instructions": "data.json"})
    assert found.openings is not None
    assert found.openings.data is not None
    assert found.openings.data.path == "data.json"
    assert "`instructions` is now `openings" in caplog.text


def test_a_recipe_evaluates_under_its_training_datas_openings() -> None:
    values: dict[str, Any] = {"name": "r", "base": "m", "arms": {"all": {"name": "all"}}, "critical": "all"}

    def openings(expert: dict[str, Any], **evaluate: Any) -> Any:
        given = values | {"expert": expert, "evaluate": {"tasks": {"maze": 1}} | evaluate}
        found = Recipe(validate(RecipeConfig, given)).evaluations[""].openings
        return found and found.model_dump(exclude_defaults=True)

    assert openings({"path": "trajectories"}) == {"data": {"path": "trajectories"}}
    assert openings({"path": "trajectories"}, openings={"agentgym": "there"}) == {
        "data": {"path": "trajectories"},
        "agentgym": "there",
    }
    assert openings({"path": "trajectories"}, openings=None) is None
    assert openings({"path": "trajectories"}, instructions="others") == {"data": {"path": "others"}}
    assert openings({"envs": ["maze"]}) is None


@pytest.mark.parametrize(
    ("env", "recorded", "told", "around"),
    [
        ("maze", f"{RULES}Goal at 2, 2. You are at 1, 1.", "Goal at 2, 2. You are at 1, 1.", (RULES, "", False)),
        ("maze", f"{RULES}Goal at 1, 1.", "Goal at 1, 1.", (RULES, "", False)),  # as in the example among the rules
        ("maze", f"{RULES}Goal at 2, 2. Walls left.", "Goal at 2, 2. Ways right.", None),
        ("wordle", "Guess.\ncrane\nsolar\nNow!", vocabulary_text(["crane", "solar"]), ("Guess.\n", "\nNow!", True)),
        ("wordle", "Guess.\nsolar\ncrane\nNow!", vocabulary_text(["crane", "solar"]), None),
        ("sciworld", "Boil it.\nA cup.\nA stove.", "Boil it.\nA stove.\nA cup.", ("", "", False)),
        ("textcraft", "Recipes:\nb from c\n\nGoal: a", "Recipes:\nd from e\n\nGoal: a", ("", "", False)),
        ("textcraft", "Recipes:\nb from c\n\nGoal: a", "Recipes:\nd from e\n\nGoal: b", None),
        ("textcraft", "Hello.\nRecipes:\nb from c\n\nGoal: a", "Recipes:\nd from e\n\nGoal: a", None),
        ("weather", "How warm is it?", "", None),
    ],
)
def test_surroundings_of_the_environments_text(env: str, recorded: str, told: str, around: Any) -> None:
    assert surroundings(get(env), recorded, told) == around


def test_a_vocabulary_is_restored() -> None:
    for words in (["crane", "solar"], ["c r a n e", "s o l a r"], ["a"]):
        assert vocabulary_lines(vocabulary_text(words)) == "\n".join(words)
    assert vocabulary_lines("Guess a word.") == "Guess a word."


_ERROR_TURN = """
class {name}EnvClient(BaseEnvClient):
    conversation_start = (
        ConversationMessage({{"from": "human", "loss": None, "value": "Play."}}),
        ConversationMessage({{"from": "gpt", "loss": False, "value": "Yes."}}),
    )

    def step(self, action):
        found = re.findall(PATTERN, action)
        if len(found) > 1:
            return StepOutput(state="One action " + 'at a time.', reward=0, done=False)
        return StepOutput(state=self._post("step", found), reward=0, done=False)
"""


def test_two_actions_are_answered_in_agentgyms_words_where_a_checkout_has_them(tmp_path: Path, serving: Any) -> None:
    data = written(tmp_path / "data.json", [row(f"babyai_{i}", "Go.", "Yes.", f"task {i}, step 0") for i in TRAINED])
    clients = Path(checkout(tmp_path, TEXTS)) / "agentenv" / "agentenv" / "envs"
    for env, name in (("babyai", "BabyAI"), ("textcraft", "TextCraft")):
        (clients / f"{env}.py").write_text(_ERROR_TURN.format(name=name))
    envs = ("babyai", "textcraft", "maze")
    environments = serving(*map(AgentGym, envs))
    given = {"openings": {"data": {"path": data}, "agentgym": str(tmp_path)}, "environments": environments}
    found = find_openings(settings(tmp_path, envs, **given))
    templates = {env: found.of(Task(env, f"{env}_42")) for env in envs}
    assert {env: one and one.error_turn for env, one in templates.items()} == {
        "babyai": "One action at a time.",
        "textcraft": "One action at a time.",
        "maze": None,
    }
    assert "; the error turn AgentGym's agentenv/agentenv/envs/babyai.py" in found.environments["babyai"].source

    async def told(opening: OpeningTemplate | None) -> list[str]:
        (url,) = environments["servers"]["textcraft"]
        async with remote("textcraft", url) as session:
            played = await episode(session, ["Action: go 1\nAction: go 2", *winning("textcraft")], opening=opening)
        assert played.success
        return [m.content for m in played.messages if m.role == "user"][2:4]

    assert asyncio.run(told(templates["textcraft"])) == ["One action at a time.", "task 7, step 1"]
    assert asyncio.run(told(None)) == [MALFORMED, "task 7, step 1"]
