"""What the paper's tables are made of, from a recipe's run folders. Flows in: a recipe; flows out: `PaperRuns`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from atlas_ray.environments import registry
from atlas_ray.evaluation.intervals import Interval
from atlas_ray.evaluation.items import test_tasks
from atlas_ray.evaluation.metrics import many_overflowed, overflowed
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.recipes.settings import BASE
from atlas_ray.report.paper.ours import ArmRuns, ChosenSteps, Figure, PaperRuns, Start, TrainingCost
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.tables import EPISODES
from atlas_ray.training.metrics import read_metrics
from atlas_ray.types import Episode

if TYPE_CHECKING:
    from atlas_ray.recipes.graph import Recipe


def gather_paper(recipe: Recipe) -> PaperRuns:
    """Every arm, backbone and model that was evaluated to the end; of the others, why they could not be loaded."""
    stand_ins = {name: arm.stand_in or _inherited(recipe, arm.like) for name, arm in recipe.arms.items()}
    arms: dict[str, ArmRuns] = {}
    failures: dict[str, list[str]] = defaultdict(list)
    for config in recipe.evaluations.values():
        expected = {env: len(tasks) * config.samples for env, tasks in test_tasks(config).items()}
        names = dict.fromkeys(_arm_of(recipe, unit) for unit in config.models)
        for unit in config.models:
            if reason := failure_of(RunFolder(config.run).child(unit)):
                name = _arm_of(recipe, unit)
                failures[name].append(reason if unit == name else f"{unit}: {reason}")
        for name in names:
            runs = _runs(recipe, config, name, expected, stand_ins.get(name))
            if runs is not None:
                arms[name] = runs
    return PaperRuns(
        arms=arms,
        rows=recipe.config.tables,
        stand_in_envs=recipe.config.stand_ins,
        verification=_verification(recipe),
        verified=BASE,
        failures={name: "; ".join(reasons) for name, reasons in failures.items()},
        unverified=next((why for c in recipe.verify.values() if (why := failure_of(RunFolder(c.run)))), None),
        other_tasks=other_tasks(_played(recipe), recipe.config.environments),
        chosen={arm: found for arm in recipe.arms if (found := _chosen(recipe, arm)) is not None},
    )


def _played(recipe: Recipe) -> Iterator[str]:
    """Environments of evaluations and verifications."""
    for evaluation in recipe.evaluations.values():
        yield from evaluation.tasks
    for verification in recipe.verify.values():
        yield from verification.data.envs or ()


def _chosen(recipe: Recipe, arm: str) -> ChosenSteps | None:
    """From what the selection wrote down when it was done; the first seed's."""
    config = recipe.select[recipe.arms[arm].like or arm]
    found = RunFolder(config.run).finished
    if found is None or not found.get("requested"):
        return None
    failed = sum(found["errors"].values())
    return ChosenSteps(found["requested"], found["trajectories"] - failed, failed, found["steps"], found["chosen"])


def _inherited(recipe: Recipe, arm: str | None) -> str | None:
    return recipe.arms[arm].stand_in if arm in recipe.arms else None


def _arm_of(recipe: Recipe, unit: str) -> str:
    return next((u.arm for u in recipe.units if u.name == unit), unit)


def _runs(
    recipe: Recipe, config: EvaluateConfig, name: str, expected: dict[str, int], stand_in: str | None
) -> ArmRuns | None:
    units = {u.seed: u.name for u in recipe.units if u.arm == name} or {recipe.config.seeds[0]: name}
    folders = {seed: RunFolder(config.run).child(unit) for seed, unit in units.items()}
    finished = {seed: found for seed, folder in folders.items() if (found := folder.finished) is not None}
    played = {seed: folders[seed].read(EPISODES) for seed in finished}
    if not played:
        return None
    model = config.models[units[next(iter(played))]]
    return ArmRuns(
        name=name,
        model=model if isinstance(model, str) else model.path,
        stand_in=stand_in,
        scores={env: {seed: _scores(episodes, env) for seed, episodes in played.items()} for env in config.tasks},
        excluded={env: {seed: _excluded(episodes, env) for seed, episodes in played.items()} for env in config.tasks},
        expected=expected,
        overflowed={env: _overflowed(chain.from_iterable(played.values()), env) for env in config.tasks},
        training={seed: _cost(recipe, units[seed]) for seed in played if name in recipe.arms},
        backbone=_tiny(recipe, recipe.arms[name].start if name in recipe.arms else name),
        context=next((found["context"] for found in finished.values() if "context" in found), None),
    )


