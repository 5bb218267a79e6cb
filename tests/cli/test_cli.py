"""The command line: light to start, and every mistake is a sentence with a remedy and an exit code."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_ray.config import DataConfig
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.baselines import AllSelector
from atlas_ray.selection.settings import SelectConfig
from tests.support.command_line import atlas
from tests.support.records import a_row
from tests.support.rows import write_agenttraj
from tests.support.training import a_trajectory, write_base

HEAVY = (
    *("torch", "torch._dynamo", "triton", "sympy", "ray", "vllm", "transformers", "accelerate"),
    *("matplotlib", "openai", "pandas", "scipy", "sklearn", "datasets"),
)
MODELS = {"torch", "torch._dynamo", "sympy", "transformers"}  # what transformers' models import


@pytest.mark.parametrize(
    "module", ["atlas_ray", "atlas_ray.cli.main", "atlas_ray.config", "atlas_ray.environments.registry"]
)
def test_light_imports_pull_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def imported_by(arguments: list[str], folder: Path) -> tuple[str, list[str], int]:
    """What a command prints, which heavy libraries it has imported by its end, and how many modules in all."""
    # what is kept away stands among the modules as None
    listing = f"[m for m in {HEAVY!r} if sys.modules.get(m)], sum(map(bool, sys.modules.values()))"
    code = f"import atexit, json, sys; atexit.register(lambda: print(json.dumps([{listing}])))"
    code += f"; from atlas_ray.cli.main import main; sys.argv[1:] = {arguments!r}; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    *said, listed = done.stdout.splitlines()
    heavy, count = json.loads(listed)
    return "\n".join(said), heavy, count


@pytest.mark.parametrize(
    ("arguments", "says", "heavy", "most"),
    [
        (["--help"], "view-mask", set(), 380),
        (["run", "quickstart", "--dry-run"], "# makespan", set(), 870),
        (["doctor", "quickstart"], "built-in tasks", set(), 850),
        (["doctor", "quickstart", "--set", "base=base"], "template ends replies", MODELS | {"accelerate"}, 3600),
        (["view-mask", "--model", "base", "--data", "data.json"], ">>", {"transformers", "pandas"}, 1600),
        (
            ["train", "--dry-run", "--set", "model=base", "--data", "data.json"],
            "# memory of a worker",
            MODELS | {"pandas"},
            3500,
        ),
    ],
)
def test_a_look_imports_what_it_needs_and_little_else(
    arguments: list[str], says: str, heavy: set[str], most: int, tmp_path: Path
) -> None:
    """Start-up is imports: of `heavy` each takes a tenth of a second, `most` is a tenth more than there are."""
    write_base(tmp_path / "base")
    write_agenttraj(tmp_path / "data.json", [a_trajectory(1, 3)])
    said, found, count = imported_by(arguments, tmp_path)
    assert says in said
    assert set(found) <= heavy
    assert count <= most


def test_help_imports_nothing_heavy_and_takes_less_than_a_second_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = atlas("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "select" in done.stdout
    # a bound of the contract, not a benchmark: it takes about 0.2 s
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["select", "--set", "selector.rato=0.3"], 2, ["unknown key `selector.rato`", "did you mean `ratio`"]),
        (["select", "--set", "data.path=x", "--set", "selector.name=gld"], 2, ["gld", "did you mean gold"]),
        (["select", "--data", "x", "--set", "selector.ratio=3"], 2, ["selector.ratio", "less than or equal to 1"]),
        (["select", "--config", "none.yaml"], 2, ["none.yaml", "No such file", "check its name"]),
        (["trajectories", "stats", "missing.json"], 2, ["missing.json"]),
        (["collect", "--set", "envs=[mazes]", "--dry-run"], 2, ["mazes", "maze"]),
        (["evaluate", "--set", "models.a=b", "--set", "tasks.mase=3", "--dry-run"], 2, ["mase", "maze"]),
        (["run", "nowhere.yaml"], 2, ["nowhere.yaml"]),
        (["status", "nothing-here"], 2, ["nothing-here"]),
        (["serve", "maze", "--host", "0.0.0.0"], 2, ["ATLAS_SERVER_TOKEN"]),
    ],
)
def test_a_mistake_is_one_clear_message(arguments: list[str], code: int, says: list[str], tmp_path: Path) -> None:
    done = atlas(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for words in says:
        assert words in done.stderr


def test_a_broken_json_row_is_counted_with_its_place_and_reason(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    broken = a_row("maze_2")
    del broken["conversations"]
    file.write_text("\n".join([json.dumps(a_row()), json.dumps(broken), '{"conversations": [']) + "\n")
    run = tmp_path / "run"
    done = atlas("select", "--data", str(file), "--run", str(run), "--set", "selector.name=all")
    assert done.returncode == 0, done.stderr
    rejected = [json.loads(line) for line in (run / "rejected.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rejected] == [2, 3]
    assert all(row["reason"] for row in rejected)


def test_statistics_fit_80_columns_and_list_what_is_rejected(tmp_path: Path) -> None:
    gold = [{"step": 1, "rank": 1, "category": "Critical Observation"}]
    rows = [a_row() | {"gold": gold}, a_row("blocksworld_3"), {"item_id": "maze_2"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = atlas("trajectories", "stats", "data.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("environment", "blocksworld", "trajectories", "Observation"):  # none is cut short
        assert words in done.stdout
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
    assert "rejected in all: 1; rejected.jsonl" in done.stderr
    (rejected,) = (tmp_path / "rejected.jsonl").read_text().splitlines()
    assert json.loads(rejected)["row"] == 3


def test_statistics_of_nothing_usable_fail(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"item_id": "maze_2"}\n{"item_id": "maze_3"}\n')
    done = atlas("trajectories", "stats", "data.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "data.jsonl holds no usable trajectory" in done.stderr
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 2


def test_a_broken_json_file_names_line_and_column(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('[\n{"conversations": [}\n]')
    done = atlas("trajectories", "stats", "data.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.json" in done.stderr
    assert "line 2" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dead_endpoint_is_one_message_and_no_failed_rows(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([a_row(f"maze_{i}") for i in range(5)]))
    settings = [
        "selector.name=llm",
        "selector.endpoint.base_url=http://127.0.0.1:9/v1",
        "selector.endpoint.max_retries=0",
        "selector.endpoint.timeout_s=5",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    done = atlas("select", "--data", str(file), "--run", str(tmp_path / "run"), *options)
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("selections/*.parquet"))


def test_a_changed_configuration_is_refused_with_the_differing_keys(tmp_path: Path) -> None:
    file, run = tmp_path / "data.json", str(tmp_path / "run")
    file.write_text(json.dumps([a_row()]))
    select = ["select", "--data", str(file), "--run", run, "--set", "selector.name=random"]
    assert atlas(*select).returncode == 0
    changed = atlas(*select, "--set", "selector.ratio=0.2")
    assert changed.returncode == 2
    assert "selector.ratio: 0.3 -> 0.2" in changed.stderr
    assert "--clean" in changed.stderr
    assert atlas(*select, "--set", "selector.ratio=0.2", "--clean").returncode == 0


def test_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([a_row(f"maze_{i}") for i in range(5)]))
    done = atlas("select", "--data", str(file), "--run", str(tmp_path / "run"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "5 calls of gpt-4o" in done.stdout
    assert "$" in done.stdout
    assert not (tmp_path / "run").exists()


def test_brackets_in_names_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "runs [1] [/x]" / "select"
    config = SelectConfig(data=DataConfig(path="data.jsonl"), selector=AllSelector())
    RunFolder(str(folder)).begin(config, stage="select")
    shown = atlas("status", "runs [1] [/x]", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "[1]" in shown.stdout


def test_what_a_library_tells_of_itself_while_it_loads_is_not_on_the_screen(tmp_path: Path) -> None:
    script = """
from atlas_ray.cli.main import app
app(["cache"], standalone_mode=False)
from transformers import LlamaForCausalLM
LlamaForCausalLM, sys.modules["torchao"]
"""
    command = [sys.executable, "-c", "import sys" + script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
