"""A recipe's files and graph: includes, parts made once, seeds, one table alone, and the plan's arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas_ray.chat_template import read_template
from atlas_ray.config import EngineConfig
from atlas_ray.errors import UserError
from atlas_ray.evaluation.intervals import Interval
from atlas_ray.models.engine import EngineModel
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.paper_runs import gather_paper
from atlas_ray.recipes.plan import plan_lines
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.recipes.stages import clean, opened, stages
from atlas_ray.report.paper.ours import ChosenSteps
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.value.selector import ValueSelector
from tests.support.recipe_text import COMMON, recipe, write

JOBS = Path(__file__).parents[2] / "jobs"


def test_what_a_file_includes_lies_under_its_own_keys(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        common=COMMON + "arms: {gold: {name: gold, ratio: 0.3}}\ntrain: {epochs: 3, global_batch_size: 8}",
        more="arms: {all: {name: all}}\ntrain: {epochs: 2}",
        own="include: [common.yaml, more.yaml]\nname: mine\ntrain: {learning_rate: 1.0e-3}",
    )
    found = load_recipe(file, ["train.epochs=1"])
    assert found.name == "mine"
    assert list(found.arms) == ["gold", "all"]
    assert found.train == {"epochs": 1, "global_batch_size": 8, "learning_rate": 1e-3}


@pytest.mark.parametrize("file", ["study", str(JOBS / "study.yaml")])
def test_a_study_that_is_run_as_a_recipe_names_the_command_for_it(file: str) -> None:
    with pytest.raises(UserError, match="is a study") as refused:
        load_recipe(file)
    assert refused.value.remedy == f"atlas study {file}"


def test_a_recipe_of_the_package_is_included_by_its_name(tmp_path: Path) -> None:
    found = load_recipe(write(tmp_path, own="include: [quickstart]\nname: mine"))
    assert (found.name, found.expert) == ("mine", load_recipe("quickstart").expert)


def test_replace_takes_the_place_of_what_is_included(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        common=COMMON + "arms: {gold: {select: {name: llm, ratio: 0.3, votes: 3}}}",
        own="include: common.yaml\narms: {gold: {select: !replace {name: gold, ratio: 0.2}}}",
    )
    selector = load_recipe(file).arms["gold"].select
    assert selector is not None
    assert selector.model_dump() == {"name": "gold", "ratio": 0.2, "rounding": "carry", "noise": 0.0}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("include: [own.yaml]", r"own.yaml includes itself"),
        ("include: [absent.yaml]", r"cannot read .*absent.yaml: .* \(included by own.yaml\)"),
        ("include: [absent]", r"no file and no recipe 'absent' \(included by own.yaml\)"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [echo]", "not valid YAML"),
        ("- a", "holds no mapping"),
        (COMMON + "arms: {a: {like: b}}", "`a` is like `b`, which is no arm"),
        (COMMON + "arms: {a: {name: all}}\nbackbones: {a: x}", "cannot share a name"),
        (COMMON + "arms: {a: {select: {name: all}, start: b}}", "neither `base` nor a backbone"),
        (COMMON + "arms: {a: {name: all}}\ntables: {table1: {atlas: b}}", "names `b`, which is no arm"),
        (COMMON + "arms: {a: {}}", "either `select` or `like`"),
        (COMMON + "arms: {a: {name: all}, b: {like: a, train: false}}", "not trained has a selection of its own"),
        (COMMON + "arms: {a: {name: golb}}", "did you mean gold"),
        (COMMON + "arms: {a: {select: {name: gold}, train: false, control: random}}", "has no control"),
        (COMMON + "arms: {a: {name: gold, control: random}, a-random: {name: all}}", "of the control of `a`"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_recipe(write(tmp_path, own=text))


def test_an_arm_of_some_environments_shares_a_selection_and_is_played_there_alone(tmp_path: Path) -> None:
    found = recipe(
        tmp_path,
        "arms: {gold: {name: gold}, one: {like: gold, envs: [maze]}, two: {select: {name: all}, envs: [maze]}}",
    )
    assert list(found.select) == ["gold", "two"]
    assert found.train["one"].selection == found.train["gold"].selection
    assert found.train["one"].data.envs == found.select["two"].data.envs == ["maze"]
    assert list(found.evaluations[""].models) == ["base", "gold"]
    assert list(found.evaluations["maze"].models) == ["one", "two"]
    assert found.evaluations["maze"].tasks == {"maze": 5}


def test_seeds_repeat_what_is_drawn_and_share_what_is_not(tmp_path: Path) -> None:
    found = recipe(tmp_path, "seeds: 2\narms: {gold: {name: gold}, random: {name: random}}")
    assert list(found.select) == ["gold", "random", "random.seed1"]
    assert [found.select[name].seed for name in found.select] == [0, 0, 1]
    assert list(found.train) == ["gold", "gold.seed1", "random", "random.seed1"]
    assert [found.train[name].seed for name in found.train] == [0, 1, 0, 1]
    assert found.train["gold.seed1"].selection == found.train["gold"].selection
    # greedy play of the same tasks
    assert {config.seed for config in found.evaluations.values()} == {0}
    # one seed more leaves the folders of the first ones as they are
    single = recipe(tmp_path, "arms: {gold: {name: gold}, random: {name: random}}")
    assert single.train["random"] == found.train["random"]


def test_every_seed_draws_its_own_starts_near_by_for_table_6(tmp_path: Path) -> None:
    text = "arms: {gold: {name: gold}}\nverify: {}\n"
    found = recipe(tmp_path, "seeds: 2\n" + text)
    assert {seed: Path(c.run).name for seed, c in found.verify.items()} == {0: "verify", 1: "verify.seed1"}
    assert [c.seed for c in found.verify.values()] == [0, 1]
    assert recipe(tmp_path, text).verify[0] == found.verify[0]
    names = [stage.name for stage in stages(found)]
    assert names[-3:] == ["verify", "verify.seed1", "report"]


def test_table_6_has_the_seeds_mean_and_what_they_differ_by(tmp_path: Path) -> None:
    found = recipe(tmp_path, "seeds: 3\narms: {gold: {name: gold}}\nverify: {}\n")
    for (seed, config), value in zip(found.verify.items(), (0.2, 0.4, 0.9), strict=True):
        result = {"metric": "success", "success": value, "ci95": [value - 0.1, value + 0.2], "distinct_tasks": 10}
        result |= {"reward_ci95": None, "progress_ci95": None, "excluded": {"env_error": seed}, "flagged": False}
        gain = {"difference": value, "ci95": [0.0, 1.0]}
        row = {"env": "maze", "start": "from critical step", "result": result, "gain": gain, "over_control": None}
        RunFolder(config.run).write_json("results.json", {"rows": [row]})
        if value != 0.9:  # the third is not done
            RunFolder(config.run).finish(seconds=1.0)
    start = gather_paper(found).verification["maze"]["from_critical_step"]
    shown = start.figure
    assert (shown.value, shown.low, shown.high) == pytest.approx((30.0, 20.0, 50.0))
    assert (shown.n, shown.seeds, shown.errors) == (20, 2, 1)
    assert shown.spread == pytest.approx(200**0.5)  # of 20 and 40
    assert start.gain == Interval(pytest.approx(30.0), 0.0, 100.0)
    assert start.over_control is None


def test_tiny_backbones_that_ask_for_the_same_novice_share_it(tmp_path: Path) -> None:
    tiny = "{novice: {envs: [maze], role: novice}, hidden_size: 32, layers: 1, heads: 1}"
    text = f"arms: {{gold: {{name: gold}}, b: {{like: gold, start: wide}}}}\nbackbones: {{wide: {tiny}}}"
    found = recipe(tmp_path, text.replace("arms", f"base: {tiny}\narms", 1).replace("base: some/model\n", ""))
    assert list(found.collections()) == ["expert", "novice"]
    assert found.train["b"].model == found.start_of("wide").path == f"{tmp_path}/small/train/wide/model"
    assert found.train["wide"].model != found.train["base"].model


def test_one_table_needs_its_own_arms_and_what_they_are_made_from(tmp_path: Path) -> None:
    text = """
