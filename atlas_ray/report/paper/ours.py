"""What was run for the paper's tables: plain records, and how many figures come of them.

Flows in: scores of episodes by arm, environment, seed and task; flows out: a `Figure` for a cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from atlas_ray.environments import registry
from atlas_ray.evaluation.intervals import Interval, average, paired_difference
from atlas_ray.evaluation.metrics import bootstrap, many_overflowed, wilson
from atlas_ray.runs.seeds import derive_seed

MAX_EXCLUDED = 0.02

Scores = Mapping[tuple[str, int], float]


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What one training took; None where it is not known.

    Attributes:
        loss_tokens: Tokens that carried loss, over all epochs.
        trajectory_tokens: Tokens that went through the model, over all epochs.
        flops: Operations that the result needs (`training/flops.py`).
        device_seconds: Seconds times devices.
        device: What kind they are.
        step_fraction: Steps with loss over all steps of the data.
    """

    loss_tokens: int | None = None
    trajectory_tokens: int | None = None
    flops: float | None = None
    device_seconds: float | None = None
    device: str | None = None
    step_fraction: float | None = None


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """One model under all its seeds.

    Attributes:
        name: Of the recipe's arm, backbone or model.
        model: Folder or hub id, the first seed's.
        stand_in: What stands here in the place of the paper's, in words, or None.
        scores: By environment and seed: by (item id, sample) the environment's own metric in [0, 1].
        excluded: By environment and seed: infrastructure failures by cause.
        expected: By environment: episodes that a seed was asked for.
        training: By seed.
        backbone: The model that stands here for the paper's, in words: one trained on the spot, or with other weights
            than its name says; or None.
        context: Tokens that a conversation could have; None where that is not known.
        overflowed: By environment: share of the episodes that ended with a full context.
    """

    name: str
    model: str
    stand_in: str | None
    scores: Mapping[str, Mapping[int, Scores]]
    excluded: Mapping[str, Mapping[int, Mapping[str, int]]] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    training: Mapping[int, TrainingCost] = field(default_factory=dict)
    backbone: str | None = None
    context: int | None = None
    overflowed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """What a cell says of our runs, in per cent.

    Attributes:
        low, high: 95 % limits over tasks, each task's seeds averaged first.
        n: Episodes that count.
        seeds: How many.
        spread: Standard deviation between seeds; None of a single one.
        errors: Episodes excluded for reasons of infrastructure.
        flagged: Whether more than 2 % were excluded or episodes are missing.
        of: Environments that an average is of; empty where it is of all that the table prints.
        overflowed: Whether it is marked because many episodes ended with a full context.
    """

    value: float
    low: float
    high: float
    n: int
    seeds: int
    spread: float | None
    errors: int
    flagged: bool
    of: tuple[str, ...] = ()
    overflowed: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Table 6: how the base model does from one kind of start, in one environment.

    Attributes:
        figure: In per cent.
        gain: Over scratch, in points, on the tasks that both have; None from scratch.
        over_control: The critical steps' over the control's, likewise.
        replays: Starts after steps of the expert's by how the environment repeated those.
    """

    figure: Figure
    gain: Interval | None = None
    over_control: Interval | None = None
    replays: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChosenSteps:
    """How much of what it was allowed a selection chose (section 4.5.2).

    Attributes:
        allowed: The ratio m that was asked for.
        trajectories: With a selection, and `failed` without one.
        steps, chosen: Of the trajectories with a selection.
    """

    allowed: float
    trajectories: int
    failed: int
    steps: int
    chosen: int


@dataclass(frozen=True, slots=True)
class PaperRuns:
    """Everything that the paper's tables are made of.

    Attributes:
        arms: By name.
        rows: By table: by row key, or `environment/row key` in Tables 4 and 5, the arm that stands there.
        stand_in_envs: By table: environments that stand in for the paper's.
        verification: By environment: by kind of start.
        verified: Name of the arm or backbone that Table 6 plays, if it stands among `arms`.
        failures: Why arms could not be loaded, by name; those among `arms` lack the seeds that the reason names.
        unverified: Why Table 6's model could not be loaded.
        other_tasks: Environments whose tasks here are not the paper's, and whose they are, in words: their figures are
            held against none of the paper's, and no average that is has a part in them.
        chosen: By arm, those that are not trained too: what their selections chose, where a ratio caps it.
    """

    arms: Mapping[str, ArmRuns]
    rows: Mapping[str, Mapping[str, str]]
    stand_in_envs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    verification: Mapping[str, Mapping[str, Start]] = field(default_factory=dict)
    verified: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)
    unverified: str | None = None
    chosen: Mapping[str, ChosenSteps] = field(default_factory=dict)
    other_tasks: Mapping[str, str] = field(default_factory=dict)

    def played_for(self, table: str, env: str) -> str:
        """The environment that is played in a table for one of the paper's: another one's stand-in, or itself."""
        return self.stand_in_envs.get(table, {}).get(env, env)

    def averaged(self, arm: ArmRuns, envs: Sequence[str]) -> list[str]:
        """Of which of these environments an arm's average is: those with the paper's tasks, all where none has them."""
        known = [env for env in envs if env not in self.other_tasks]
        return known if any(any(arm.scores.get(env, {}).values()) for env in known) else list(envs)

    def mean(self, arm: ArmRuns, envs: Sequence[str]) -> Figure | None:
        """An arm's average of these environments (`averaged`); `of` names its parts where they are not all of them."""
        parts = self.averaged(arm, envs)
        found = mean_figure(arm, parts)
        return replace(found, of=tuple(parts)) if found and not found.of and len(parts) < len(envs) else found


