"""Sending a stage to a cluster as a Ray job, and following it to its end."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from atlas_ray.errors import AtlasError, UserError

JOBS = {
    "collect": "collect_trajectories",
    "select": "select_steps",
    "train": "train_agent",
    "evaluate": "evaluate_agent",
    "verify": "verify_steps",
    "report": "build_report",
    "run": "run_recipe",
}
# What a node does not need of this folder; /runs is not atlas_ray/runs.
_EXCLUDES = ["/.venv", "/runs", "/.git", "/bench", "**/__pycache__", "/.*_cache"]
# `ray job stop` sends a SIGTERM, and a SIGKILL so much later: an optimizer step and a checkpoint may take minutes, and
# Ray's own 3 s would end training without one.
_STOP_SECONDS = 900


def submit(stage: str, arguments: Sequence[str], address: str | None, wait: bool) -> str:
    """Submits `jobs/<stage's job>.py` from this source tree, and streams its log until it ends.

    Args:
        stage: A key of `JOBS`.
        arguments: Of the job.
        address: Of the cluster's dashboard, e.g. http://127.0.0.1:8265; None: `RAY_API_SERVER_ADDRESS`.
        wait: Whether to follow the job to its end.

    Returns:
        The job's id.

    Raises:
        UserError: If the stage is unknown or no cluster answers.
        AtlasError: If the cluster does not take the job, or the job fails.
    """
    import asyncio

    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    if stage not in JOBS:
        raise UserError(f"there is no job for {stage!r}", f"valid: {', '.join(JOBS)}")
    root = Path(__file__).parents[2]
    if not (root / "jobs").is_dir():
        raise UserError("the jobs folder lies beside the package only in a source tree", "submit from a clone")
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError:
        raise _not_let_in(address) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no cluster answers at {address or 'RAY_API_SERVER_ADDRESS'}: {str(error).splitlines()[0]}",
            "give --address http://HEAD:8265, and with token authentication RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        ) from None
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["python", f"jobs/{JOBS[stage]}.py", *arguments]),
            runtime_env={
                "working_dir": str(root),
                "excludes": _EXCLUDES,
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
            },
        )
    except AuthenticationError:
        raise _not_let_in(address) from None
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise AtlasError(f"the cluster at {client.get_address()} does not take the job: {why}", "try again") from None
    if not wait:
        return job

    async def follow() -> None:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)

    asyncio.run(follow())
    info = client.get_job_info(job)
    if info.status != JobStatus.SUCCEEDED:
        kind = UserError if info.driver_exit_code == UserError.exit_code else AtlasError
        code = "" if info.driver_exit_code is None else f" with exit code {info.driver_exit_code}"
        why = last_error(info.message or "")
        raise kind(f"job {job} ended as {info.status.value}{code}: {why}", f"ray job logs {job} shows all of it")
    return job


def last_error(message: str) -> str:
    """What the command said last of its own, in a job's message; else that message's last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    own = [line.partition("atlas: ")[2] for line in lines if "atlas: " in line]
    return (own or lines or ["no message"])[-1]


def _not_let_in(address: str | None) -> UserError:
    file = Path.home() / ".ray" / "auth_token"  # where Ray looks where neither is set
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ or file.exists()
    missing = os.environ.get("RAY_AUTH_MODE") != "token" or not given
    return UserError(
        f"the cluster at {address or 'RAY_API_SERVER_ADDRESS'} asks for a token: "
        + ("none was sent" if missing else "the one that was sent is wrong"),
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's token",
    )
