"""Reaching Ray: the cluster named by configuration or `RAY_ADDRESS`, else one started on this machine.

Also what a call of an actor ended with, and what an actor that does not start waits for, in words for people.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from atlas_ray import plugins
from atlas_ray.cluster.watchdog import watch
from atlas_ray.config import RayConfig
from atlas_ray.errors import AtlasError, RayLost, UserError
from atlas_ray.runs.progress import console

START_SECONDS = 900.0  # that an actor may take to start
_TEMP_DIR = "/tmp"
_LONGEST_TEMP_DIR = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")  # of a socket's path
_ANSWER_SECONDS = 10.0  # that an address may take to answer
_TELL_SECONDS = 1.0  # that a replica may take to say what it does
_known = {"__main__"}  # modules from outside of the package that workers have, or that travel by themselves
AGAIN = "run the same command again; ATLAS_RAY_LOGS=1 shows more"


def connect(config: RayConfig, modules: Iterable[str] = ()) -> None:
    """Joins or starts Ray, and sends it the modules of parts from outside of the package; does nothing where this
    process is connected already, but to see whether workers have `modules`.

    Raises:
        AtlasError: If the address does not answer.
        UserError: If the cluster there asks for another token, or a module was named after Ray was started.
    """
    import ray

    if ray.is_initialized():
        _check_modules(modules)
        return
    address, shown = config.address or os.environ.get("RAY_ADDRESS"), os.environ.get("ATLAS_RAY_LOGS") == "1"
    # Workers are niced by 15 otherwise and starve beside anything else on a small machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # Ray's own 30 s are not enough on a busy machine
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None:
        _require_token()
    else:
        _check_reachable(address)
    try:
        ray.init(
            address=address or "local",  # not the one that a `ray start` left on this machine
            num_cpus=None if address else local_cpus(config),
            include_dashboard=None if address else False,
            logging_level=logging.WARNING,
            log_to_driver=shown,
            # a worker finds this package where the driver found it, installed or not
            runtime_env=_runtime_env(local=address is None),
            _temp_dir=_short_temp_dir() if address is None else None,
        )
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise (_does_not_start(why) if address is None else _unreachable(address, why)) from None
    _known.intersection_update({"__main__"})
    if address is None:
        _watch_own_ray()
    from ray.data import DataContext

    # Stages show their own progress.
    DataContext.get_current().enable_progress_bars = False
    # what stops a stage is told once, by the stage
    logging.getLogger("ray.data").setLevel(logging.WARNING if shown else logging.CRITICAL)


def _check_modules(modules: Iterable[str]) -> None:
    """Asks a worker for modules that it would have been sent, had they been named before Ray was started.

    Raises:
        UserError: If it lacks one.
    """
    import ray

    wanted = {module.partition(".")[0] for module in modules if not plugins.is_own(module)} - _known
    if not wanted:
        return
    ask: Any = ray.remote(plugins.lacking)
    if lacking := ray.get(ask.options(num_cpus=0).remote(sorted(wanted))):
        raise UserError(
            f"Ray's workers do not have {', '.join(lacking)}: Ray was started before that was named",
            "name it before the first stage of this process runs, or call ray.shutdown() before this one",
        )
    _known.update(wanted)


def _runtime_env(*, local: bool) -> dict[str, Any] | None:
    """What workers need: parts from outside of the package, and on this machine the place of the package itself."""
    found = plugins.runtime_env()
    if local:
        found["env_vars"] = {"PYTHONPATH": str(Path(__file__).parents[2]), **found.get("env_vars", {})}
    return found or None


def local_cpus(config: RayConfig) -> int:
    """CPUs that Ray counts where it is started here: a small machine's are shared by what mostly waits."""
    return config.num_cpus or max(4, os.cpu_count() or 1)


def _short_temp_dir() -> str | None:
    """Where Ray's files lie, if their usual place is too long for the Unix sockets among them; vLLM's follow."""
    from ray._common.utils import get_default_ray_temp_dir

    usual = get_default_ray_temp_dir()
    if len(os.fsencode(usual)) <= _LONGEST_TEMP_DIR:
        return None
    short = f"{_TEMP_DIR}/ray"
    console.print(f"{usual} (TMPDIR) is too long for sockets, whose paths have 107 bytes at most; Ray uses {short}")
    os.environ.setdefault("VLLM_RPC_BASE_PATH", _TEMP_DIR)
    return short


