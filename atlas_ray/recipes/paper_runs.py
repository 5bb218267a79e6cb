"""What the paper's tables are made of, from a recipe's run folders. Flows in: a recipe; flows out: `PaperRuns`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from atlas_ray.environments import registry
from atlas_ray.evaluation.intervals import Interval
from atlas_ray.evaluation.items import test_tasks
from atlas_ray.evaluation.metrics import many_overflowed, overflowed
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.pretrained import weights_note
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
    arms: dict[str, ArmRuns] = {}
    failures: dict[str, list[str]] = defaultdict(list)
    seeded = {unit.name: (unit.arm, unit.seed) for unit in recipe.units}
    for config in recipe.evaluations.values():
        expected = {env: len(tasks) * config.samples for env, tasks in test_tasks(config).items()}
        played: dict[str, dict[int, str]] = defaultdict(dict)
        for unit in config.models:
            name, seed = seeded.get(unit, (unit, recipe.config.seeds[0]))
            folder = RunFolder(config.run).child(unit)
            if folder.finished is not None:
                played[name][seed] = unit
            elif reason := failure_of(folder):
                failures[name].append(reason if unit == name else f"{unit}: {reason}")
        arms |= {name: _runs(recipe, config, name, units, expected) for name, units in played.items()}
    envs = [env for evaluation in recipe.evaluations.values() for env in evaluation.tasks]
    envs += [env for verification in recipe.verify.values() for env in verification.data.envs or ()]
    return PaperRuns(
        arms=arms,
        rows=recipe.config.tables,
        stand_in_envs=recipe.config.stand_ins,
        verification=_verification(recipe),
        verified=BASE,
        failures={name: "; ".join(reasons) for name, reasons in failures.items()},
        unverified=next((why for c in recipe.verify.values() if (why := failure_of(RunFolder(c.run)))), None),
        other_tasks=other_tasks(envs, recipe.config.environments),
        chosen={arm: found for arm in recipe.arms if (found := _chosen(recipe, arm)) is not None},
    )


def _chosen(recipe: Recipe, arm: str) -> ChosenSteps | None:
    """From what the selection wrote down when it was done; the first seed's."""
    found = RunFolder(recipe.select[recipe.arms[arm].like or arm].run).finished
    if found is None or not found.get("requested"):
        return None
    failed = sum(found["errors"].values())
    return ChosenSteps(found["requested"], found["trajectories"] - failed, failed, found["steps"], found["chosen"])


def _runs(
    recipe: Recipe, config: EvaluateConfig, name: str, units: Mapping[int, str], expected: dict[str, int]
) -> ArmRuns:
    """One arm or model under the seeds that were played; `units` are their names."""
    folders = {seed: RunFolder(config.run).child(unit) for seed, unit in units.items()}
    played = {seed: folder.read(EPISODES) for seed, folder in folders.items()}
    by_env = {
        env: {seed: [e for e in episodes if e.env == env] for seed, episodes in played.items()} for env in config.tasks
    }
    model = config.played[next(iter(units.values()))]
    arm = recipe.arms.get(name)
    like = recipe.arms.get(arm.like or "") if arm else None
    start = arm.start if arm else name
    tiny = recipe.tiny.get(start)
    backbone = f"a tiny model trained on the spot ({tiny.layers} layers of {tiny.hidden_size})" if tiny else None
    backbone = backbone or weights_note(model)
    contexts = ((folder.finished or {}).get("context") for folder in folders.values())
    return ArmRuns(
        name=name,
        model=model.path,
        stand_in=next((one.stand_in for one in (arm, like) if one and one.stand_in), None),
        scores={env: {seed: _scores(found, env) for seed, found in seeds.items()} for env, seeds in by_env.items()},
        excluded={env: {seed: _excluded(found) for seed, found in seeds.items()} for env, seeds in by_env.items()},
        expected=expected,
        overflowed={env: _overflowed(chain.from_iterable(seeds.values())) for env, seeds in by_env.items()},
        training={seed: _cost(recipe, unit) for seed, unit in units.items()} if arm else {},
        backbone=backbone and f"`{start}`, {backbone}",
        context=next((context for context in contexts if context is not None), None),
    )


def _scores(episodes: Iterable[Episode], env: str) -> dict[tuple[str, int], float]:
    """By task and sample the environment's own metric; infrastructure failures say nothing."""
    metric = registry.get(env).metric
    return {(e.item_id, e.sample): float(getattr(e, metric)) for e in episodes if not e.stop_reason.is_infrastructure}


def _excluded(episodes: Iterable[Episode]) -> dict[str, int]:
    return dict(Counter(str(e.stop_reason) for e in episodes if e.stop_reason.is_infrastructure))


def _overflowed(episodes: Iterable[Episode]) -> float:
    """Share of the episodes that count which ended with a full context."""
    return overflowed([e for e in episodes if not e.stop_reason.is_infrastructure]) or 0.0


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


_STARTS = {"from scratch": "from_scratch", "from critical step": "from_critical_step"}
_STARTS |= {"iterative": "iterative", "from other step": "control"}


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
