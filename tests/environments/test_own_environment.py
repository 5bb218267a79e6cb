"""An environment in a file of the user's: known by a setting, on Ray's workers too, and checked by a command."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_ray import plugins
from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.check import check
from atlas_ray.environments.client import open_session
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import EnvironmentSpec, Opening, StepResult
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from tests.support.command_line import atlas
from tests.support.docs_blocks import DOCS, blocks
from tests.support.serving import play

LAMPS = next(block.text for block in blocks(DOCS / "own-environment.md") if block.file == "my_lamps.py")
REGISTERED = ("--set", "environments.register.lamps=my_lamps:SPEC", "--set", "envs=[lamps]", "--set", "run=made")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_lamps", raising=False)
    monkeypatch.setenv("ATLAS_PLUGINS", "{}")
    monkeypatch.setattr(registry.ENVIRONMENTS, "_found", dict(registry.ENVIRONMENTS._found))
    monkeypatch.setattr(plugins, "_used", set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_lamps.py").write_text(LAMPS)
    return tmp_path


def test_workers_collect_in_an_environment_that_a_setting_names(folder: Path) -> None:
    done = atlas("collect", *REGISTERED, cwd=folder)
    assert done.returncode == 0, done.stderr
    made = RunFolder(str(folder / "made")).read(TRAJECTORIES)
    assert {t.item_id for t in made} == {f"lamps_{i}" for i in range(5, 20)}
    assert all(t.reward == 1.0 and t.gold for t in made)


def test_a_module_that_is_not_there_is_named_with_where_it_belongs(tmp_path: Path) -> None:
    done = atlas("collect", *REGISTERED, cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot import my_lamps" in done.stderr


def test_another_name_than_its_own_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    validate(EnvironmentsConfig, {"register": {"kitchen": "my_lamps:SPEC"}})
    with pytest.raises(UserError, match="called lamps"):
        registry.get("kitchen")


@pytest.mark.parametrize("given", [{"Kit chen": "a:SPEC"}, {"kitchen": "a.py"}, {"kitchen": "a:SPEC; import os"}])
def test_what_is_no_place_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="module:SPEC"):
        validate(EnvironmentsConfig, {"register": given})
    assert plugins.runtime_env() == {}


def test_the_files_of_registered_modules_are_sent_to_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    validate(EnvironmentsConfig, {"register": {"lamps": "my_lamps:SPEC"}})
    sent = plugins.runtime_env()
    assert sent["py_modules"] == [str(folder / "my_lamps.py")]
    assert json.loads(sent["env_vars"]["ATLAS_PLUGINS"]) == {"atlas_ray.environments": {"lamps": "my_lamps:SPEC"}}


def test_modules_that_ray_started_without_are_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    assert plugins.lacking(["my_lamps", "my_kitchen"]) == ["my_kitchen"]


@pytest.mark.parametrize("place", ["openenv:http://127.0.0.1:8000", "textarena:Mastermind-v0", "json:SPEC"])
def test_what_workers_have_or_nobody_has_is_not_sent(place: str) -> None:
    validate(EnvironmentsConfig, {"register": {"other": place}})
    assert "py_modules" not in plugins.runtime_env()


def test_the_module_of_a_gymnasium_environment_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    validate(EnvironmentsConfig, {"register": {"lamps": "gymnasium:my_lamps:Lamps-v0"}})
    assert plugins.runtime_env()["py_modules"] == [str(folder / "my_lamps.py")]


async def test_the_users_environment_is_served_and_played_from_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code = "import sys; from atlas_ray.cli.main import main; main(sys.argv[1:])"
    command = ["serve", "lamps", "--port", "0", "--set", "register.lamps=my_lamps:SPEC"]
    with subprocess.Popen([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            settings = validate(
                EnvironmentsConfig, {"register": {"lamps": "my_lamps:SPEC"}, "servers": {"lamps": [url]}}
            )
            spec, replies = registry.get("lamps"), ["Action: switch 1", "Action: switch 3"]
            for task in spec.tasks("test"):
                there, here = open_session(spec, settings), LocalSession(spec)
                index = spec.number(task)
                assert await play(there, index, replies) == await play(here, index, replies)
                await there.close()
        finally:
            server.terminate()
            server.wait(30)


class Good:
    """Task i is won by `go`, i times."""

    def reset(self, index: int) -> Opening:
        self.left = index + 1
        return Opening("Say go.", f"{self.left} left.")

    def step(self, action: str) -> StepResult:
        self.left -= action == "go" and self.left > 0
        return StepResult(f"{self.left} left.", float(not self.left), not self.left)


class Drifting(Good):
    def step(self, action: str) -> StepResult:
        said = "".join(random.choices("abcdef", k=20))
        return StepResult(said, super().step(action).reward, False)


class Leaky(Good):
    """All sessions share what is left."""

    shared: dict[str, int] = {}

    left = property(lambda self: self.shared["left"], lambda self, left: self.shared.update(left=left))  # type: ignore[assignment]


class Brittle(Good):
    def step(self, action: str) -> StepResult:
        if action not in ("go", "look", "inventory"):
            raise KeyError(action)
        return super().step(action)


class Broken(Good):
    def step(self, action: str) -> StepResult:
        raise KeyError(action)


class Generous(Good):
    def step(self, action: str) -> StepResult:
        return StepResult("Well done.", 7.0, True)


@pytest.mark.parametrize(
    ("simulator", "broken"),
    [
        (Good, set()),
        (Drifting, {"replay", "sessions apart", "reset begins anew"}),
        (Leaky, {"sessions apart"}),
        (Brittle, {"nonsense is answered"}),
        (Broken, {"a test task can be played"}),
        (Generous, {"rewards are finite, and at most 1 once scaled"}),
    ],
)
async def test_the_check_finds_which_rule_is_broken(simulator: type[Good], broken: set[str]) -> None:
    made: object = simulator
    spec = EnvironmentSpec(
        *("own", "out", 9, "success", "last"),
        simulator=made,  # type: ignore[arg-type]
        probe_actions=("go", "look", "go"),
        n_test=4,
    )
    registry.register(spec)
    found = [finding async for finding in check("own", EnvironmentsConfig())]
    assert {finding.rule.partition(":")[0] for finding in found if not finding.holds} == broken
    assert (found[-1].rule == "cost") == (simulator is not Broken)


def test_the_command_exits_with_1_where_a_rule_is_broken(folder: Path) -> None:
    arguments = ("environments", "check", "lamps", "--set", "register.lamps=my_lamps:SPEC")
    assert atlas(*arguments, cwd=folder).returncode == 0
    (folder / "my_lamps.py").write_text(LAMPS.replace('"Nothing happens."', '""'))
    done = atlas(*arguments, cwd=folder)
    assert done.returncode == 1
    assert "NO" in done.stdout
