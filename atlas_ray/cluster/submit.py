"""Sending a stage to a cluster as a Ray job, and following it to its end.

Flows in: a stage's arguments; flows out: its log.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from atlas_ray.address import refuse_credentials
from atlas_ray.cluster.connection import not_let_in
from atlas_ray.cluster.job_files import JobFiles
from atlas_ray.cluster.placement import held, told
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.runs.progress import console
from atlas_ray.runs.units import hidden

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOBS = {
    "collect": "collect_trajectories",
    "select": "select_steps",
    "train": "train_agent",
    "export": "export_data",
    "evaluate": "evaluate_agent",
    "verify": "verify_steps",
    "report": "build_report",
    "run": "run_recipe",
}
SOURCE = Path(__file__).parents[2]  # the source tree, which is a job's working directory
# `ray job stop` sends a SIGTERM, and a SIGKILL so much later: an optimizer step and a checkpoint may take minutes, and
# Ray's own 3 s would end training without one.
_STOP_SECONDS = 900
_START_SECONDS = 60.0  # that a driver may wait for a node
_LOOK_SECONDS = 1.0
_MOST_NODES = 10_000  # Ray's own bound of a listing


class Node(Protocol):
    """What Ray's listing tells of a node."""

    @property
    def node_id(self) -> str: ...
    @property
    def is_head_node(self) -> bool: ...
    @property
    def resources_total(self) -> Mapping[str, float]: ...
    @property
    def labels(self) -> Mapping[str, str] | None: ...


def submit(
    stage: str,
    arguments: Sequence[str],
    address: str | None,
    wait: bool,
    *,
    driver_cpus: float | None = None,
    driver_on_head: bool = False,
) -> str:
    """Submits `jobs/<stage's job>.py` from this source tree, and streams its log until it ends.

    Args:
        stage: A key of `JOBS`.
        arguments: Of the job.
        address: Of the cluster's dashboard, e.g. http://127.0.0.1:8265; None: `RAY_API_SERVER_ADDRESS`.
        wait: Whether to follow the job to its end.
        driver_cpus: CPUs that the driver takes; see `driver_options`.
        driver_on_head: Keeps the driver on the head, which outlives nodes that may be taken away.

    Returns:
        The job's id.

    Raises:
        UserError: If the stage is unknown, an address in its arguments holds credentials, a file that they name is not
            sent, the tree is larger than Ray takes, no cluster answers, or no node takes the driver within a minute.
        AtlasError: If the cluster does not take the job, or the job fails.
    """
    _check(stage, address)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from ray.util.state.exception import RayStateApiException

    refuse_credentials(arguments)  # Ray shows a job's command line to all who may see the dashboard
    if not (SOURCE / "jobs").is_dir():
        raise UserError("the jobs folder lies beside the package only in a source tree", "submit from a clone")
    files = JobFiles.of(SOURCE)
    arguments = files.arguments(stage, arguments)
    if said := files.left_out():
        console.print(said, style="yellow")
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError:
        raise not_let_in(address or "RAY_API_SERVER_ADDRESS") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no cluster answers at {address or 'RAY_API_SERVER_ADDRESS'}: {str(error).splitlines()[0]}",
            "give --address http://HEAD:8265, and with token authentication RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ) from None
    try:
        asked = driver_options(_nodes(client), driver_cpus, driver_on_head)
        with _errors_alone():
            job = client.submit_job(
                entrypoint=shlex.join(["python", f"jobs/{JOBS[stage]}.py", *arguments]),
                runtime_env={
                    "working_dir": str(SOURCE),
                    "excludes": files.excludes,
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
                },
                **asked,
            )
    except AuthenticationError:
        raise not_let_in(address or "RAY_API_SERVER_ADDRESS") from None
    except (OSError, RuntimeError, RayStateApiException) as error:
        why = str(error).splitlines()[0]
        raise AtlasError(f"the cluster at {client.get_address()} does not take the job: {why}", "try again") from None
    if wait:
        try:
            _await_start(client, job, asked)
            _follow(client, job)
        except KeyboardInterrupt:
            console.print(f"job {job} goes on: `ray job logs -f {job}` follows it, `ray job stop {job}` stops it")
            raise
    return job


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Keeps Ray from telling of every file that is left out."""
    handlers = [] if os.environ.get("ATLAS_RAY_LOGS") == "1" else logging.getLogger("ray").handlers
    before = [(handler, handler.level) for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in before:
            handler.setLevel(level)


def _check(stage: str, address: str | None) -> None:
    """Refuses what needs no cluster to be seen as wrong."""
    if stage not in JOBS:
        raise UserError(f"there is no job for {stage!r}", f"valid: {', '.join(JOBS)}")
    if address is not None and not address.startswith(("http://", "https://")):
        # Ray would try anything else as a node's address for most of a minute, or import what stands before `://`.
        raise UserError(f"{address!r} is no address of a dashboard", "give --address http://HEAD:8265")


def driver_options(nodes: Sequence[Node], cpus: float | None = None, on_head: bool = False) -> dict[str, Any]:
    """Where a job's driver runs, in Ray's words: off the head, where there is or may be another node.

    In a fixed cluster it takes no CPU, for engines and workers may need the last one. Where nodes come and go with what
    is asked for, it takes one, lest its node be taken for idle.

    Args:
        nodes: Those that are alive.
        cpus: What it takes, if not that.
        on_head: Whether it runs on the head all the same, where it takes no CPU if it is not told to.
    """
    heads = [node for node in nodes if node.is_head_node]
    growing = _may_grow(nodes)
    apart = len(nodes) > len(heads) or (growing and not any(node.resources_total.get("CPU") for node in heads))
    cpus = float(growing and not on_head) if cpus is None else cpus
    options: dict[str, Any] = {"entrypoint_num_cpus": cpus} if cpus else {}
    if heads and (apart or on_head):
        options["entrypoint_label_selector"] = {"ray.io/node-id": ("" if on_head else "!") + heads[0].node_id}
    return options


def _may_grow(nodes: Sequence[Node]) -> bool:
    """Whether nodes belong to groups: `ray up` and KubeRay, which have an autoscaler, give each its group's name."""
    return any("ray.io/node-group" in (node.labels or {}) for node in nodes)