arms:
  gold: {name: gold}
  mix: {combine: [gold, random]}
  random: {name: random}
  other: {name: all}
  like: {like: mix}
tables: {table2: {x: like}, table3: {y: other}}
"""
    found = recipe(tmp_path, text, tables=["table2"])
    assert set(found.arms) == {"gold", "mix", "random", "like"}
    with pytest.raises(UserError, match="no table 'table9'"):
        recipe(tmp_path, text, tables=["table9"])


def test_cleaning_a_table_leaves_what_it_does_not_need_and_what_was_paid_for(tmp_path: Path) -> None:
    text = """
arms: {gold: {name: gold}, paid: {name: llm}, other: {name: all}}
tables: {table2: {x: gold, y: paid}, table3: {z: other}}
"""
    made = [f"{stage}/{arm}" for stage in ("select", "train", "evaluate") for arm in ("gold", "paid", "other")]
    for name in [*made, "collect/expert"]:
        (tmp_path / "small" / name).mkdir(parents=True)
        (tmp_path / "small" / name / "manifest.json").touch()
    clean(recipe(tmp_path, text, tables=["table2"]))
    left = {str(f.parent.relative_to(tmp_path / "small")) for f in (tmp_path / "small").rglob("manifest.json")}
    assert left == {"select/paid", "select/other", "train/other", "evaluate/other"}


def test_an_arm_that_is_not_trained_is_selected_counted_and_goes_no_further(tmp_path: Path) -> None:
    text = """
