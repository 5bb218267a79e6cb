"""A small recipe, its command as a process that is stopped and killed, and what it recorded twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas_ray.runs.folder import RunFolder

TASKS = {"maze": 12, "textcraft": 12, "wordle": 12, "blocksworld": 12}

ARMS: dict[str, dict[str, Any]] = {
    "all": {"name": "all"},
    "gold": {"name": "gold", "ratio": 0.3},
    "perplexity": {"name": "perplexity", "ratio": 0.3, "max_length": 1024, "engine": "torch"},
    "value": {"name": "value", "rollouts": 2, "max_tokens": 24},
}


def a_recipe(runs: Path, arms: dict[str, dict[str, Any]] = ARMS) -> dict[str, Any]:
    """The quickstart's shape at a hundredth of its size."""
    return {
        "name": "small",
        "runs": str(runs),
        "expert": {"envs": ["maze", "textcraft", "wordle"], "tasks": 14},
        "base": {
            "novice": {"envs": list(TASKS), "role": "novice", "keep_failures": True, "tasks": 12, "max_rounds": 8},
            "hidden_size": 64,
            "layers": 2,
            "heads": 2,
            "train": {
                "optimizer": "muon",
                "learning_rate": 2e-3,
                "epochs": 1,
                "global_batch_size": 4,
                "max_length": 1024,
            },
        },
        "arms": arms,
        "extra_arms": {"llm": {"name": "llm"}},
        "train": {"epochs": 2, "global_batch_size": 4, "max_length": 1024, "checkpoint_steps": 5},
        "evaluate": {"tasks": TASKS, "max_tokens": 24},
    }


def start(tmp_path: Path, recipe: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return _command(tmp_path, "run", str(file), *arguments)


def _command(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    code = "import sys; from atlas_ray.cli.main import main; main(sys.argv[1:])"
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "OPENAI_API_KEY")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=(tmp_path / "out.log").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def run_command(tmp_path: Path, *arguments: str) -> None:
    """Runs one of our commands to its end, which must be a good one."""
    _ended_well(_command(tmp_path, *arguments), tmp_path)


def _ended_well(process: subprocess.Popen[str], tmp_path: Path) -> None:
    code = process.wait(timeout=1500)
    assert code == 0, (tmp_path / "out.log").read_text()[-3000:]


def finish(tmp_path: Path, recipe: dict[str, Any], runs: Path, *arguments: str) -> dict[str, Any]:
    _ended_well(start(tmp_path, recipe, *arguments), tmp_path)
    results: dict[str, Any] = json.loads((runs / "small" / "report" / "results.json").read_text())
    for arm in results["arms"]:
        arm["model"] = arm["model"].replace(str(runs), "")
    return results


def kill_when(process: subprocess.Popen[str], met: Callable[[], bool]) -> None:
    """SIGKILLs the driver as soon as a condition holds; waits by watching the process itself."""
    deadline = time.monotonic() + 900
    while not met():
        assert time.monotonic() < deadline, "the stage was never reached"
        try:
            pytest.fail(f"the run ended by itself with code {process.wait(timeout=0.02)}")
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGKILL)
    process.wait()


def recorded_twice(folder: RunFolder, table: Any) -> list[str]:
    ids = [row for shard in folder.tables(table, ["id"]) for row in shard["id"].to_pylist()]
    return sorted({i for i in ids if ids.count(i) > 1})
