"""One line of JSON per finished unit of work, for whatever collects a cluster's logs.

Flows in: records as they are written, and checkpoints; flows out: lines at INFO of the logger `atlas_ray.units`. They
hold ids, never texts: what an environment or a model said stays in the records. Silent until `show_units`.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from atlas_ray.types import Usage

if TYPE_CHECKING:
    import pyarrow as pa

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray gives the process of a job
_OUTCOMES = {"trajectories": "kept", "failures": "failed", "selections": "selected"}
_BEGINS = '{"time": "'
_LONGEST = 200  # characters of an id, which may come out of a data file

_log = logging.getLogger("atlas_ray.units")


def show_units(asked: bool = False) -> None:
    """Prints the lines to stderr: inside a Ray job, with `ATLAS_LOG=json`, or where asked."""
    if (asked or JOB in os.environ or os.environ.get("ATLAS_LOG") == "json") and not _log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
        _log.setLevel(logging.INFO)
        _log.propagate = False


def is_unit_line(line: str) -> bool:
    """Whether a line is one of these."""
    return line.startswith(_BEGINS)


def hidden(line: str) -> bool:
    """Whether a line of a job's log is one of these, and this process shows none."""
    return is_unit_line(line) and not _log.isEnabledFor(logging.INFO)


def record_finished(stage: str, run: str, table: str, record: Any) -> None:
    """Says that a record is there: an episode, a selection or a trajectory.

    Args:
        stage: That made it.
        run: Its run folder.
        table: Its table's name.
    """
    if not _log.isEnabledFor(logging.INFO):
        return
    outcome = getattr(record, "stop_reason", None) or (
        "error" if getattr(record, "error", None) else _OUTCOMES.get(table, "done")
    )
    tokens = _tokens(getattr(record, "usage", None))
    unit_finished(stage, run, record.id, str(outcome), getattr(record, "seconds", None), tokens)


def rows_finished(stage: str, run: str, table: str, rows: pa.Table) -> None:
    """Says that records which workers wrote are there.

    Args:
        stage: That made them.
        run: Its run folder.
        table: Their table's name.
        rows: Their `id`, `error` and `usage`.
    """
    if _log.isEnabledFor(logging.INFO):
        for row in rows.to_pylist():
            outcome, usage = "error" if row["error"] else _OUTCOMES[table], row["usage"]
            unit_finished(stage, run, row["id"], outcome, None, _tokens(Usage(**usage)))


def _tokens(usage: Usage | None) -> dict[str, int] | None:
    if usage is None or not usage.calls:
        return None
    return {"prompt": usage.prompt_tokens, "cached": usage.cached_tokens, "generated": usage.completion_tokens}


def unit_finished(
    stage: str, run: str, unit: str, outcome: str, seconds: float | None = None, tokens: dict[str, int] | None = None
) -> None:
    """Writes the line of one unit; what is not known is null."""
    if not _log.isEnabledFor(logging.INFO):
        return
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "stage": stage,
        "run": run,
        "unit": unit[:_LONGEST],
        "outcome": outcome,
        "seconds": None if seconds is None else round(seconds, 3),
        "tokens": tokens,
    }
    _log.info("%s", json.dumps(line))  # ASCII: no control character of an id reaches a terminal