seeds: 2
arms: {gold: {name: gold}, wide: {select: {name: gold, ratio: 0.5}, train: false}}
tables: {table3: {critical-30: gold, critical-50: wide}}
"""
    found = recipe(tmp_path, text, tables=["table3"])
    assert list(found.select) == ["gold", "wide"]
    assert list(found.train) == ["gold", "gold.seed1"]
    assert "wide" not in found.evaluations[""].models
    assert "select/wide" in [stage.name for stage in stages(found)]
    assert gather_paper(found).chosen == {}  # not made yet
    figures = {"requested": 0.5, "trajectories": 5, "errors": {"no answer": 1}, "steps": 40, "chosen": 12}
    RunFolder(found.select["wide"].run).finish(**figures)
    assert gather_paper(found).chosen == {"wide": ChosenSteps(0.5, 4, 1, 40, 12)}


def test_what_an_extra_arm_costs_is_said_before_it_is_included(tmp_path: Path) -> None:
    text = "expert: {path: AgentGym/AgentTraj-L, envs: [maze]}\narms: {gold: {name: gold}}\n"
    text += "extra_arms: {paid: {select: {name: llm, prompt: paper}, train: false}}\ntables: {table1: {atlas: gold}}"
    common = COMMON.replace("expert: {envs: [maze, textcraft], tasks: 4}\n", "").replace(
        "{maze: 5, textcraft: 6}", "{maze: 5}"
    )
    config = load_recipe(write(tmp_path, own=common + f"runs: {tmp_path}\n" + text))
    (line,) = [line for line in plan_lines(Recipe(config)) if "--with" in line]
    assert line.startswith(
        "not included, add it by --with paid: steps by `llm`, at most 30%, by the paper's prompt; 215 "
    )
    assert line.endswith("at list price")
    assert "dollars for endpoints: none" in plan_lines(Recipe(config))
    assert not [line for line in plan_lines(Recipe(config, ["paid"])) if "not included" in line]
    # the plan counts the prompt that is asked with
    ours = load_recipe(write(tmp_path, own=common + text.replace("prompt: paper", "prompt: improved")))
    assert [line for line in plan_lines(Recipe(ours)) if "--with" in line] != [line]


def test_a_model_behind_an_endpoint_is_asked_only_when_named(tmp_path: Path) -> None:
    text = "arms: {gold: {name: gold}}\nmodels: {closed: {path: gpt-4o-2024-08-06, endpoint: {}}, open: org/model}"
    assert set(recipe(tmp_path, text).evaluations[""].models) == {"base", "open", "gold"}
    assert "closed" in recipe(tmp_path, text, extra=["closed"]).evaluations[""].models


def test_the_papers_recipe_holds_its_settings_and_says_what_it_takes() -> None:
    found = Recipe(load_recipe(str(JOBS / "paper.yaml")))
    train, evaluation = found.train["atlas"], found.evaluations[""]
    assert (train.optimizer, train.learning_rate, train.epochs, train.warmup_ratio) == ("adam", 2e-5, 3, 0.03)
    assert (train.global_batch_size, train.max_length, train.num_workers) == (128, 8192, 4)
    assert getattr(found.select["atlas"].selector, "ratio", None) == 0.3
    assert len(evaluation.tasks) == 14
    assert len(found.config.tables["table1"]) == 19
    plan = plan_lines(found)
    assert plan[0].startswith("data: 11,485 trajectories")
    # 5 rollouts from each of 810 x 5.7 steps
    assert any("23,085 rollouts = 5 x 4,617 starts" in line for line in plan)
    # 6 x 8.03 G x 3.52 G tokens / (0.45 x 312 T) is 336 h; the rest is reading and writing
    assert any(line.startswith("GPU-hours: 341 = 6 x 8.03 G parameters x 3.52 G") for line in plan)
    assert any(line.startswith("dollars for endpoints: $") and "57,425 calls" in line for line in plan)
    # Table 3's two rows above 30 % are asked for and not trained on
    assert {"atlas-40", "atlas-50"} <= set(found.select) - set(found.train)
    # the paper's prompt wherever an LLM chooses; ours is an arm of its own, not run unasked
    asked = {n: c.selector for n, c in found.select.items() if isinstance(c.selector, LlmSelector)}
    assert len(asked) == 8
    assert {selector.prompt for selector in asked.values()} == {"paper"}
    ours = Recipe(found.config, ["atlas-improved"]).select["atlas-improved"].selector
    assert isinstance(ours, LlmSelector)
    assert ours.model_copy(update={"prompt": "paper"}) == asked["atlas"]
    assert any(line.startswith("not included, add it by --with atlas-improved: ") and " $" in line for line in plan)
    for env in ("jericho", "pddl"):  # no server of AgentGym's has them
        assert any(line.startswith(f"{env}: built in, not AgentBoard's (environments.agentboard)") for line in plan)
    given = load_recipe(str(JOBS / "paper.yaml"), [f"environments.agentboard.{e}=x" for e in ("jericho", "pddl")])
    assert not any("AgentBoard" in line for line in plan_lines(Recipe(given)))
    for env in ("babyai", "weather"):  # App. B.3
        value = found.select[f"{env}-value"].selector
        assert isinstance(value, ValueSelector)
        assert (value.estimator, value.gamma, value.rollouts, value.threshold) == ("discounted", 0.99, 5, 0.1)
    assert any("needs keys in the environment: OPENAI_API_KEY" in line for line in plan)


def test_what_scores_and_verifies_has_the_engines_that_evaluation_has() -> None:
    found = Recipe(load_recipe(str(JOBS / "paper.yaml")))
    engine = found.evaluations[""].engine
    assert (engine.replicas, engine.max_model_len) == (4, 8192)
    assert {c.engine for c in [*found.evaluations.values(), *found.verify.values()]} == {engine}
    assert {found.select[name].selector.engine for name in ("babyai-value", "weather-value")} == {engine}  # type: ignore[union-attr]
    perplexity = found.select["perplexity"].selector
    assert (getattr(perplexity, "num_workers", 0), getattr(perplexity, "dtype", "")) == (4, "auto")
    plan = "\n".join(plan_lines(found))
    assert "select/babyai-value: " in plan
    assert plan.count("; 4 engine replica(s)") == 2 + len(found.evaluations)
    assert "one a trajectory; 4 worker(s), bfloat16 on GPUs" in plan
    # where evaluation says nothing, the defaults
    small = Recipe(load_recipe(str(JOBS / "quickstart.yaml"))).select
    assert getattr(small["value"].selector, "engine", None) == EngineConfig()
    assert getattr(small["perplexity"].selector, "num_workers", 0) is None


def test_one_context_for_all_models_of_a_comparison(tmp_path: Path) -> None:
    arms = "arms: {gold: {name: gold}, v: {name: value}, other: {like: gold, start: small}}\nverify: {}\n"
    backbones = "backbones: {small: {path: org/small, max_model_len: 4096}}\n"
    found = recipe(tmp_path, arms + backbones)
    models = found.evaluations[""].models
    assert found.evaluations[""].engine.cap == 8192
    assert {name: getattr(model, "max_model_len", None) for name, model in models.items()} == {
        "base": None,
        "small": 4096,
        "gold": None,
        "v": None,
        "other": 4096,
    }
    longer = recipe(tmp_path, arms + backbones + "train: {max_length: 16384}\n")
    engines = [longer.evaluations[""].engine, longer.verify[0].engine, longer.select["v"].selector.engine]  # type: ignore[union-attr]
    assert [engine.cap for engine in engines] == [16384] * 3
    with pytest.raises(UserError, match=r"the model `m` asks for a context of 9000, but all models .* have 8192"):
        recipe(tmp_path, arms + backbones + "models: {m: {path: org/m, max_model_len: 9000}}\n")


def test_a_backbones_chat_template_goes_where_its_tokenizer_is_read(tmp_path: Path) -> None:
    base = "base: {path: org/base, chat_template: agentlm}\n"
    text = base + "arms: {p: {name: perplexity}, v: {name: value}, w: {name: value, model: org/w}}\n"
    text += "verify: {}\nverify_arm: p\n"
    found = Recipe(load_recipe(write(tmp_path, own=COMMON.replace("base: some/model\n", "") + text)))
    template = read_template("agentlm")
    selectors = [found.select[name].selector for name in ("p", "v", "w")]
    assert [getattr(s, "chat_template", "") for s in selectors] == [template, template, None]
    assert [getattr(s, "model", "") for s in selectors] == ["org/base", "org/base", "org/w"]
    assert (found.train["p"].chat_template, found.verify[0].chat_template) == (template, template)
    models = found.evaluations[""].models
    assert models["base"] == EngineModel(path="org/base", chat_template="agentlm")
    assert models["p"] == found.at("train", "p", "model")  # it brings its template along


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("base: {pth: x}", r"unknown key `base.pth`; did you mean `path`\?"),
        ("base: {path: x, endpoint: {}}", "unknown key `base.endpoint`"),
        ("backbones: {b: {novice: {envs: [maze], tasks: 3}, layer: 3}}", "`backbones.b.layer`; did you mean `layers`"),
        ("backbones: {b: {path: x, chat_template: none}}", "`backbones.b.chat_template`.*no chat template"),
    ],
)
def test_a_wrong_backbone_is_held_against_what_it_is_meant_to_be(tmp_path: Path, text: str, complaint: str) -> None:
    common = COMMON if text.startswith("backbones") else COMMON.replace("base: some/model\n", "")
    with pytest.raises(UserError, match=complaint) as caught:
        load_recipe(write(tmp_path, own=common + "arms: {a: {name: all}}\n" + text))
    assert "valid string" not in str(caught.value)


def test_the_laptops_recipe_is_the_same_graph() -> None:
    paper, laptop = (load_recipe(str(JOBS / f"{name}.yaml")) for name in ("paper", "paper-laptop"))
    assert list(laptop.arms) == list(paper.arms)
    for table, rows in paper.tables.items():
        assert set(laptop.tables[table]) <= set(rows)
        assert laptop.tables[table] or table == "table6"
    for table in paper.tables:
        Recipe(laptop, tables=[table])
    assert not plan_needs(laptop)


def plan_needs(config: Any) -> list[str]:
    return [line for line in plan_lines(Recipe(config)) if line.startswith("needs")]


def test_a_tables_name_narrows_and_a_stages_name_picks() -> None:
    wanted, whole, names = opened(str(JOBS / "paper.yaml"), only=["table2", "select"])
    assert names == ["select"]
    assert set(wanted.arms) == {"all", "atlas", "atlas-random", "non-critical"} < set(whole.arms)


def test_the_plan_counts_what_training_takes_on_disk(tmp_path: Path) -> None:
    arms = "arms: {all: {name: all}, gold: {name: gold, ratio: 0.3}}\nseeds: 2\nassume: {parameters: 8.0e9}\n"

    def said(more: str) -> str:
        (line,) = [line for line in plan_lines(recipe(tmp_path, arms + more)) if line.startswith("disk: ")]
        return line

    assert said("").startswith("disk: at most 256 GB = 64 GB of 4 trained models")  # 4 x 16 + 2 x 96
    assert said("train: {keep_checkpoint: true}").startswith("disk: at most 544 GB = 448 GB")  # 4 x (16 + 96) + 96
    assert said("train: {lora: {}}").startswith("disk: at most 64 GB")
