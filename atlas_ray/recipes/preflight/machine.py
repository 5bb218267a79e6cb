"""GPUs and disk before a run. Flows in: a recipe; flows out: findings. Ray is asked only where a cluster is named."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from atlas_ray.errors import UserError
from atlas_ray.recipes.disk import at_most, disks_of
from atlas_ray.recipes.nodes import named, nodes_at_hand
from atlas_ray.recipes.preflight.findings import Finding, attempt
from atlas_ray.recipes.preflight.pending import Pending
from atlas_ray.recipes.scheduling import gpus_of, most_at_once
from atlas_ray.recipes.stages import stages_for

_TRAIN_LESS = "lower train.num_workers, name a cluster (RAY_ADDRESS), or train without (train.use_gpu: false)"
_FEWER_ENGINES = (
    "lower replicas or tensor_parallel in evaluate.engine, or in arms.ARM.engine where an arm has its own, or name a "
    "cluster (RAY_ADDRESS)"
)


def check_gpus(pending: Pending) -> list[Finding]:
    """As many GPUs as training and engines take, each at its most; one follows the other."""
    training = [(c.num_workers, bool(c.use_gpu)) for c in pending.train.values() if c.use_gpu is not False]
    # an engine that is split needs them; any other takes one where there are any
    engines = [(e.replicas * e.tensor_parallel, e.tensor_parallel > 1) for e in pending.engines]
    if not training and not engines:
        return []

    def look() -> Iterator[Finding]:
        config = pending.recipe.config.ray
        have = int(gpus_of(nodes_at_hand(config)))
        where = "the cluster" if named(config) else "this machine"
        for what, takes, remedy in (("training", training, _TRAIN_LESS), ("engines", engines, _FEWER_ENGINES)):
            wanted = max((n for n, needed in takes if needed or have), default=0)
            if wanted > have:
                words = f"{wanted} are wanted, {where} has {have}"
                yield Finding("GPUs", f"{wanted} for {what}", "failed", words, remedy)
            elif wanted:
                yield Finding("GPUs", f"{wanted} for {what}", "ok", f"{where} has {have}")

    return attempt("GPUs", "for training and engines", look)


def check_disk(pending: Pending) -> list[Finding]:
    """Room for what is left of the recipe's training, where the run folders lie on this machine."""
    runs = pending.recipe.root
    return attempt("disk", runs, lambda: _disk(runs, pending)) if pending.train else []


def _disk(runs: str, pending: Pending) -> list[Finding]:
    recipe = pending.recipe
    nodes = nodes_at_hand(recipe.config.ray)
    planned, jobs = stages_for(recipe, nodes)
    trainings = [stage for stage in planned if stage.name.removeprefix("train/") in pending.train]
    need = at_most(disks_of(recipe, pending.train.values()), most_at_once(trainings, nodes, jobs))
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
