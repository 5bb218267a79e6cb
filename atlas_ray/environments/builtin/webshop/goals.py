"""WebShop's tasks, and what a purchase earns: the paper's reward of type, attributes, options and price.

Flows in: a task's index, a purchase; flows out: a `Goal` with its instruction, a reward in [0, 1].
"""

from __future__ import annotations

import difflib
import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass

from atlas_ray.environments.builtin.webshop.catalogue import Product, product

N_TEST, N_TRAIN = 200, 3_930
N_PRODUCTS = 1_000  # whose owners' wishes are the tasks: the smallest shop

_ALIKE = 85  # above it two texts are taken for one (percent)
_COLORS = (
    "black",
    "beige",
    "blue",
    "brown",
    "green",
    "grey",
    "gold",
    "orange",
    "pink",
    "purple",
    "red",
    "white",
    "yellow",
)
_WORDS = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Goal:
    """What is to be bought.

    Attributes:
        model: The product behind the wish; any that fits as well is worth as much.
        attributes: What must hold of it.
        options: What it must be had in, by the option's name.
        limit: The price must not exceed it, in dollars.
        text: All that in words.
    """

    model: Product
    attributes: tuple[str, ...]
    options: Mapping[str, str]
    limit: float
    text: str


@functools.cache
def goals() -> tuple[Goal, ...]:
    """All tasks, with instructions of their own, in a fixed random order."""
    rng, found = random.Random("webshop/goals"), dict[str, Goal]()
    while len(found) < N_TEST + N_TRAIN:
        model = product(rng.randrange(N_PRODUCTS))
        attributes = tuple(rng.sample(model.attributes, rng.randint(1, 3)))
        names = rng.sample(list(model.options), rng.choice((1, 2, 2)))
        options = {name: rng.choice(model.options[name]) for name in model.options if name in names}
        limit = 10.0 * (model.price // 10 + rng.randint(1, 4))
        text = _text(rng, model.query, attributes, options, limit)
        found.setdefault(text, Goal(model, attributes, options, limit, text))
    return tuple(found.values())


def _text(rng: random.Random, kind: str, attributes: tuple[str, ...], options: Mapping[str, str], limit: float) -> str:
    has, chosen = ", ".join(attributes), [f"{name}: {value}" for name, value in options.items()]
    end = f", and price lower than {limit:.2f} dollars"
    asked = (
        f"Find me {has} {kind} with {', and '.join(chosen)}",
        f"i am looking for {kind} marked {' and '.join(attributes)}, in {' and '.join(chosen)}",
        f"i would like {kind}, {has}. please choose {', '.join(chosen)}",
    )
    return rng.choice(asked) + end


def reward(goal: Goal, bought: Product, chosen: Mapping[str, str]) -> float:
    """What a purchase earns, in [0, 1].

    WebShop's rule: the share of attributes, options and the price that are met, times a factor for the type.

    Args:
        goal: The wish.
        bought: The product.
        chosen: The options, by name.
    """
    met = sum(has_attribute(bought, words) for words in goal.attributes)
    met += sum(any(same_option(wanted, got) for got in chosen.values()) for wanted in goal.options.values())
    met += bought.price <= goal.limit
    return met / (len(goal.attributes) + len(goal.options) + 1) * type_factor(goal.model, bought)


def type_factor(wanted: Product, bought: Product) -> float:
    """1 for a product of the same query, with two categories or more than a fifth of the nouns in common; else less."""
    shared = len(wanted.nouns & bought.nouns) / len(wanted.nouns) if wanted.nouns else 0.2
    if shared == 0.0:
        return 0.0
    if shared < 0.1:
        return 0.1
    same = wanted.query == bought.query or len({*wanted.category} & {*bought.category}) >= 2 or shared > 0.2
    return 1.0 if same else 0.5


def has_attribute(bought: Product, words: str) -> bool:
    """Whether the product has the attribute by name, or speaks of it."""
    if any(likeness(own, words) > _ALIKE for own in bought.attributes):
        return True
    return any(words in text.lower() for text in (bought.title, " ".join(bought.features), bought.description))


def same_option(wanted: str, got: str) -> bool:
    """Whether an option's value is as good as the wanted one; shades of a color are."""
    return likeness(_shade(got), _shade(wanted)) > _ALIKE


def _shade(value: str) -> str:
    return next((color for color in _COLORS if color in value), value)


@functools.lru_cache(maxsize=65_536)
def likeness(one: str, other: str) -> int:
    """Percent of agreement of two texts' words, where what both have counts apart (the token set ratio)."""
    mine, theirs = ({*_WORDS.findall(text.lower())} for text in (one, other))
    shared = " ".join(sorted(mine & theirs))
    all_mine = f"{shared} {' '.join(sorted(mine - theirs))}".strip()
    all_theirs = f"{shared} {' '.join(sorted(theirs - mine))}".strip()
    pairs = ((shared, all_mine), (shared, all_theirs), (all_mine, all_theirs))
    return max(round(100 * difflib.SequenceMatcher(None, a, b).ratio()) if a and b else 0 for a, b in pairs)
