"""Reaching Ray: the cluster named by configuration or `RAY_ADDRESS`, else one started on this machine.

Also what a call of an actor ended with, and what an actor that does not start waits for, in words for people.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from atlas_ray.config import RayConfig
from atlas_ray.errors import AtlasError

START_SECONDS = 900.0  # that an actor may take to start
AGAIN = "run the same command again; ATLAS_RAY_LOGS=1 shows more"


def connect(config: RayConfig) -> None:
    """Joins or starts Ray; does nothing where this process is connected already.

    Raises:
        AtlasError: If the address does not answer.
    """
    import ray

    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    # Workers are niced by 15 otherwise and starve beside anything else on a small machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        # A cluster of this process alone, on loopback: a token would protect nothing and leaves a file behind.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        ray.init(
            address=address,
            num_cpus=None if address else config.num_cpus or max(4, os.cpu_count() or 1),
            include_dashboard=None if address else False,
            logging_level=logging.WARNING,
            log_to_driver=os.environ.get("ATLAS_RAY_LOGS") == "1",
            # a worker finds this package where the driver found it, installed or not
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}} if address is None else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise AtlasError(
            f"cannot reach Ray at {address or 'this machine'}: {str(error).splitlines()[0]}",
            "check RAY_ADDRESS (or --set ray.address=...), RAY_AUTH_MODE and the token, or unset it to run here",
        ) from None
    from ray.data import DataContext

    # Stages show their own progress.
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def is_death(error: BaseException) -> bool:
    """Whether a call failed because its actor, node or connection did."""
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError | TaskCancelledError)


def cause_of(error: BaseException) -> AtlasError:
    """Our own error inside Ray's, or Ray's in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, AtlasError):
        return cause
    last = str(error).strip().splitlines()[-1]
    return AtlasError(f"a replica failed: {last}", AGAIN)


def waiting_for(starting: int, replicas: int, seconds: float, gpus: int) -> str:
    """What replicas that have not started wait for.

    Args:
        starting: How many have not.
        replicas: Of how many.
        seconds: Since when.
        gpus: That one needs, where the cluster has any.
    """
    import ray

    held, free = ray.cluster_resources(), ray.available_resources()
    sizes = ", ".join(f"{free.get(kind, 0):g} of {held.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    need = f"1 CPU and {gpus} GPUs" if held.get("GPU") else "1 CPU"
    return (
        f"{starting} of {replicas} replicas have not started within {seconds:.0f} s:"
        f" they load a model, or lack room (each needs {need}; free are {sizes})"
    )