def _tiny(recipe: Recipe, backbone: str) -> str | None:
    shape = recipe.tiny.get(backbone)
    if shape is None:
        return None
    return f"`{backbone}`, a tiny model trained on the spot ({shape.layers} layers of {shape.hidden_size})"


def _scores(episodes: list[Episode], env: str) -> dict[tuple[str, int], float]:
    """By task and sample the environment's own metric; infrastructure failures say nothing."""
    metric = registry.get(env).metric
    counted = [e for e in episodes if e.env == env and not e.stop_reason.is_infrastructure]
    return {(e.item_id, e.sample): float(getattr(e, metric)) for e in counted}


def _excluded(episodes: list[Episode], env: str) -> dict[str, int]:
    return dict(Counter(str(e.stop_reason) for e in episodes if e.env == env and e.stop_reason.is_infrastructure))


def _overflowed(episodes: Iterable[Episode], env: str) -> float:
    """Share of the episodes that count which ended with a full context."""
    return overflowed([e for e in episodes if e.env == env and not e.stop_reason.is_infrastructure]) or 0.0


def _cost(recipe: Recipe, unit: str) -> TrainingCost:
    """From the steps that a training wrote down; a step's seconds are those of every worker."""
    config, folder = recipe.train[unit], RunFolder(recipe.train[unit].run)
    steps, finished = read_metrics(folder), folder.finished or {}
    if not steps:
        return TrainingCost(step_fraction=finished.get("step_fraction"))
    flops = sum(step["flops"] for step in steps) if all("flops" in step for step in steps) else None
    return TrainingCost(
        loss_tokens=sum(step["loss_tokens"] for step in steps),
        trajectory_tokens=sum(step["tokens"] for step in steps),
        flops=flops,
        device_seconds=config.num_workers * sum(step["seconds"] for step in steps),
        device="GPU" if any(step.get("mfu") is not None for step in steps) else "CPU worker",
        step_fraction=finished.get("step_fraction"),
    )


_STARTS = {"from scratch": "from_scratch", "from critical step": "from_critical_step"} | {
    "iterative": "iterative",
    "from other step": "control",
}


def _verification(recipe: Recipe) -> dict[str, dict[str, Start]]:
    """By environment and kind of start, what `atlas verify` found under the seeds that are done."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for config in recipe.verify.values():
        if RunFolder(config.run).finished is not None:
            for row in RunFolder(config.run).read_json("results.json")["rows"]:
                found[row["env"], _STARTS[row["start"]]].append(row)
    starts: dict[str, dict[str, Start]] = defaultdict(dict)
    for (env, kind), rows in found.items():
        if shown := _start([row["result"] for row in rows]):
            gain, over = (_points([row[name] for row in rows]) for name in ("gain", "over_control"))
            replays = sum((Counter(row.get("replays") or {}) for row in rows), Counter[str]())
            starts[env][kind] = Start(shown, gain, over, replays)
    return starts


def _start(results: Sequence[Mapping[str, Any]]) -> Figure | None:
    """One kind of start in one environment: the seeds' mean, and the mean of their limits, which are over tasks."""
    keys = {"success": "ci95", "reward": "reward_ci95", "progress": "progress_ci95"}
    known = [(r, r[r["metric"]], r[keys[r["metric"]]]) for r in results]
    known = [(r, value, limits) for r, value, limits in known if value is not None and limits is not None]
    if not known:
        return None
    values = [100 * value for _, value, _ in known]
    return Figure(
        value=fmean(values),
        low=100 * fmean(low for _, _, (low, _) in known),
        high=100 * fmean(high for _, _, (_, high) in known),
        n=sum(r["distinct_tasks"] for r, _, _ in known),
        seeds=len(known),
        spread=stdev(values) if len(values) > 1 else None,
        errors=sum(sum(r["excluded"].values()) for r in results),
        flagged=any(r["flagged"] for r in results),
        overflowed=any(many_overflowed(r.get("overflowed")) for r in results),
    )


def _points(found: Sequence[Mapping[str, Any] | None]) -> Interval | None:
    """Differences in per cent points, likewise the mean of the seeds'."""
    known = [(f["difference"], *f["ci95"]) for f in found if f]
    value, low, high = ([100 * f[i] for f in known] for i in range(3))
    return Interval(fmean(value), fmean(low), fmean(high)) if known else None
