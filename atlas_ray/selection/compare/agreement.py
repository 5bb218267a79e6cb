"""How far selections agree with the expert's uncut annotation and with each other (paper Table 5): plain counting.

Flows in: selections of the same trajectories, and those; flows out: one row of figures per selection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any

import pyarrow as pa

from atlas_ray.address import name_of
from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.budget import carried_budgets, recut
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Category, Selection, Trajectory, Usage

POSITION_BINS = 10

Named = Sequence[tuple[str, Sequence[Selection]]]
_Steps = set[tuple[str, int]]
_Categories = Mapping[tuple[str, int], Category]


def agreement(chosen: _Steps, gold: _Steps) -> dict[str, float | None]:
    """Precision, recall, F1 and Jaccard index of two sets of (trajectory id, step): micro averages over steps.

    A figure whose denominator is zero is None.
    """
    both = len(chosen & gold)
    return {
        "precision": _share(both, len(chosen)),
        "recall": _share(both, len(gold)),
        "f1": _share(2 * both, len(chosen) + len(gold)),
        "jaccard": _share(both, len(chosen | gold)),
    }


def cohens_kappa(a: _Steps, b: _Steps, n_steps: int) -> float | None:
    """Agreement beyond chance of two choices among `n_steps` steps, each chosen or not.

    (p_o - p_e) / (1 - p_e) with p_o the share of steps on which they agree and p_e the share expected of independent
    choices of the same sizes; None where chance alone makes them agree wholly, or there are no steps.
    """
    by_chance = len(a) * len(b) + (n_steps - len(a)) * (n_steps - len(b))  # times n_steps squared
    agreeing = n_steps - len(a ^ b)
    return _share(agreeing * n_steps - by_chance, n_steps**2 - by_chance)


def words(trajectory: Trajectory) -> list[int]:
    """Words of each step's thought and action: its weight in the loss, where no tokenizer is at hand."""
    return [len(step.message.text.split()) for step in trajectory.steps]


def tokens_of(trajectories: Iterable[Trajectory], model: str) -> dict[str, list[int]]:
    """Tokens of each step, thought, action and end of turn, under a model's tokenizer, by trajectory id.

    Raises:
        UserError: If no tokenizer can be loaded, or its chat template cannot be masked.
    """
    from atlas_ray.models.chat import ChatFormat

    chat = ChatFormat.load(model)
    found = {}
    for trajectory in trajectories:
        sequences = chat.render(trajectory.messages, trajectory.tools)
        spans = [s.spans[step.position] for step in trajectory.steps for s in sequences]
        found[trajectory.id] = [end - start for start, end in filter(None, spans)]
    return found


def compare_selections(
    selections: Named, trajectories: Iterable[Trajectory], weights: Mapping[str, Sequence[int]] | None = None
) -> list[dict[str, Any]]:
    """One row per selection, in the order given.

    Trajectories without a selection (an error) count in `errors` alone; those without gold are left out of precision,
    recall, F1, jaccard, kappa and same_category.

    Args:
        selections: (name, records) pairs.
        trajectories: The data that was selected in; carries gold.
        weights: Tokens of each step by trajectory id; words where None.

    Returns:
        Rows of name, trajectories, errors, requested (ratio m), actual (share of all steps that was chosen); against
        gold: precision, recall, f1, jaccard, kappa, same_category (share of the steps chosen by both, with a category
        from both, where it is the same); with each other selection by name, over the trajectories that both have:
        overlap (Jaccard index), kappas, same_categories; of the chosen steps: categories (counts), positions (share
        chosen in each tenth of the trajectory), position (mean, 0 to 1), loss_fraction (their share of all steps'
        weights), usage; and `environments`: the same by environment.
    """
    data = {t.id: t for t in trajectories}
    weights = {i: words(t) for i, t in data.items()} if weights is None else weights
    rows = _rows(selections, data, weights)
    for env in sorted({t.env for t in data.values()}):
        within = [(name, [s for s in records if s.env == env]) for name, records in selections]
        for row, part in zip(rows, _rows(within, data, weights), strict=True):
            row.setdefault("environments", {})[env] = part
    return rows


def compare_runs(
    uris: Sequence[str], data: str, ratio: float | None = None, model: str | None = None
) -> dict[str, Any]:
    """Compares finished selections of one data set.

    Args:
        uris: Their run folders.
        data: The trajectories.
        ratio: Where given, selections that keep scores appear a second time, as their top k at this ratio.
        model: Whose tokenizer counts the loss tokens; words where None.

    Returns:
        `data`, `ratio`, `unit` of loss_fraction and `selections`: rows of `compare_selections`.

    Raises:
        UserError: If a folder holds no selection, or one of other data.
    """
    trajectories = read_trajectories(DataConfig(path=data))
    steps = {t.id: len(t.steps) for t in trajectories}
    named: list[tuple[str, list[Selection]]] = []
    short = [name_of(uri) for uri in uris]
    for uri, name in zip(uris, short, strict=True):
        records = RunFolder(uri).read(SELECTIONS)
        if not records:
            raise UserError(f"no selection lies in {uri}", "name run folders that `atlas select` wrote")
        for s in records:
            if steps.get(s.trajectory_id) != s.n_steps:
                lacks = s.trajectory_id not in steps
                what = "which the data lacks" if lacks else f"with {s.n_steps} steps where the data has {steps[s.id]}"
                raise UserError(f"{uri} holds {s.trajectory_id}, {what}", "give --data that it was selected in")
        named.append((name if short.count(name) == 1 else uri, records))
    rows = compare_selections(
        list(at_budget(named, ratio)), trajectories, tokens_of(trajectories, model) if model else None
    )
    return {"data": data, "ratio": ratio, "unit": "tokens" if model else "words", "selections": rows}


