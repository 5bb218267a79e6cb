"""Does training on critical steps help? Sentences computed from numbers, never claiming more than the interval.

Flows in: the arms' episodes; flows out: of every selector one statement per comparison (environment or group), a
headline, caveats. All arms play the same tasks, so differences are taken task by task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from atlas_ray.evaluation.intervals import MIN_TASKS, Interval, average, listed, points
from atlas_ray.evaluation.metrics import by_task
from atlas_ray.evaluation.paired import difference
from atlas_ray.report.inputs import Arm, ReportInput

METHOD = (
    "Difference in success per task, averaged over the tasks that count for both arms; 95 % interval for matched pairs "
    "(adjusted Wald, Agresti and Min 2005, with Student's quantile). Averages weigh environments equally."
)
NO_CLAIM = (None, "all", "random", "matched_random", "complement", "first", "last")  # of these nothing is asked
RIVALS = {"start": "no fine-tuning", "all": "all steps", "random": "random steps", "rest": "the steps left over"}
ROLES = {"start": "the model it starts from", "all": "all steps", "random": "random steps", "rest": "the steps left"}
FEW_TASKS = 30

GROUPS = {"in": "held-in average", "out": "held-out average"}
_WORDS = {
    "better": "{ours} is better than {theirs} on {scope}: {numbers}.",
    "worse": "{ours} is worse than {theirs} on {scope}: {numbers}.",
    "none": "No difference between {ours} and {theirs} is shown here on {scope}: {numbers}.",
}


def judge(given: ReportInput, arms: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict on every selector's arm, the best one first.

    Args:
        given: The records.
        arms: The same arms as `results.json` shows them, for what must be said about exclusions.
        checks: Rows of `checks.overlap`, for what must be said about tasks that were trained on.

    Returns:
        question, critical (the best of the arms that are judged), method, headline (sentences), statements (one per
        comparison), caveats (sentences).
    """
    judged = [arm for arm in given.arms if arm.selector not in NO_CLAIM or arm.name == given.critical]
    judged.sort(key=lambda arm: -_standing(given, arm))
    statements = [
        statement
        for ours in judged
        for theirs in given.arms
        if (role := _role(theirs, ours)) is not None
        for statement in _compare(given, ours, theirs, role)
    ]
    return {
        "question": _question(statements),
        "critical": judged[0].name if statements else given.critical,
        "method": METHOD,
        "headline": list(_headline(given, statements)),
        "statements": statements,
        "caveats": [*_seen(checks), *_caveats(given, statements), *_excluded(arms), *_not_loaded(given)],
    }


def _question(statements: Sequence[Mapping[str, Any]]) -> str:
    """What the arms at hand can answer."""
    met = {s["role"] for s in statements}
    rivals = [f"than {rival}" for role, rival in RIVALS.items() if role in met or not met]
    return f"Does fine-tuning on the critical steps of expert trajectories make a better agent {listed(rivals)}?"


def _standing(given: ReportInput, arm: Arm) -> float:
    """Mean success over the environments that were trained on, each weighing the same; by it the best is told."""
    held_in = [by_task([e for e in arm.episodes if e.env == env], "success") for env in held_environments(given, "in")]
    return fmean([fmean(tasks.values()) for tasks in held_in if tasks] or [0.0])


def held_environments(given: ReportInput, held: str) -> list[str]:
    """Those that were trained on (`in`), or were not (`out`)."""
    return [env for env, spec in given.specs.items() if spec.held == held]


def _role(theirs: Arm, ours: Arm) -> str | None:
    """What an arm is to ours, if it differs from it in its steps alone: one of `ROLES`."""
    if theirs.name == ours.name or theirs.start != ours.start:
        return None
    if theirs.selector is None:
        return "start"
    own = theirs.reference == (ours.selection or ours.name)
    same_budget, as_long = theirs.ratio == ours.ratio, theirs.match_loss_tokens == ours.match_loss_tokens
    matched = (theirs.selector == "matched_random" and own) or (theirs.selector == "random" and same_budget)
    is_role = {
        "all": theirs.selector == "all",
        "random": matched and as_long,
        "rest": theirs.selector == "complement" and own and as_long,
    }
    return next((role for role, holds in is_role.items() if holds), None)


def _compare(given: ReportInput, ours: Arm, theirs: Arm, role: str) -> Iterator[dict[str, Any]]:
    """Statements on one rival: each environment, then each group of two or more that is complete."""
    for held, group in GROUPS.items():
        parts: dict[str, tuple[Interval, int]] = {}
        environments = held_environments(given, held)
        for env in environments:
            if (found := difference(ours.episodes, theirs.episodes, env, "success")) is not None:
                parts[env] = found
        if len(parts) == len(environments) > 1:
            parts[group] = average([one for one, _ in parts.values()]), sum(n for _, n in parts.values())
        for scope, (interval, tasks) in parts.items():
            said = {
                **{"arm": ours.name, "against": theirs.name, "role": role, "scope": scope, "held": held},
                **{"tasks": tasks, "difference": interval.value, "ci95": interval.limits, "outcome": interval.outcome},
            }
            yield {**said, "sentence": _sentence(said)}