def _watch_own_ray() -> None:
    import ray
    from ray._private import worker

    own: Any = worker._global_node

    def in_use() -> bool:
        return ray.is_initialized() and worker._global_node is own  # not another one that was started since

    watch({name: own.all_processes[name][0].process for name in ("raylet", "gcs_server")}, in_use)


def _require_token() -> None:
    """Has Ray, once it is started here, serve this process alone: it listens on all addresses of the machine.

    The token is of this process's life, and lies in no file. Who has set RAY_AUTH_MODE keeps their own way.
    """
    from ray import _raylet

    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    inner: Any = _raylet
    inner.Config.initialize("")  # Ray has read both on being imported
    inner.AuthenticationTokenLoader.instance().reset_cache()


def _check_reachable(address: str) -> None:
    """Refuses at once what Ray would try for up to minutes: an address where nobody listens, a token that is not right.

    Raises:
        AtlasError: If nobody listens.
        UserError: If the cluster asks for a token, and has not got the right one.
    """
    import grpc
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled
    from ray.exceptions import AuthenticationError

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    until = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
            break
        except (OSError, OverflowError) as error:
            if time.monotonic() > until or not isinstance(error, ConnectionRefusedError):  # a head may be starting
                raise _unreachable(address, str(error)) from None
            time.sleep(0.5)
    if address.startswith("ray://"):
        return
    try:
        token = [(name.lower(), value) for name, value in get_auth_headers_if_auth_enabled({}).items()]
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
            ask(b"", metadata=token, timeout=_ANSWER_SECONDS)
    except AuthenticationError:
        raise not_let_in(address) from None
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:  # all else is left to Ray
            raise not_let_in(address) from None


def not_let_in(address: str) -> UserError:
    """What to say of a cluster that asks for a token."""
    file = Path.home() / ".ray" / "auth_token"  # where Ray looks where neither is set
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or file.exists()
    missing = os.environ.get("RAY_AUTH_MODE") != "token" or not given
    return UserError(
        f"the cluster at {address} asks for a token: "
        + ("none was sent" if missing else "the one that was sent is wrong"),
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's token",
    )


def _does_not_start(why: str) -> AtlasError:
    return AtlasError(
        f"Ray does not start on this machine: {why}",
        "check room and rights in the folder of its files (RAY_TMPDIR sets another); ATLAS_RAY_LOGS=1 shows more",
    )


def _unreachable(where: str, why: str) -> AtlasError:
    return AtlasError(
        f"cannot reach Ray at {where}: {why}",
        "check RAY_ADDRESS (or --set ray.address=...), RAY_AUTH_MODE and the token, or unset it to run here",
    )


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


def fetched_by(replicas: Iterable[Any]) -> str:
    """What replicas that have not started fetch from a store; empty where none does, or none has a place yet."""
    import ray

    asked = [replica.fetching.remote() for replica in replicas]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_TELL_SECONDS)
    told: dict[str, None] = {}
    for answer in answered:
        with suppress(ray.exceptions.RayError):  # one that died: its start says so
            told[ray.get(answer)] = None
    return ", ".join(filter(None, told))


def waiting_for(starting: int, replicas: int, seconds: float, gpus: int) -> str:
    """What replicas that have not started wait for.

    Args:
        starting: How many have not.
        replicas: Of how many.
        seconds: Since when.
        gpus: That one needs, where the cluster has any.

    Raises:
        RayLost: If the cluster has no node any more.
    """
    import ray

    held, free = ray.cluster_resources(), ray.available_resources()
    if not held:
        raise RayLost("no node of the Ray cluster is alive", f"start the cluster again, then {AGAIN}")
    sizes = ", ".join(f"{free.get(kind, 0):g} of {held.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))
    need = f"1 CPU and {gpus} GPUs" if held.get("GPU") else "1 CPU"
    return (
        f"{starting} of {replicas} replicas have not started within {seconds:.0f} s:"
        f" they load a model, or lack room (each needs {need}; free are {sizes})"
    )
