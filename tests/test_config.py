"""Settings as people write them: odd file names, empty sections, files in other encodings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from atlas_ray.cli.main import app
from atlas_ray.config import DataConfig, _warn_renamed, load
from atlas_ray.errors import UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.selection.baselines import ComplementSelector
from atlas_ray.selection.perplexity.selector import PerplexitySelector
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training.settings import TrainConfig

CASES = Path(__file__).parents[2] / "shared" / "data" / "cases"
ODD = [  # one line of YAML would read each otherwise
    "exports #1.json",
    "a: b.json",
    "[x].json",
    "{y}.json",
    "yes",
    "1.0",
    "null",
    "~",
    "'q'.json",
    '"q".json',
    "*.json",
    "&a.json",
    "- x.json",
    "@x.json",
    "%x",
    "!x.json",
    "a,b.json",
    "? x",
    "> x.json",
    "| x.json",
    "0x1F",
    "2024-01-01",
    " leading",
    "trailing ",
    "#1.json",
    "a=b.json",
    "été.json",
]


@pytest.mark.parametrize("name", ODD)
def test_a_path_from_the_command_line_is_taken_as_it_is(name: str) -> None:
    assert load(SelectConfig, **{"data.path": name}).data.path == name
    assert load(DataConfig, path=name).path == name


def test_a_file_beside_a_folder_of_nearly_its_name(tmp_path: Path) -> None:
    if not CASES.exists():
        pytest.skip(f"the cases {CASES} are not here")
    shutil.copytree(CASES / "names", tmp_path / "names")
    file = tmp_path / "names" / "exports #1.json"
    for command in (["trajectories", "stats", str(file)], ["select", "--data", str(file), "--dry-run"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    assert "exports #1.json" in " ".join(done.output.split())


def test_the_command_line_goes_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "select.yaml"
    file.write_text("data: {path: from-file, limit: 3}\n")
    assert load(SelectConfig, str(file), ["data.limit=4"], **{"data.path": "x"}).data == DataConfig(path="x", limit=4)


@pytest.mark.parametrize(
    ("text", "kind", "given"),
    [
        ("data: {path: x}\nray:\nselector:\n", SelectConfig, {}),
        ("data:\n", SelectConfig, {"data.path": "x"}),
        ("data: {path: x}\nlora:\nray:\nepochs:\n", TrainConfig, {}),
        ("models: {a: b}\ntasks: {maze: 1}\nengine:\nenvironments:\nlimits:\n", EvaluateConfig, {}),
        ("models: {a: b}\ntasks: {maze: 1}\nenvironments: {servers: }\n", EvaluateConfig, {}),
    ],
)
def test_an_empty_section_is_as_if_it_were_not_there(
    tmp_path: Path, text: str, kind: Any, given: dict[str, str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    full = "\n".join(line for line in text.splitlines() if not line.endswith(":")).replace("servers: ", "servers: {}")
    other = tmp_path / "full.yaml"
    other.write_text(full)
    assert load(kind, str(file), **given) == load(kind, str(other), **given)


def test_null_stays_a_value_where_a_setting_takes_it() -> None:
    config = load(SelectConfig, None, ["selector={name: python, call: 'a:b', ratio: null}"], **{"data.path": "x"})
    assert config.selector.ratio is None  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"missing key `data\.path`"):
        load(SelectConfig, None, ["data.limit=1"])


def test_an_empty_section_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "include:\nname: x\nexpert: {path: d}\nbase: m\narms: {random: {name: random}}\ncritical: random\n"
        "train:\nmodels:\nenvironments:\nevaluate: {tasks: {maze: 1}}\n"
    )
    config = load_recipe(str(file))
    assert (config.train, config.models, config.environments.servers) == ({}, {}, {})
    assert Recipe(config).units


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_alike_on_every_machine(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    file = tmp_path / "select.yaml"
    file.write_bytes("data: {path: données.json}\n".encode(encoding))
    assert load(SelectConfig, str(file)).data.path == "données.json"


def test_another_encoding_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "select.yaml"
    file.write_bytes("data: {path: données.json}\n".encode("latin-1"))
    for read in (lambda: load(SelectConfig, str(file)), lambda: load_recipe(str(file))):
        with pytest.raises(UserError, match=r"select.yaml is no text in UTF-8: .* at byte 17") as raised:
            read()
        assert raised.value.remedy == "save it as UTF-8"


def test_a_complement_of_what_was_drawn_under_a_seed_is_of_that_seeds(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    arms = {
        "random": {"name": "random"},
        "rest": {"name": "complement", "reference": "random"},
        "others": {"name": "complement", "reference": "gold"},
        "gold": {"name": "gold"},
    }
    given = {"name": "x", "seeds": 2, "expert": {"path": "d"}, "base": "m", "arms": arms}
    file.write_text(json.dumps(given | {"evaluate": {"tasks": {"maze": 1}}}))
    select = Recipe(load_recipe(str(file))).select
    found = {n: c.selector.reference for n, c in select.items() if isinstance(c.selector, ComplementSelector)}
    assert found == {"rest": "random", "rest.seed1": "random.seed1", "others": "gold", "others.seed1": "gold"}
    order = list(select)
    assert order.index("random.seed1") < order.index("rest.seed1")


@pytest.fixture
def _first_warning() -> None:
    _warn_renamed.cache_clear()


@pytest.mark.usefixtures("_first_warning")
def test_an_old_name_of_a_setting_is_read_and_warned_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("data: {path: x}\nclip: 0.5\nglobal_batch: 4\n")
    config = load(TrainConfig, str(file), ["workers=3"])
    assert (config.max_grad_norm, config.global_batch_size, config.num_workers) == (0.5, 4, 3)
    warned = capsys.readouterr().err.splitlines()
    assert sorted(warned) == [
        f"atlas: the setting `{old}` is called `{new}` now; the next version will refuse the old name"
        for old, new in (("clip", "max_grad_norm"), ("global_batch", "global_batch_size"), ("workers", "num_workers"))
    ]
    assert load(TrainConfig, str(file)).max_grad_norm == 0.5
    select = load(SelectConfig, None, ["selector={name: perplexity, workers: 2}"], **{"data.path": "x"})
    assert select.selector == PerplexitySelector(num_workers=2)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_first_warning")
def test_an_old_name_in_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    arms = {"hard": {"name": "perplexity", "workers": 2}}
    given = {"name": "x", "expert": {"path": "d"}, "base": "m", "arms": arms, "critical": "hard", "train": {"clip": 2}}
    file.write_text(json.dumps(given | {"evaluate": {"tasks": {"maze": 1}}}))
    recipe = Recipe(load_recipe(str(file)))
    assert recipe.train["hard"].max_grad_norm == 2
    assert recipe.select["hard"].selector == PerplexitySelector(num_workers=2, model="m")
    assert capsys.readouterr().err.count("is called") == 2


@pytest.mark.parametrize(
    ("written", "overrides", "expected"),
    [
        ("clip: 0.5", ["max_grad_norm=1"], 1),
        ("max_grad_norm: 0.5", ["clip=1"], 1),
        ("clip: 0.5\nmax_grad_norm: 0.7", ["clip=1"], 1),
        ("max_grad_norm: 0.5\nclip: 0.7", ["max_grad_norm=1"], 1),
    ],
)
def test_of_the_old_and_the_new_name_the_last_given_holds(
    tmp_path: Path, written: str, overrides: list[str], expected: float
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"data: {{path: x}}\n{written}\n")
    assert load(TrainConfig, str(file), overrides).max_grad_norm == expected


def test_a_bad_value_under_an_old_name_is_told_by_the_new_one() -> None:
    with pytest.raises(UserError, match=r"`max_grad_norm`: input should be greater than 0"):
        load(TrainConfig, None, ["clip=-1"], **{"data.path": "x"})


def test_an_unknown_key_is_answered_with_new_names_alone() -> None:
    with pytest.raises(UserError, match=r"unknown key `global_batches`; did you mean `global_batch_size`\?"):
        load(TrainConfig, None, ["global_batches=3"], **{"data.path": "x"})