def figure(arm: ArmRuns, env: str) -> Figure | None:
    """An arm in one environment; None where nothing counts.

    Success has Wilson's interval over tasks, reward and progress a bootstrap's.
    """
    by_seed = {seed: scores for seed, scores in arm.scores.get(env, {}).items() if scores}
    if not by_seed:
        return None
    tasks = by_task(by_seed.values())
    values = list(tasks.values())
    mean = fmean(values)
    success = registry.get(env).metric == "success"
    low, high = wilson(mean, len(values)) if success else bootstrap(values, derive_seed("paper", env))
    means = [100 * fmean(by_task([scores]).values()) for scores in by_seed.values()]
    n = sum(map(len, by_seed.values()))
    errors = sum(sum(causes.values()) for causes in arm.excluded.get(env, {}).values())
    asked = arm.expected.get(env, 0) * len(arm.scores[env])
    return Figure(
        100 * mean,
        100 * low,
        100 * high,
        n,
        len(by_seed),
        stdev(means) if len(means) > 1 else None,
        errors,
        errors > MAX_EXCLUDED * asked or n + errors < asked,
        overflowed=many_overflowed(arm.overflowed.get(env)),
    )


def mean_figure(arm: ArmRuns, envs: Sequence[str]) -> Figure | None:
    """The average over environments, each weighing the same; None where none was played.

    `of` names them where some are missing. Limits combine those of independent environments.
    """
    parts = {env: found for env in envs if (found := figure(arm, env)) is not None}
    if not parts:
        return None
    mean = average([Interval(p.value, p.low, p.high) for p in parts.values()])
    seeds = sorted({seed for env in parts for seed, scores in arm.scores[env].items() if scores})
    whole = [seed for seed in seeds if all(arm.scores[env].get(seed) for env in parts)]
    means = [100 * fmean(fmean(by_task([arm.scores[env][seed]]).values()) for env in parts) for seed in whole]
    return Figure(
        mean.value,
        mean.low,
        mean.high,
        sum(p.n for p in parts.values()),
        len(seeds),
        stdev(means) if len(means) > 1 else None,
        sum(p.errors for p in parts.values()),
        any(p.flagged for p in parts.values()),
        tuple(parts) if len(parts) < len(envs) else (),
        any(p.overflowed for p in parts.values()),
    )


def gain(ours: ArmRuns, theirs: ArmRuns, env: str) -> Interval | None:
    """`ours` minus `theirs` in per cent points, task by task; None without a common task.

    Adjusted Wald for matched pairs (Agresti and Min 2005), as everywhere in the report.
    """
    a, b = (by_task(list(arm.scores.get(env, {}).values())) for arm in (ours, theirs))
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    found = paired_difference([a[task] - b[task] for task in common])
    return Interval(100 * found.value, 100 * found.low, 100 * found.high)


def mean_gain(ours: ArmRuns, theirs: ArmRuns, envs: Sequence[str]) -> tuple[Interval, list[str]] | None:
    """The same averaged over the environments in which both have a common task, and which these are."""
    parts = {env: found for env in envs if (found := gain(ours, theirs, env)) is not None}
    return (average(list(parts.values())), list(parts)) if parts else None


def by_task(runs: Iterable[Scores]) -> dict[str, float]:
    """Mean score of each task over runs and samples."""
    found: dict[str, list[float]] = defaultdict(list)
    for scores in runs:
        for (item_id, _), score in scores.items():
            found[item_id].append(score)
    return {item_id: fmean(scores) for item_id, scores in sorted(found.items())}
