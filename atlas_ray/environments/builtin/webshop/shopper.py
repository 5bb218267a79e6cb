"""What is to be done next on a visit, by what its pages have shown: the plan behind the scripted agents.

Flows in: a `Visit`, the rounds left; flows out: an `Errand`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from atlas_ray.environments.builtin.webshop.catalogue import Product
from atlas_ray.environments.builtin.webshop.goals import Goal, has_attribute, same_option
from atlas_ray.environments.builtin.webshop.pages import BACK, BUY, NEXT, PREV, Visit

Stage = Literal["search", "pick", "turn", "leave", "study", "return", "option", "buy"]


@dataclass(frozen=True)
class Errand:
    """One action of the plan.

    Attributes:
        stage: What it is for.
        words: What the thoughts about it speak of.
        wrong: Actions that a novice takes for it.
        first: Whether it is the first of its kind at this product.
    """

    stage: Stage
    action: str
    words: Mapping[str, str]
    wrong: tuple[str, ...] = ()
    first: bool = True


def plan(visit: Visit, left: int) -> Errand:
    """The next errand; `left` rounds may still be played, this one among them."""
    if visit.page == "search":
        return _search(visit)
    if visit.page == "results":
        return _results(visit, left)
    if visit.page == "item" and visit.item is not None:
        return _item(visit, visit.item, left)
    return Errand("return", f"click[{PREV}]", _words(visit.goal, visit.item))


def fits(goal: Goal, item: Product) -> bool:
    """Whether what a page of results tells speaks for a product: the kind and the price."""
    return item.query == goal.model.query and item.price <= goal.limit


def lack(visit: Visit, item: Product) -> str | None:
    """What was seen to be wrong with a product that was opened, in words; None if nothing was."""
    goal = visit.goal
    if item.query != goal.model.query:
        return f"it is not one of the {goal.model.query}"
    if item.price > goal.limit:
        return f"${item.price:.2f} is above the limit of {goal.limit:.2f}"
    for name, value in goal.options.items():
        if item.asin in visit.opened and not any(same_option(value, other) for other in _values(item, name)):
            return f"there is no {name} {value}"
    for words in goal.attributes:
        if item.asin in visit.studied and not has_attribute(item, words):
            return f"it is not {words}"
    return None


def named(goal: Goal, item: Product) -> int:
    """How many of the wanted attributes the title names."""
    return sum(words in item.title.lower() for words in goal.attributes)


def _search(visit: Visit) -> Errand:
    goal = visit.goal
    kind, has = goal.model.query, " ".join(goal.attributes)
    query = f"{has} {kind} {' '.join(goal.options.values())}" if visit.queries == 0 else f"{has} {kind}"
    vague = (f"search[{kind.split()[-1]}]", f"search[{' '.join(goal.options.values())}]")
    return Errand("search", f"search[{query}]", _words(goal, None), vague)


def _results(visit: Visit, left: int) -> Errand:
    goal, shown = visit.goal, visit.shown
    good = [one for one in shown if lack(visit, one) is None]
    if not good and left < len(goal.options) + 4:  # no time to look further: the least bad
        good = [one for one in shown if fits(goal, one)] or shown
    if good:
        best = good[0]  # the search ranks what holds more of the wanted words higher
        others = [one for one in shown if not fits(goal, one)] or [one for one in shown if one is not best]
        return Errand("pick", f"click[{best.asin}]", _words(goal, best), tuple(f"click[{one.asin}]" for one in others))
    if visit.goes_on and visit.number < 3:
        return Errand("turn", f"click[{NEXT}]", _words(goal, None))
    return Errand("turn", f"click[{BACK}]", _words(goal, None))


def _item(visit: Visit, item: Product, left: int) -> Errand:
    goal, reason = visit.goal, lack(visit, item)
    due = [name for name, value in goal.options.items() if not _is_chosen(visit, name, value)]
    if reason is not None and left >= len(goal.options) + 3:
        return Errand("leave", f"click[{PREV}]", _words(goal, item, reason=reason), (f"click[{BUY}]",))
    hidden = len(goal.attributes) - named(goal, item)
    if hidden and item.asin not in visit.studied and left >= len(due) + 3:
        return Errand("study", "click[Features]", _words(goal, item))
    for name in due:
        wanted, offered = goal.options[name], _values(item, name)
        value = next((one for one in offered if one == wanted), None)
        value = value or next((one for one in offered if same_option(wanted, one)), None)
        if value is not None:
            wrong = [f"click[{one}]" for one in offered if not same_option(wanted, one)]
            said = _words(goal, item, name=name, value=value)
            fresh = len(due) == len(goal.options)
            return Errand("option", f"click[{value}]", said, (*wrong, f"click[{BUY}]"), fresh)
    return Errand("buy", f"click[{BUY}]", _words(goal, item), (f"click[{PREV}]",))


def _is_chosen(visit: Visit, name: str, value: str) -> bool:
    return name in visit.chosen and same_option(value, visit.chosen[name])


def _values(item: Product, name: str) -> tuple[str, ...]:
    return item.options.get(name, ())


def _words(goal: Goal, item: Product | None, **more: str) -> dict[str, str]:
    about = {
        "kind": goal.model.query,
        "has": " and ".join(goal.attributes),
        "options": " and ".join(f"{name} {value}" for name, value in goal.options.items()),
        "limit": f"{goal.limit:.2f}",
    }
    if item is not None:
        about |= {"asin": item.asin, "price": f"{item.price:.2f}"}
    return about | more
