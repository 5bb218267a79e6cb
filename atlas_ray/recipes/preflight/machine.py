"""GPUs and disk before a run. Flows in: a recipe; flows out: findings. Ray is asked only where a cluster is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from atlas_ray.errors import UserError
from atlas_ray.recipes.disk import at_most, disks_of
from atlas_ray.recipes.preflight.findings import Finding, attempt
from atlas_ray.recipes.preflight.pending import Pending


def check_gpus(pending: Pending) -> list[Finding]:
    """As many GPUs as the training that wants most, where training says that it wants any."""
    wanted = max((c.workers for c in pending.train.values() if c.use_gpu), default=0)
    return attempt("GPUs", f"{wanted} for training", lambda: _gpus(pending, wanted)) if wanted else []


def _gpus(pending: Pending, wanted: int) -> str:
    config = pending.recipe.config.ray
    if config.address or os.environ.get("RAY_ADDRESS"):
        from atlas_ray.runs import placement
        from atlas_ray.runs.cluster import connect

        connect(config)
        have, where = int(placement.gpus()), "the cluster"
    else:
        import torch

        have, where = torch.cuda.device_count(), "this machine"
    if have < wanted:
        raise UserError(
            f"training wants {wanted} GPUs, {where} has {have}",
            "lower train.workers, name a cluster (RAY_ADDRESS), or train without (train.use_gpu: false)",
        )
    return f"{where} has {have}"


def check_disk(pending: Pending) -> list[Finding]:
    """Room for what is left of the recipe's training, where the run folders lie on this machine."""
    runs = pending.recipe.root
    return attempt("disk", runs, lambda: _disk(runs, pending)) if pending.train else []


def _disk(runs: str, pending: Pending) -> list[Finding]:
    need = at_most(disks_of(pending.recipe, pending.train.values()))
    words = f"training takes {need / 1e9:,.1f} GB at most"
    if not need:
        return []
    if "://" in runs:
        return [Finding("disk", runs, "not checked", f"{words}; a store's room is not known here")]
    at = Path(runs).resolve()
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if free < need:
        raise UserError(f"{words}, {free / 1e9:,.1f} GB are free", "set `runs` to a larger disk, or train fewer arms")
    return [Finding("disk", runs, "ok", f"{free / 1e9:,.0f} GB free, {words}")]
