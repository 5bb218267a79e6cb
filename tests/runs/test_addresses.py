"""Where runs lie: a URI's query stays behind it, `atlas status` reads from anywhere, credentials stay out."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from atlas_ray.address import below, beside, name_of, refuse_credentials
from atlas_ray.config import load
from atlas_ray.errors import UserError
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.runs import status
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.status import status_table, watch_status
from atlas_ray.runs.tables import EPISODES
from atlas_ray.selection.settings import SelectConfig
from tests.support.records import Config, an_episode
from tests.support.store import Store

S3 = "s3://bucket/runs?endpoint_override=127.0.0.1:9000&scheme=http"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("place", "names", "expected"),
    [
        ("runs", ["a"], "runs/a"),
        ("/runs/", ["a", "b"], "/runs/a/b"),
        ("what?/runs", ["a"], "what?/runs/a"),  # a folder may be called so; only a URI has a query
        ("gs://bucket/runs/", ["a"], "gs://bucket/runs/a"),
        (S3, ["a", "b"], "s3://bucket/runs/a/b?endpoint_override=127.0.0.1:9000&scheme=http"),
        ("s3://bucket/runs/?region=x", ["a"], "s3://bucket/runs/a?region=x"),
    ],
)
def test_the_query_stays_behind_what_lies_below(place: str, names: list[str], expected: str) -> None:
    assert below(place, *names) == expected
    assert name_of(below(place, *names)) == names[-1]
    assert beside(below(place, *names), "z") == below(place, *names[:-1], "z")


def test_a_neighbour_of_a_relative_path_is_relative() -> None:
    assert beside("gold", "llm") == "llm"


def test_all_that_a_recipe_writes_lies_below_its_uri() -> None:
    recipe = Recipe(load_recipe(str(ROOT / "jobs" / "paper-laptop.yaml"), [f"runs={S3}"]))
    runs = [c.run for c in recipe.collections().values()] + [c.run for c in recipe.select.values()]
    runs += [c.run for c in recipe.train.values()] + [c.run for c in recipe.evaluations.values()]
    runs += [c.run for c in recipe.verify.values()]
    path, query = S3.split("?")
    for run in runs:
        assert run.startswith(f"{path}/{recipe.config.name}/")
        assert run.endswith(f"?{query}")
        assert run.count("?") == 1
    trained = next(iter(recipe.train))
    assert recipe.evaluations[""].models[trained] == below(S3, recipe.config.name, "train", trained, "model")


@pytest.mark.parametrize("kind", ["path", "file://", "s3://"])
def test_status_reads_a_run_from_anywhere(kind: str, tmp_path: Path, store: Store) -> None:
    root = {"path": str(tmp_path), "file://": f"{tmp_path.as_uri()}?a=b", "s3://": store.uri("bucket/runs")}[kind]
    for name in ("evaluate/base", "evaluate/gold"):
        folder = RunFolder(below(root, *name.split("/")))
        folder.begin(Config(), stage="evaluate")
        with folder.writer(EPISODES) as writer:
            writer.add(an_episode(1))
            writer.add(an_episode(2, error="engine died"))
    folder.finish(seconds=3)
    columns = [[*map(str, column.cells)] for column in status_table([root]).columns]
    assert columns == [
        [below(root, "evaluate", "base"), below(root, "evaluate", "gold")],
        ["evaluate", "evaluate"],
        ["unfinished", "finished"],
        ["1 episodes", "1 episodes"],
        ["", "seconds 3"],
    ]


def test_a_watched_run_is_shown_until_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, waited = RunFolder(str(tmp_path)), list[float]()
    folder.begin(Config(), stage="select")

    def wait(seconds: float) -> None:
        waited.append(seconds)
        folder.finish(errors=0)

    monkeypatch.setattr(status.time, "sleep", wait)
    console = Console(record=True, width=200, file=StringIO())
    watch_status([str(tmp_path)], console)
    assert len(waited) == 1
    assert "finished" in console.export_text()


SECRETS = [
    "s3://AKIAEXAMPLE:hush/hush+hush@bucket/runs",
    "s3://AKIAEXAMPLE%3Ahush@bucket/runs",
    "gs://user:hush@bucket/x",
    "s3://bucket/x?region=a&secret_key=hush",
    "s3://bucket/x?access_key=hush",
    "s3://bucket/x?session%5Ftoken=hush",
    "abfss://container@account.dfs.core.windows.net/x?sas_token=hush",
    "http://user:hush@127.0.0.1:8000",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_credentials_in_an_address_are_refused_and_not_repeated(uri: str) -> None:
    for refused in (
        lambda: RunFolder(uri),
        lambda: load(SelectConfig, None, [f"data.path={uri}"], run="x"),
        lambda: load(SelectConfig, None, [f"data.path {uri}"], run="x"),
        lambda: load(SelectConfig, None, ["data.path=x"], run=uri),
        lambda: load_recipe(str(ROOT / "jobs" / "quickstart.yaml"), [f"runs={uri}"]),
    ):
        with pytest.raises(UserError, match="set them in the environment") as told:
            refused()
        assert "hush" not in str(told.value)
        assert told.value.exit_code == 2
        assert told.value.__cause__ is None


@pytest.mark.parametrize(
    "address",
    [
        S3,
        "gs://anonymous@bucket/x",
        "http://127.0.0.1:8000/a@b",
        "https://api.openai.com/v1?version=1&monkey=1",
        "maze/maze_1@0+0",
        "abfss://container@account.dfs.core.windows.net/x?credential_kind=cli",
    ],
)
def test_addresses_without_credentials_are_not_refused(address: str) -> None:
    refuse_credentials({"servers": [address]})