def _nodes(client: JobSubmissionClient) -> list[Node]:
    from ray.util.state import list_nodes

    found = list_nodes(client.get_address(), filters=[("state", "=", "ALIVE")], limit=_MOST_NODES)
    return list(found)  # type: ignore[arg-type]


def _await_start(client: JobSubmissionClient, job: str, asked: dict[str, Any]) -> None:
    """Returns once the job has a driver, or will have none.

    Raises:
        UserError: If no node takes it within a minute, and none will join by itself.
    """
    from ray.job_submission import JobStatus

    until, said = time.monotonic() + _START_SECONDS, False
    while client.get_job_status(job) == JobStatus.PENDING:
        if time.monotonic() >= until and not said:
            nodes = _nodes(client)
            [place] = asked.get("entrypoint_label_selector", {"": ""}).values()
            where = "" if not place else " on a node besides the head" if place.startswith("!") else " on the head"
            need = told({"CPU": asked["entrypoint_num_cpus"]}) if "entrypoint_num_cpus" in asked else "a process"
            have = f"has {held(node.resources_total for node in nodes)}, some of it in use"
            wanted = f"job {job} has not started within {_START_SECONDS:.0f} s: its driver asks for {need}{where}"
            if not _may_grow(nodes):
                client.stop_job(job)
                remedy = "wait for other jobs, add nodes, or lower --driver-cpus; then submit it again"
                raise UserError(f"{wanted}, and the cluster {have}; it is told to stop", remedy)
            console.print(f"{wanted}; the cluster {have}, and its autoscaler is waited for", style="yellow")
            said = True
        time.sleep(_LOOK_SECONDS)


def _follow(client: JobSubmissionClient, job: str) -> None:
    """Prints the job's log until it ends, but for the lines of units where this process shows none of its own.

    Raises:
        AtlasError: If it fails, or the cluster does not answer any more.
    """
    import asyncio

    from aiohttp import ClientError
    from ray.job_submission import JobStatus

    read, begun = 0, ""

    async def tail() -> None:
        nonlocal read, begun
        at = 0  # a log that is opened again begins anew
        async for text in client.tail_job_logs(job):
            *lines, begun = (begun + text[max(0, read - at) :]).split("\n")
            sys.stdout.writelines(f"{line}\n" for line in lines if not hidden(line))
            at += len(text)
            read = max(read, at)

    try:
        while not (info := client.get_job_info(job)).status.is_terminal():
            with suppress(ClientError, RuntimeError):  # the driver's node is lost: Ray notices soon
                asyncio.run(tail())
            sys.stdout.flush()
            time.sleep(_LOOK_SECONDS)
        sys.stdout.write(begun)
    except OSError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise AtlasError(
            f"the cluster at {client.get_address()} does not answer any more: {why}",
            f"`ray job logs -f {job}` follows the job where it still runs; else submit it again: it goes on",
        ) from None
    if info.status != JobStatus.SUCCEEDED:
        kind = UserError if info.driver_exit_code == UserError.exit_code else AtlasError
        code = "" if info.driver_exit_code is None else f" with exit code {info.driver_exit_code}"
        why = last_error(info.message or "")
        raise kind(f"job {job} ended as {info.status.value}{code}: {why}", f"ray job logs {job} shows all of it")


def last_error(message: str) -> str:
    """What the command said last of its own, in a job's message; else that message's last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    own = [line.partition("atlas: ")[2] for line in lines if "atlas: " in line]
    return (own or lines or ["no message"])[-1]
