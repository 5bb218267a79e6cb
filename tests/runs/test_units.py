"""One structured line per finished unit: where it is wanted, and with nothing in it that somebody else wrote."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from atlas_ray.runs.units import show_units
from atlas_ray.training.metrics import Follower, MetricsLog
from atlas_ray.trajectories.collect import FAILURES
from atlas_ray.types import Usage
from tests.support.records import Config, a_row, a_selection, a_trajectory, an_episode

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The logger's lines, as a handler of its own would print them."""
    found = list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: found.append(record.getMessage()))
    logger = logging.getLogger("atlas_ray.units")
    with caplog.at_level(logging.INFO, "atlas_ray.units"):
        logger.addHandler(handler)
        yield found
        logger.removeHandler(handler)


def test_every_record_is_a_line_with_its_outcome(tmp_path: Path, lines: list[str]) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    folder.begin(Config(), stage="evaluate")
    with folder.writer(EPISODES) as writer:
        writer.add(replace(an_episode(1), seconds=1.23456))
        writer.add(replace(an_episode(2, error="engine died: <text>"), usage=Usage()))
    told = [json.loads(line) for line in lines]
    assert all(line.pop("time").endswith("+00:00") for line in told)
    common = {"stage": "evaluate", "run": str(tmp_path / "run")}
    tokens = {"prompt": 3, "cached": 1, "generated": 2}
    assert told == [
        {**common, "unit": "maze/maze_1@0+0", "outcome": "done", "seconds": 1.235, "tokens": tokens},
        {**common, "unit": "maze/maze_2@0+0", "outcome": "model_error", "seconds": 0.0, "tokens": None},
    ]


def test_selections_and_trajectories_too(tmp_path: Path, lines: list[str]) -> None:
    folder = RunFolder(str(tmp_path))
    with folder.writer(SELECTIONS) as selections, folder.writer(TRAJECTORIES) as kept, folder.writer(FAILURES) as lost:
        selections.add(a_selection())
        selections.add(replace(a_selection(), error="no answer"))
        kept.add(a_trajectory())
        lost.add(a_trajectory())
    assert [json.loads(line)["outcome"] for line in lines] == ["selected", "error", "kept", "failed"]
    assert [json.loads(line)["unit"] for line in lines] == ["maze/maze_1"] * 4


def test_no_text_of_others_reaches_a_line_raw(tmp_path: Path, lines: list[str]) -> None:
    hostile = 'maze/\x1b[2J\n{"outcome": "done"}\u202e' + "x" * 999
    with RunFolder(str(tmp_path)).writer(EPISODES) as writer:
        writer.add(replace(an_episode(1, error=hostile), id=hostile))
    [line] = lines
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["unit"] == hostile[:200]
    assert "Action: up" not in line


def test_a_checkpoint_is_a_line_once(tmp_path: Path, lines: list[str]) -> None:
    folder = RunFolder(str(tmp_path))
    log = MetricsLog(folder)
    log.add({"step": 1})
    log.saved(1, 0.5)
    lines.clear()  # of the process that saved it
    with Follower(folder, lambda _: None):  # of an earlier run
        log.add({"step": 2})
        log.flush()
        log.saved(2, 0.25)
        log.add({"step": 3})
        log.saved(3, 0.125)
        lines.clear()
    told = {json.loads(line)["unit"]: json.loads(line) for line in lines}
    assert len(lines) == len(told)
    assert sorted(told) == ["checkpoint 2", "checkpoint 3"]
    assert told["checkpoint 3"]["outcome"] == "saved"
    assert told["checkpoint 3"]["seconds"] == 0.125


@pytest.mark.parametrize(
    ("options", "variables", "printed"),
    [
        ([], {}, False),
        (["--log-units"], {}, True),
        ([], {"ATLAS_LOG": "json"}, True),
        ([], {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, True),
    ],
)
def test_no_line_is_printed_unless_asked_for(
    options: list[str], variables: dict[str, str], printed: bool, tmp_path: Path
) -> None:
    (tmp_path / "data.json").write_text(json.dumps([a_row()]))
    code = "import sys; from atlas_ray.cli.main import main; main(sys.argv[1:])"
    command = ["select", "--data", str(tmp_path / "data.json"), "--run", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", code, *options, *command, "--set", "selector.name=all"],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith(("ATLAS", "RAY"))} | variables,
    )
    assert done.returncode == 0, done.stderr
    units = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [(unit["stage"], unit["unit"]) for unit in units] == [("select", "maze/maze_1")] * printed


def test_the_handler_is_installed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("atlas_ray.units")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    level = logger.level
    show_units(asked=True)
    show_units(asked=True)
    assert len(logger.handlers) == 1
    logger.setLevel(level)
