"""SciWorld: AgentGym's numbering, ScienceWorld's texts and scores, and Java machines that are shared and may die."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from atlas_ray.environments.builtin.sciworld import machines
from atlas_ray.environments.builtin.sciworld.machines import PER_MACHINE, JavaGame
from atlas_ray.environments.builtin.sciworld.make_paths import LONGEST, played
from atlas_ray.environments.builtin.sciworld.simulator import SciWorld
from atlas_ray.environments.builtin.sciworld.tasks import N_TEST, N_TRAIN, Game, aim, games, paths
from atlas_ray.environments.registry import get
from atlas_ray.errors import EnvironmentFailure, UserError
from tests.support.absent import absent

pytestmark = pytest.mark.skipif(absent("sciworld") is not None, reason=str(absent("sciworld")))
FIND = games().index(Game("find-animal", 0))


@pytest.fixture
def sciworld() -> Iterator[SciWorld]:
    made = SciWorld()
    yield made
    made.close()


def test_tasks_are_numbered_as_agentgym_numbers_them() -> None:
    assert len(games()) == 4639
    assert games()[0] == Game("boil", 0)
    assert games()[120] == Game("use-thermometer", 0)
    assert games()[4638] == Game("identify-life-stages-2", 9)


def test_the_splits_hold_tasks_of_many_kinds_that_fit_the_cap() -> None:
    assert len(paths()) == N_TEST + N_TRAIN
    assert max(map(len, paths().values())) <= LONGEST
    kinds = [games()[index].kind for index in paths()]
    assert len(set(kinds[:N_TEST])) >= 15
    assert len(set(kinds)) >= 21
    spec = get("sciworld")
    splits = [{task.item_id for task in spec.tasks(split)} for split in ("train", "test")]
    assert splits[0].isdisjoint(splits[1])


@pytest.mark.slow
def test_a_sample_of_all_paths_solves_its_tasks() -> None:
    simulator = JavaGame()
    for index in random.Random(0).sample(sorted(paths()), 150):
        simulator.load(games()[index].kind, games()[index].variation)
        simulator.step("look around")
        assert played(simulator, list(paths()[index])) == list(paths()[index]), index


def test_an_aim_is_short() -> None:
    assert aim("Your task is to boil water. For compounds without") == "boil water"
    assert aim("Your task is to find a(n) living thing. First, focus") == "find a living thing"


def test_texts_and_scores_are_scienceworlds(sciworld: SciWorld) -> None:
    first = sciworld.reset(FIND).observation
    assert first.startswith("Your task is to find a(n) animal. First, focus on the thing. Then, move it to the red box")
    assert "\nThis room is called the hallway. In it, you see: \n\tthe agent\n" in first
    assert sciworld.described["task_name"] == "find-animal"
    assert sciworld.step("open door to kitchen").observation == "The door is now open."
    assert sciworld.step("go  to kitchen").observation == "You move to the kitchen."
    assert sciworld.step("dance").observation == "No known action matches that input."
    found = sciworld.step("open door to outside"), sciworld.step("go to outside")
    assert [(step.reward, step.done) for step in found] == [(25, False), (25, False)]


def test_the_wrong_focus_ends_the_task_without_reward(sciworld: SciWorld) -> None:
    sciworld.reset(FIND)
    lost = sciworld.step("focus on agent")
    assert (lost.reward, lost.done) == (-100, True)
    assert get("sciworld").scale(lost.reward) == 0
    assert sciworld.step("look around") == lost


def test_the_expert_recovers_from_other_actions(sciworld: SciWorld) -> None:
    for index in list(paths())[:3]:
        sciworld.reset(index)
        for astray in ("open door to hallway", "go to hallway", "pick up cup", "dance"):
            sciworld.step(astray)
        for _ in range(LONGEST + 6):
            result = sciworld.step(sciworld.expert(random.Random("steady")).action)
            if result.done:
                break
        assert result.reward == 100, games()[index]


def test_a_dead_java_process_is_replaced(sciworld: SciWorld) -> None:
    index = next(iter(paths()))

    def episode(killed: bool) -> list[str]:
        texts = [sciworld.reset(index).observation]
        for number, action in enumerate(paths()[index]):
            if killed and number == 1:
                for machine in machines._machines:
                    machine.process.kill()
                    machine.process.wait()
            texts.append(sciworld.step(action).observation)
        return texts

    assert episode(killed=True) == episode(killed=False)


def test_repeated_deaths_of_java_are_environment_failures(sciworld: SciWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    sciworld.reset(FIND)

    def dies(*_: object) -> str:
        raise EnvironmentFailure("sciworld's Java machine failed")

    monkeypatch.setattr(JavaGame, "step", dies)
    with pytest.raises(EnvironmentFailure):
        sciworld.step("look around")


def test_games_share_java_processes_which_end_when_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machines, "IDLE_SECONDS", 0.0)
    monkeypatch.setattr(machines, "_machines", [])
    taken = [JavaGame() for _ in range(PER_MACHINE + 1)]
    assert [machine.used for machine in machines._machines] == [PER_MACHINE, 1]
    processes = [psutil.Process(machine.process.pid) for machine in machines._machines]
    taken[0].close()
    again = JavaGame()
    assert [machine.used for machine in machines._machines] == [PER_MACHINE, 1], "a free place is taken first"
    del taken[:], again
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    assert machines._machines == []
    assert list(tmp_path.iterdir()) == []


def test_java_processes_need_their_token() -> None:
    from py4j.java_gateway import GatewayParameters, JavaGateway
    from py4j.protocol import Py4JError

    simulator = JavaGame()
    port = machines._machines[-1].gateway.gateway_parameters.port
    with pytest.raises(Py4JError):
        JavaGateway(gateway_parameters=GatewayParameters(port=port)).jvm.java.lang.System.exit(1)
    assert simulator.load("boil", 0).startswith("Your task is to boil water")


def test_a_machine_without_java_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(UserError, match="needs Java") as caught:
        SciWorld()
    assert "openjdk-17-jre-headless" in caught.value.remedy


def test_games_of_one_machine_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """ScienceWorld numbers its objects for all games of a process."""
    game = JavaGame()
    machine = game._machine

    class Watched:
        def step(self, command: str) -> str:
            return "in turn" if machine.turn.locked() else "out of turn"

    own = game._java
    monkeypatch.setattr(game, "_java", Watched())
    assert game.step("wait") == "in turn"
    monkeypatch.setattr(game, "_java", own)
    assert not machine.turn.locked()
    game.close()
