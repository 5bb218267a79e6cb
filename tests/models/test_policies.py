"""Who plays: backends of the package and of others, by what a section of `models` says."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import EngineConfig, validate
from atlas_ray.errors import UserError
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.endpoint import EndpointModel
from atlas_ray.models.engine import EngineModel, EngineSpec
from atlas_ray.models.protocol import opened
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.manifest import completed, identity
from atlas_ray.runs.tables import EPISODES
from tests.support.command_line import atlas

OWN = """
from atlas_ray.models.policies import ModelConfig
from atlas_ray.rollouts.pool import FixedSpec
from atlas_ray.rollouts.scripted import ScriptedPolicy


class Actor(ModelConfig):
    path: str = "actor"
    role: str = "expert"

    def spec(self, name, engine):
        return FixedSpec(Named(name, self.role))


class Named(ScriptedPolicy):
    def __init__(self, name, role):
        super().__init__(role)
        self.name = f"{name}, {role}"
"""


class Closing:
    """A spec, and the model that it makes."""

    gpus, closed = 0, False

    async def build(self) -> Closing:
        return self

    async def close(self) -> None:
        self.closed = True


async def test_a_model_ends_with_its_block_whichever_way_that_is_left() -> None:
    async with opened(Closing()) as model:
        assert not model.closed
    assert model.closed
    broken = Closing()
    with pytest.raises(KeyboardInterrupt):
        async with opened(broken):
            raise KeyboardInterrupt
    assert broken.closed


@pytest.mark.parametrize("made", [EngineSpec, EpisodeRequest])
def test_what_may_gain_fields_is_not_filled_by_place(made: type) -> None:
    by_place = [field.name for field in fields(made) if not field.kw_only]
    assert by_place == (["name", "model", "config"] if made is EngineSpec else ["task", "sampling"])


def config(run: Path, **models: Any) -> EvaluateConfig:
    return validate(EvaluateConfig, {"run": str(run), "models": models, "tasks": {"maze": 4}})


def test_a_backend_in_one_file_outside_of_the_package_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_actors_of_this_test.py").write_text(OWN)
    own = {"policy": "my_actors_of_this_test:Actor"}
    models = {"good": own, "poor": own | {"role": "novice"}}
    assert stage.plan_lines(config(tmp_path / "run", **models))[-1].endswith("by local engines; no cost")
    values = ("run=run", f"models={json.dumps(models)}", "tasks={maze: 4}")
    done = atlas("evaluate", *(word for value in values for word in ("--set", value)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for arm, role in (("good", "expert"), ("poor", "novice")):
        folder = RunFolder(str(tmp_path / "run")).child(arm)
        episodes = folder.read(EPISODES)
        assert {episode.policy for episode in episodes} == {f"{arm}, {role}"}
        assert arm == "poor" or all(episode.success for episode in episodes)
        assert "dollars" not in (folder.finished or {})


def test_a_section_says_which_backend_plays(tmp_path: Path) -> None:
    engine, endpoint = EngineConfig(replicas=3), {"concurrency": 7}
    played = config(tmp_path, a="org/a", b={"path": "org/b"}, c={"path": "c", "endpoint": endpoint}).played
    assert [type(model) for model in played.values()] == [EngineModel, EngineModel, EndpointModel]
    pools = [model.pool(engine) for model in played.values()]
    assert [(pool.replicas, pool.episodes_in_flight) for pool in pools] == [(3, 256), (3, 256), (1, 7)]
    assert [[use.path for use in model.models()] for model in played.values()] == [["org/a"], ["org/b"], []]


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"path": "x", "policy": "no_such"}, "no policy backend is called 'no_such'"),
        ({"path": "x", "policy": "pathlib:Path"}, "pathlib has no policy backend Path; it must be a ModelConfig"),
        ({"path": "x", "policy": "endpoint"}, "missing key `models.a.endpoint`"),
        ({"path": "x", "polcy": "engine"}, "did you mean `policy`?"),
    ],
)
def test_a_wrong_section_is_one_sentence(tmp_path: Path, section: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        config(tmp_path, a=section)
    assert complaint in refused.value.what
    assert "\n" not in refused.value.what


def test_runs_that_named_no_backend_go_on(tmp_path: Path) -> None:
    today = identity(config(tmp_path, a="org/a", b={"path": "org/b"}, c={"path": "c", "endpoint": {}}))
    before = today | {"models": {k: _unnamed(section) for k, section in today["models"].items()}}
    assert before != today
    assert completed(before, EvaluateConfig) == (today, "")


def _unnamed(section: str | dict[str, Any]) -> str | dict[str, Any]:
    return section if isinstance(section, str) else {k: v for k, v in section.items() if k != "policy"}