def at_budget(named: Named, ratio: float | None) -> Iterator[tuple[str, Sequence[Selection]]]:
    """Each selection as it is, then, where its scores allow another ratio, as its top k at that.

    `value` chooses by its threshold; its top k are the highest differences, whatever their size.
    """
    for name, records in named:
        yield name, records
        scored = all(s.scores for s in records if s.error is None)
        by_threshold = any(s.selector == "value" for s in records)
        if ratio is not None and scored and (by_threshold or any(s.ratio != ratio for s in records)):
            own = any(s.selector == "python" for s in records)  # its scores may be of any size too
            above = -inf if by_threshold or own else 0.0
            outline = pa.table({key: [getattr(s, key) for s in records] for key in ("id", "env", "n_steps")})
            budgets = carried_budgets(ratio, outline).to_pylist()
            cut = [recut(s, ratio, above, k) for s, k in zip(records, budgets, strict=True)]
            yield f"{name}, top {ratio:.0%}", cut


def _rows(
    selections: Named, data: Mapping[str, Trajectory], weights: Mapping[str, Sequence[int]]
) -> list[dict[str, Any]]:
    gold: dict[str, dict[int, Category]] = {
        i: {g.step: g.category for g in t.gold} for i, t in data.items() if t.gold is not None
    }
    marks = {(i, t): category for i, marked in gold.items() for t, category in marked.items()}
    good = {name: {s.id: s for s in records if s.error is None} for name, records in selections}
    named = {
        name: {(s.id, t): c for s in mine.values() for t, c in s.categories.items()} for name, mine in good.items()
    }
    rows = []
    for name, records in selections:
        mine = good[name]
        marked = {(i, t) for i, t in marks if i in mine}
        chosen = _steps(mine, gold)
        pairs = {other: _pair(mine, theirs) for other, theirs in good.items() if other != name}
        rows.append(
            {
                "name": name,
                "trajectories": len(mine),
                "errors": len(records) - len(mine),
                "requested": next((s.ratio for s in records), None),
                "actual": _share(sum(len(s.chosen) for s in mine.values()), sum(s.n_steps for s in mine.values())),
                **agreement(chosen, marked),
                "kappa": cohens_kappa(chosen, marked, sum(s.n_steps for i, s in mine.items() if i in gold)),
                "same_category": _same(named[name], marks, chosen & marked),
                "overlap": {other: agreement(a, b)["jaccard"] for other, (a, b, _) in pairs.items()},
                "kappas": {other: cohens_kappa(a, b, n) for other, (a, b, n) in pairs.items()},
                "same_categories": {
                    other: _same(named[name], named[other], a & b) for other, (a, b, _) in pairs.items()
                },
                "categories": dict(sorted(Counter(str(c) for c in named[name].values()).items())),
                "positions": _positions(mine.values()),
                "position": _mean((2 * t - 1) / (2 * s.n_steps) for s in mine.values() for t in s.chosen),
                "loss_fraction": _share(
                    sum(weights[i][t - 1] for i, s in mine.items() if i in weights for t in s.chosen),
                    sum(sum(weights[i]) for i in mine if i in weights),
                ),
                "usage": _usage(records),
            }
        )
    return rows


def _pair(mine: Mapping[str, Selection], theirs: Mapping[str, Selection]) -> tuple[_Steps, _Steps, int]:
    """What both chose where both have a selection, and how many steps there are."""
    return _steps(mine, theirs), _steps(theirs, mine), sum(s.n_steps for i, s in mine.items() if i in theirs)


def _same(mine: _Categories, theirs: _Categories, steps: Iterable[tuple[str, int]]) -> float | None:
    both = [step for step in steps if step in mine and step in theirs]
    return _share(sum(mine[step] == theirs[step] for step in both), len(both))


def _positions(selections: Collection[Selection]) -> list[float | None]:
    """Share of steps chosen in each tenth of the trajectory."""
    chosen, steps = Counter[int](), Counter[int]()
    for selection in selections:
        for step in range(1, selection.n_steps + 1):
            place = (2 * step - 1) * POSITION_BINS // (2 * selection.n_steps)
            steps[place] += 1
            chosen[place] += step in selection.chosen
    return [_share(chosen[place], steps[place]) for place in range(POSITION_BINS)]


def _usage(records: Iterable[Selection]) -> dict[str, float]:
    total = sum((s.usage for s in records), Usage())
    return {"calls": total.calls, "tokens": total.prompt_tokens + total.completion_tokens, "dollars": total.cost}


def _steps(selections: Mapping[str, Selection], within: Mapping[str, Any]) -> _Steps:
    return {(i, step) for i, s in selections.items() if i in within for step in s.chosen}


def _mean(figures: Iterable[float]) -> float | None:
    held = list(figures)
    return sum(held) / len(held) if held else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
