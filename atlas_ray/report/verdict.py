"""Does training on critical steps help? Sentences computed from numbers, never claiming more than the interval.

Flows in: the arms' episodes; flows out: one statement per comparison (environment or group), a headline, caveats. All
arms play the same tasks, so differences are taken task by task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atlas_ray.evaluation.intervals import MIN_TASKS, Interval, average, listed, paired_difference, points
from atlas_ray.evaluation.metrics import by_task
from atlas_ray.report.inputs import Arm, ReportInput

QUESTION = (
    "Does fine-tuning on the critical steps of expert trajectories make a better agent than no fine-tuning, "
    "than all steps, than random steps, and than the steps left over?"
)
METHOD = (
    "Difference in success per task, averaged over the tasks that count for both arms; 95 % interval for matched pairs "
    "(adjusted Wald, Agresti and Min 2005, with Student's quantile). Averages weigh environments equally."
)
AGAINST: tuple[str | None, ...] = (None, "all", "random", "complement")
FEW_TASKS = 30

GROUPS = {"in": "held-in average", "out": "held-out average"}
_WORDS = {
    "better": "{ours} is better than {theirs} on {scope}: {numbers}.",
    "worse": "{ours} is worse than {theirs} on {scope}: {numbers}.",
    "none": "No difference between {ours} and {theirs} is shown here on {scope}: {numbers}.",
}


def judge(given: ReportInput, arms: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict on the critical arm.

    Args:
        given: The records.
        arms: The same arms as `results.json` shows them, for what must be said about exclusions.
        checks: Rows of `checks.overlap`, for what must be said about tasks that were trained on.

    Returns:
        question, critical, method, headline (sentences), statements (one per comparison), caveats (sentences).
    """
    ours = next((arm for arm in given.arms if arm.name == given.critical), None)
    rivals = [arm for arm in given.arms if ours and _is_rival(arm, ours)]
    statements = [s for rival in rivals for s in _compare(given, ours, rival)] if ours else []
    return {
        "question": QUESTION,
        "critical": given.critical,
        "method": METHOD,
        "headline": _headline(given, statements, {arm.name: arm.selector for arm in rivals}),
        "statements": statements,
        "caveats": [*_seen(checks), *_caveats(given, statements), *_excluded(arms), *_not_loaded(given)],
    }


def _is_rival(arm: Arm, ours: Arm) -> bool:
    """Whether an arm differs from ours in its steps alone: from the same model, at the same budget if it has one."""
    if arm.name == ours.name or arm.selector not in AGAINST or arm.start != ours.start:
        return False
    return arm.selector not in ("random", "complement") or arm.ratio == ours.ratio


def _compare(given: ReportInput, ours: Arm, theirs: Arm) -> Iterator[dict[str, Any]]:
    """Statements on one rival: each environment, then each group of two or more that is complete."""
    for held, group in GROUPS.items():
        parts: dict[str, tuple[Interval, int]] = {}
        environments = [env for env, spec in given.specs.items() if spec.held == held]
        for env in environments:
            left, right = (by_task([e for e in arm.episodes if e.env == env], "success") for arm in (ours, theirs))
            if common := left.keys() & right.keys():
                parts[env] = paired_difference([left[task] - right[task] for task in sorted(common)]), len(common)
        if len(parts) == len(environments) > 1:
            parts[group] = average([found for found, _ in parts.values()]), sum(n for _, n in parts.values())
        for scope, (found, tasks) in parts.items():
            said = {
                **{"arm": ours.name, "against": theirs.name, "scope": scope, "held": held, "tasks": tasks},
                **{"difference": found.value, "ci95": found.limits, "outcome": found.outcome},
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


def _headline(
    given: ReportInput, statements: Sequence[Mapping[str, Any]], selectors: Mapping[str, str | None]
) -> list[str]:
    """A sentence for each group of environments, and one on random steps: the control that matters most."""
    if not statements:
        return [f"No arm `{given.critical}` and rival of it played the same tasks, so nothing can be said."]
    sentences = []
    for held, name in (("in", "held-in"), ("out", "held-out")):
        deciding = [s for s in statements if s["held"] == held and _decides(s, statements)]
        for scope in dict.fromkeys(s["scope"] for s in deciding):
            here = [s for s in deciding if s["scope"] == scope]
            where = f"On the {name} environments" if scope == GROUPS[held] else f"On {scope} ({name})"
            sentences.append(_summary(where, given.critical, here))
            sentences += [_on_random(s, name) for s in here if selectors[s["against"]] == "random"]
    return sentences


def _summary(where: str, critical: str, statements: Sequence[Mapping[str, Any]]) -> str:
    by = {o: [s["against"] for s in statements if s["outcome"] == o] for o in _WORDS}
    parts = [f"{outcome} than {listed(by[outcome])}" for outcome in ("better", "worse") if by[outcome]]
    said = f"{where}, {critical} is {' and '.join(parts)}" if parts else where
    if by["none"]:
        said += f"{';' if parts else ','} no difference from {listed(by['none'])} is shown"
    return f"{said}."


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
        yield f"Without figures, for they could not be made or loaded: {names}. The tables say why."


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