def _sentence(said: Mapping[str, Any]) -> str:
    return _WORDS[said["outcome"]].format(
        ours=said["arm"],
        theirs=said["against"],
        scope=f"the {said['scope']}" if said["scope"] in GROUPS.values() else said["scope"],
        numbers=_numbers(said, with_tasks=True),
    )


def _numbers(said: Mapping[str, Any], *, with_tasks: bool = False) -> str:
    low, high = said["ci95"]
    includes = "" if low > 0 or high < 0 else " includes 0"
    tasks = f"; {said['tasks']} task{'s' * (said['tasks'] != 1)}" if with_tasks else ""
    return f"{points(said['difference'])} points (95 % interval {points(low)} to {points(high)}{includes}{tasks})"


def _headline(given: ReportInput, statements: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of the best arm a sentence for each group of environments, and one on random steps, the control that matters
    most; of every other arm all in one."""
    if not statements:
        yield f"No arm `{given.critical}` and rival of it played the same tasks, so nothing can be said."
    for place, arm in enumerate(dict.fromkeys(s["arm"] for s in statements)):
        said, own = list[str](), [s for s in statements if s["arm"] == arm]
        for held, name in (("in", "held-in"), ("out", "held-out")):
            deciding = [s for s in own if s["held"] == held and _decides(s, own)]
            for scope in dict.fromkeys(s["scope"] for s in deciding):
                here = [s for s in deciding if s["scope"] == scope]
                where = f"On the {name} environments" if scope == GROUPS[held] else f"On {scope} ({name})"
                said.append(_summary(where, arm, here))
                if place == 0:
                    said += [_on_random(s, name) for s in here if s["role"] == "random"]
        yield from said if place == 0 else [" ".join(said)]


def _summary(where: str, arm: str, statements: Sequence[Mapping[str, Any]]) -> str:
    by = {o: [s["against"] for s in statements if s["outcome"] == o] for o in _WORDS}
    parts = [f"{outcome} than {listed(by[outcome])}" for outcome in ("better", "worse") if by[outcome]]
    said = [f"{arm} is {' and '.join(parts)}"] if parts else []
    if by["none"]:
        said.append(f"no difference {'' if parts else f'of {arm} '}from {listed(by['none'])} is shown")
    return f"{where}, {'; '.join(said)}."


def _decides(statement: Mapping[str, Any], statements: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a statement sums up its group: the average where there is one, else the only environment."""
    group = GROUPS[statement["held"]]
    pooled = any(s["scope"] == group and s["against"] == statement["against"] for s in statements)
    return not pooled or statement["scope"] == group


def _on_random(statement: Mapping[str, Any], name: str) -> str:
    ours, theirs = statement["arm"], statement["against"]
    numbers = _numbers(statement)
    control = "random steps" if theirs == "random" else f"random steps ({theirs})"
    if statement["outcome"] == "better":
        return f"On {name} tasks, {ours} beats {control}: {numbers}."
    if statement["outcome"] == "worse":
        return f"On {name} tasks, {ours} does worse than {control}: {numbers}."
    return (
        f"On {name} tasks, {ours} does not beat {control} here: {numbers}. "
        "That the choice of critical steps helps is not shown."
    )


def _caveats(given: ReportInput, statements: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(set(given.seeds)) <= 1:
        yield (
            "Every arm was trained once. The intervals cover the choice of test tasks, not the luck of training: "
            "another seed may move an arm by more."
        )
    if given.made_base:
        yield (
            "All arms start from one base model, made here. No interval covers the luck of making it: from another, "
            "made in the same way, differences may come out otherwise."
        )
    if len(arms := list(dict.fromkeys(s["arm"] for s in statements))) > 1:
        yield f"{arms[0]} stands first for it did best here of {len(arms)} selectors: some of its lead is luck."
    if len(statements) > 1:
        yield (
            f"{len(statements)} comparisons are made, each with its own 95 % interval. Were there no true difference "
            f"at all, up to {0.05 * len(statements):.1g} of them would be expected to exclude 0 by chance."
        )
    small = {s["scope"]: s["tasks"] for s in statements if s["scope"] in given.specs and s["tasks"] < FEW_TASKS}
    if small:
        counts = listed([f"{scope} {tasks}" for scope, tasks in small.items()])
        few = f"; below {MIN_TASKS} tasks nothing is decided" if min(small.values()) < MIN_TASKS else ""
        yield f"Few tasks ({counts}): only large differences can show{few}."


def _not_loaded(given: ReportInput) -> Iterator[str]:
    if given.failures:
        names = listed(list(given.failures))
        yield f"Without figures, for they could not be made, loaded or played: {names}. The tables say why."


def _excluded(arms: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    flagged = [f"{arm['name']} on {cell['env']}" for arm in arms for cell in arm["environments"] if cell["flagged"]]
    if flagged:
        yield (
            f"Too many episodes failed for reasons of infrastructure and are excluded, so read with care: "
            f"{listed(flagged)}."
        )


def _seen(checks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Test tasks that were trained on; shared openings count only where most openings differ."""
    for row in checks:
        of = f"of {row['test_tasks']} test tasks of {row['env']}"
        if row["shared_ids"]:
            yield f"{row['shared_ids']} {of} were trained on: success there shows memory, not skill."
        elif row["shared_first_observations"] and 2 * row["distinct_first_observations"] > row["test_tasks"]:
            yield f"{row['shared_first_observations']} {of} open as a training task does, under another id."
