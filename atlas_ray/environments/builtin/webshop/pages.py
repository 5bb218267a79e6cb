"""One visit to the shop: WebShop's pages as texts, what can be clicked on each, and where a click leads.

Flows in: searches and clicks; flows out: the page at hand. Nothing that was typed is shown again.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlas_ray.environments.builtin.webshop.catalogue import Product
from atlas_ray.environments.builtin.webshop.goals import Goal, reward
from atlas_ray.environments.builtin.webshop.search import Search

PAGE_SIZE = 10
BACK, PREV, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
DETAILS = ("Description", "Features", "Reviews", "Attributes")
_ACTION = re.compile(r"(search|click)\[([^\[\]\n]{1,500})\]")


@dataclass
class Visit:
    """A shopper's way so far.

    Attributes:
        page: "search", "results", "item", "bought", or one of `DETAILS`.
        found: Numbers of the products that the last search found.
        number: The page of the results, from 1.
        item: The product at hand.
        chosen: Its options that were chosen, by name.
        queries: How often was searched.
        opened, studied: Products whose page, and whose features or attributes, were looked at.
        reward: What the purchase earned.
    """

    goal: Goal
    search: Search
    page: str = "search"
    found: list[int] = field(default_factory=list)
    number: int = 1
    item: Product | None = None
    chosen: dict[str, str] = field(default_factory=dict)
    queries: int = 0
    opened: set[str] = field(default_factory=set)
    studied: set[str] = field(default_factory=set)
    reward: float = 0.0

    @property
    def shown(self) -> list[Product]:
        """The products on the page of results at hand."""
        return [self.search.product(n) for n in self.found[(self.number - 1) * PAGE_SIZE : self.number * PAGE_SIZE]]

    @property
    def goes_on(self) -> bool:
        """Whether there is a next page of results."""
        return self.number * PAGE_SIZE < len(self.found)

    @property
    def buttons(self) -> list[str]:
        """What can be clicked, as it is shown."""
        item = self.item
        if self.page == "search":
            return ["Search"]
        if self.page == "bought":
            return []
        if self.page == "results":
            turns = [PREV] * (self.number > 1) + [NEXT] * self.goes_on
            return [BACK, *turns, *(one.asin for one in self.shown)]
        if self.page != "item" or item is None:
            return [BACK, PREV]
        return [BACK, PREV, *DETAILS, BUY, *(value for values in item.options.values() for value in values)]

    def play(self, action: str) -> None:
        """Plays `search[...]` or `click[...]`; anything else changes nothing."""
        found = _ACTION.match(action)
        if found and found[1] == "search":
            self.look_for(found[2])
        elif found:
            self.click(found[2])

    def look_for(self, words: str) -> None:
        """Searches, from whatever page."""
        self.found, self.number, self.page, self.item = self.search.find(words), 1, "results", None
        self.queries += 1

    def click(self, name: str) -> bool:
        """Clicks what is called so, in capitals or not; False if there is nothing of that name to be clicked."""
        button = next((one for one in self.buttons if one.lower() == name.lower()), None)
        if button is None or self.page == "search":
            return False
        if button == BACK:
            self.page, self.item, self.found = "search", None, []
        elif self.page == "results":
            self._turn(button)
        elif button == PREV:
            self.page = "results" if self.page == "item" else "item"
        elif self.item is not None:
            self._handle(self.item, button)
        return True

    def _turn(self, button: str) -> None:
        if button in (PREV, NEXT):
            self.number += 1 if button == NEXT else -1
            return
        self.item = next(one for one in self.shown if one.asin == button)
        self.page, self.chosen = "item", {}
        self.opened.add(button)

    def _handle(self, item: Product, button: str) -> None:
        if button in DETAILS:
            self.page = button
            if button in ("Features", "Attributes"):
                self.studied.add(item.asin)
        elif button == BUY:
            self.page, self.reward = "bought", reward(self.goal, item, self.chosen)
        else:
            name = next(name for name, values in item.options.items() if button in values)
            self.chosen[name] = button

    @property
    def parts(self) -> list[str]:
        """The page's texts in turn."""
        if self.page == "search":
            return ["WebShop", "Instruction:", self.goal.text, "Search"]
        if self.page == "bought" and self.item is not None:
            return _receipt(self.goal, self.item, self.chosen, self.reward)
        head = ["Instruction:", self.goal.text, BACK]
        if self.page == "results":
            listed = [part for one in self.shown for part in (one.asin, one.title, f"${one.price:.2f}")]
            turns = [PREV] * (self.number > 1) + [NEXT] * self.goes_on
            return [*head, f"Page {self.number} (Total results: {len(self.found)})", *turns, *listed]
        assert self.item is not None
        if self.page == "item":
            options = [part for name, values in self.item.options.items() for part in (name, *values)]
            about = [self.item.title, f"Price: ${self.item.price:.2f}", "Rating: N.A."]
            return [*head, PREV, *options, *about, *DETAILS, BUY]
        details = {
            "Description": [self.item.description],
            "Features": list(self.item.features),
            "Attributes": list(self.item.attributes),
        }
        return [*head, PREV, *details.get(self.page, [])]  # nobody has written a review yet

    @property
    def text(self) -> str:
        """The page as an observation."""
        return " [SEP] ".join(self.parts)

    @property
    def state(self) -> dict[str, str]:
        """What AgentGym's server tells of the page."""
        marked = "".join(f"<p>{html.escape(part)}</p>" for part in self.parts)
        return {"url": f"/{self.page.lower()}", "html": marked, "instruction_text": self.goal.text}

    @property
    def actions(self) -> dict[str, Any]:
        """What can be done here, in AgentGym's form."""
        return {"has_search_bar": self.page == "search", "clickables": [button.lower() for button in self.buttons]}


def _receipt(goal: Goal, item: Product, chosen: Mapping[str, str], earned: float) -> list[str]:
    return [
        *("Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"),
        *("Purchased", "asin", item.asin, "options", json.dumps(chosen), "attrs", "None", "category", "None"),
        *("query", "None", "product category", "None"),
        *("Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category"),
        *(
            "query",
            "Goal",
            "None",
            "Reward",
            "Your score (min 0.0, max 1.0)",
            f"{earned:.4g}",
            "Reward Details",
            "None",
        ),
    ]


class Visiting:
    """What a simulator tells of the visit that is under way."""

    _visit: Visit

    @property
    def available_actions(self) -> dict[str, Any]:
        """What the page offers, in AgentGym's form."""
        return self._visit.actions

    @property
    def state(self) -> dict[str, str]:
        """The page in AgentGym's form."""
        return self._visit.state
