"""Loggers: each step's figures once, where the tool keeps them; a tool that is missing or fails is named."""

from __future__ import annotations

import struct
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas_ray.errors import UserError
from atlas_ray.training.loggers import open_loggers
from tests.support.training import a_config

STEPS = [{"step": 1, "total_steps": 2, "loss": 2.5, "mfu": None}, {"step": 2, "total_steps": 2, "loss": 1.25}]


def test_tensorboard_holds_every_step(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    with open_loggers(a_config(run=str(tmp_path), loggers=["tensorboard"])) as log:
        for step in STEPS:
            log(step)
    [file] = (tmp_path / "tensorboard").iterdir()
    content, found = file.read_bytes(), []
    while content:  # a record: length, its checksum, event, its checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    assert found == [(1, "loss", 2.5), (2, "loss", 1.25)]


def test_wandb_is_offline_without_a_key_and_resumes_under_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, Any], int]] = []

    @contextmanager
    def init(**options: Any) -> Any:
        opened.append(options)
        yield SimpleNamespace(log=lambda figures, step: logged.append((figures, step)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = a_config(run=str(tmp_path), loggers=["wandb"])
    for key in (None, "secret"):
        monkeypatch.setenv("WANDB_API_KEY", key) if key else monkeypatch.delenv("WANDB_API_KEY", raising=False)
        with open_loggers(config) as log:
            log(STEPS[0])
    assert [o["mode"] for o in opened] == ["offline", None]
    assert opened[0]["id"] == opened[1]["id"]
    assert opened[0]["dir"].startswith(str(tmp_path))
    assert logged[0] == ({"loss": 2.5}, 1)
    assert "secret" not in repr(opened)


def test_mlflow_keeps_a_file_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    @contextmanager
    def start_run(run_name: str) -> Any:
        yield calls.append(("start", run_name))

    fake = SimpleNamespace(
        set_tracking_uri=lambda uri: calls.append(("uri", uri)),
        set_experiment=lambda name: calls.append(("experiment", name)),
        start_run=start_run,
        log_params=lambda params: calls.append(("params", params["learning_rate"])),
        log_metrics=lambda figures, step: calls.append((f"step {step}", figures)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with open_loggers(a_config(run=str(tmp_path), loggers=["mlflow"])) as log:
        log(STEPS[1])
    assert calls == [
        ("uri", f"sqlite:///{tmp_path}/mlflow/mlflow.db"),
        ("experiment", "atlas_ray"),
        ("start", str(tmp_path)),
        ("params", 1e-3),
        ("step 2", {"loss": 1.25}),
    ]


def test_a_logger_that_fails_is_left_out_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def init(**_: Any) -> Any:
        def log(*_: Any, **__: Any) -> None:
            raise ConnectionError("no route")

        yield SimpleNamespace(log=log)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with open_loggers(a_config(run=str(tmp_path), loggers=["wandb", "tensorboard"])) as log:
        log(STEPS[0])
        log(STEPS[1])
    assert capsys.readouterr().err.count("wandb fails and is left out from here: no route") == 1


def test_missing_package_or_local_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "mlflow", "tensorboard"):
        monkeypatch.setitem(sys.modules, "tensorboardX" if name == "tensorboard" else name, None)
        with (
            pytest.raises(UserError, match=f"loggers: {name} is not installed\n  pip install {name}"),
            open_loggers(a_config(run=str(tmp_path), loggers=[name])),
        ):
            pass
    fake = SimpleNamespace(set_tracking_uri=pytest.fail)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with (
        pytest.raises(UserError, match="cannot write below s3://bucket/run"),
        open_loggers(a_config(run="s3://bucket/run", loggers=["mlflow"])),
    ):
        pass
