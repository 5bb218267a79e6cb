"""TensorBoard, Weights & Biases, MLflow: the same figures as `metrics.jsonl`, for those who watch them there.

Flows in: each step's metrics, once; flows out: what the tool keeps. They run in the driver, so that keys stay in the
environment that they came from, and without a server they write below the run folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console

if TYPE_CHECKING:
    from atlas_ray.training.settings import TrainConfig

Log = Callable[[dict[str, Any]], None]


@contextmanager
def open_loggers(config: TrainConfig) -> Iterator[Log]:
    """Opens the loggers of `config.loggers`. One that fails later is left out from there, with a word on the screen.

    Raises:
        UserError: If one is not installed, or must write below a run folder that is no local path.
    """
    logs: dict[str, Log] = {}

    def log(metrics: dict[str, Any]) -> None:
        for name, one in list(logs.items()):
            try:
                one(metrics)
            except Exception as error:  # noqa: BLE001 - whatever it is, training is worth more than its picture
                console.print(f"{name} fails and is left out from here: {error}", style="yellow")
                del logs[name]

    with ExitStack() as stack:
        for name in config.loggers:
            package, opened = _LOGGERS[name]
            try:
                logs[name] = stack.enter_context(opened(config))
            except ImportError:
                raise UserError(f"loggers: {name} is not installed", f"pip install {package}") from None
        yield log


@contextmanager
def _tensorboard(config: TrainConfig) -> Iterator[Log]:
    from tensorboardX import SummaryWriter

    with SummaryWriter(f"{config.run}/tensorboard") as board:

        def log(metrics: dict[str, Any]) -> None:
            for key, value in _figures(metrics).items():
                board.add_scalar(key, value, metrics["step"])

        yield log


@contextmanager
def _wandb(config: TrainConfig) -> Iterator[Log]:
    import wandb

    # Without a key it would ask for one; `wandb sync` sends what was written later.
    mode = os.environ.get("WANDB_MODE") or (None if os.environ.get("WANDB_API_KEY") else "offline")
    with wandb.init(
        project=os.environ.get("WANDB_PROJECT", "atlas_ray"),
        id=RunFolder(config.run).digest(config)[:16],
        name=config.run,
        dir=_local(config, "wandb"),
        config=config.model_dump(mode="json"),
        resume="allow",
        mode=mode,
    ) as opened:
        yield lambda metrics: opened.log(_figures(metrics), step=metrics["step"])


@contextmanager
def _mlflow(config: TrainConfig) -> Iterator[Log]:
    import mlflow

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(f"sqlite:///{_local(config, 'mlflow')}/mlflow.db")
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "atlas_ray"))
    with mlflow.start_run(run_name=config.run):
        mlflow.log_params({k: v for k, v in config.model_dump(mode="json").items() if not isinstance(v, dict)})
        yield lambda metrics: mlflow.log_metrics(_figures(metrics), step=metrics["step"])


def _local(config: TrainConfig, name: str) -> str:
    if "://" in config.run:
        raise UserError(
            f"loggers: {name} cannot write below {config.run}",
            "give it a server (WANDB_API_KEY, MLFLOW_TRACKING_URI), a local run folder, or use tensorboard",
        )
    path = os.path.abspath(f"{config.run}/{name}")
    os.makedirs(path, exist_ok=True)
    return path


def _figures(metrics: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if v is not None and k not in ("step", "total_steps")}


# By name: the package, and what opens it.
_LOGGERS = {"tensorboard": ("tensorboardX", _tensorboard), "wandb": ("wandb", _wandb), "mlflow": ("mlflow", _mlflow)}
