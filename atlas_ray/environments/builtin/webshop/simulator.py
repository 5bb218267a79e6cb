"""WebShop: buy what an instruction asks for, in the texts and with the reward of WebShop, on a seeded catalogue.

A task is a wish; `search[...]` and `click[...]` lead through the shop's pages until something is bought.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from atlas_ray.environments.builtin.scripted import any_category, errs, task_at
from atlas_ray.environments.builtin.webshop.goals import N_PRODUCTS, N_TEST, N_TRAIN, goals
from atlas_ray.environments.builtin.webshop.pages import Visit, Visiting
from atlas_ray.environments.builtin.webshop.search import search_of
from atlas_ray.environments.builtin.webshop.shopper import Errand, Stage, plan
from atlas_ray.environments.http.dialects import Dialect
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.errors import UserError
from atlas_ray.types import Category

INSTRUCTION = """\
You are shopping on the web and follow an instruction that says what to buy. Every round you get an observation, the \
page that you are at, and answer with a thought and one action. The actions are:
- search[keywords]: look for products, where there is a search bar; the keywords are up to you, choose them with care
- click[value]: click a button, a product or an option that the page offers; the value must be one of those
An action that is not possible changes nothing. Choose all options that are asked for before you buy.
Answer in this form:
Thought: your thought
Action: click[something]"""

MAX_ROUNDS = 10
MOST_PRODUCTS = 1_000_000
_READING = re.compile(r"click\[(description|features|reviews|attributes)\]")

PLAN, SEEN = Category.PLAN_CREATION, Category.CRITICAL_OBSERVATION
ACT, MEND = Category.CRITICAL_ACTION, Category.SELF_CORRECTION

_SAY: dict[Stage, tuple[str, ...]] = {
    "search": (
        "I need {kind} with {options}, below {limit} dollars. I start with a search for {has} {kind}.",
        "The plan: search for {has} {kind}, compare prices with {limit} dollars, choose {options}, then buy.",
        "First I search with the words that matter: {kind}, {has}. Then I look for {options}.",
    ),
    "pick": (
        "I compare the results: {asin} costs {price} dollars, below {limit}, and looks like {has} {kind}.",
        "Of these {kind}, {asin} fits best: {price} dollars is within {limit}.",
        "{asin} is one of the {kind} and costs {price}. The limit is {limit}, so I open it.",
        "The limit of {limit} rules some out. {asin} at {price} dollars may be {has}.",
    ),
    "turn": (
        "Nothing here fits {has} {kind} below {limit} dollars. I look further.",
        "None of these will do. I go on.",
    ),
    "leave": ("This will not do: {reason}. I go back.", "I should not buy it, for {reason}. Back to the results."),
    "study": (
        "The title does not tell whether it is {has}. I look into the details.",
        "I check that it is {has} before I choose anything.",
        "Is it {has}? The page should say so.",
    ),
    "return": ("I have read it. Back to the product.", "That is what I wanted to know. I go back.", "I return."),
    "option": (
        "The {name} has to be {value}, so I choose it.",
        "Now I choose {value} as the {name}.",
        "The instruction asks for {name} {value}.",
    ),
    "buy": (
        "It is {has}, costs {price} dollars, and {options} is chosen: I buy it.",
        "Everything fits: {options}, {price} of at most {limit} dollars. I buy now.",
        "All that was asked for is chosen, so this is the time to buy.",
    ),
}
_MENDING = {
    "option": ("That was the wrong choice. The {name} has to be {value}.", "I made a mistake: I need {name} {value}."),
    "leave": ("I opened the wrong product: {reason}. I go back.", "That click was a mistake, {reason}. Back."),
}
_MENDING_ELSE = ("The last action did not help. I set it right.", "That was wrong, so I go on in another way.")
_READ = ("I read the description before I decide.", "I want to know more about it.")


class WebShop(Visiting):
    """The simulator: the purchase's reward in [0, 1], and done at the purchase.

    Args:
        products: Size of the shop, from 1,000 to 1,000,000. The tasks are the same in all, the results are not.

    Raises:
        UserError: If the size is out of these bounds, or tantivy is not installed.
    """

    def __init__(self, products: int = N_PRODUCTS) -> None:
        if not N_PRODUCTS <= products <= MOST_PRODUCTS:
            raise UserError(
                f"webshop cannot have {products:,} products", f"choose from {N_PRODUCTS:,} to {MOST_PRODUCTS:,}"
            )
        self._search = search_of(products)

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        self._visit = Visit(task_at(goals(), index, "webshop"), self._search)
        self._steps, self._mistakes, self._failed = 0, 0, False
        return Opening(INSTRUCTION, self._visit.text)

    def step(self, action: str) -> StepResult:
        """Plays `search[...]` or `click[...]`; anything else, and anything after the purchase, changes nothing."""
        visit = self._visit
        if visit.page != "bought":
            action = action[:2_000].strip()
            due = plan(visit, self._left)
            self._failed = action.lower() != due.action.lower() and not _READING.match(action.lower())
            self._failed &= not (due.stage == "search" and action.startswith("search["))
            self._mistakes += self._failed
            self._steps += 1
            visit.play(action)
        return StepResult(visit.text, visit.reward, visit.page == "bought")

    def expert(self, rng: random.Random) -> Decision:
        """Follows the plan; in some episodes it clicks a wrong product or option, and corrects that at once."""
        errand, category = self._situation()
        spare = self._left - len(self._visit.goal.options)
        if errand.stage in ("pick", "option") and not self._mistakes and spare >= 6 and rng.random() < 0.1:
            wrong = errand.wrong[:-1] if errand.stage == "option" else errand.wrong
            if wrong:
                return replace(_decide(rng, errand, None), action=wrong[rng.randrange(len(wrong))])
        if errand.stage == "option" and errand.first and not self._failed and spare >= 4 and rng.random() < 0.15:
            return Decision(rng.choice(_READ), "click[Description]")
        return _decide(rng, errand, category)

    def novice(self, rng: random.Random) -> Decision:
        """Knows the pages; it often takes a product that does not fit, chooses wrong options, and buys too soon."""
        errand, category = self._situation()
        decided = _decide(rng, errand, category, any_category(rng, category))
        kind = self._visit.goal.model.query
        if category is None or not errand.wrong or not errs(rng, _SHARE.get(errand.stage, 0.0), errand.stage, kind):
            return decided
        mistaken = random.Random(f"{errand.action}/{kind}").choice(errand.wrong)  # the same mistake each time
        return replace(decided, action=mistaken)

    @property
    def _left(self) -> int:
        return max(1, MAX_ROUNDS - self._steps)

    def _situation(self) -> tuple[Errand, Category | None]:
        """The errand that is due and, if it is a decision, its category."""
        errand = plan(self._visit, self._left)
        if self._failed or errand.stage == "leave":
            return errand, MEND
        if errand.stage == "option" and not errand.first:
            return errand, None
        return errand, _CATEGORIES.get(errand.stage)


_CATEGORIES: dict[Stage, Category] = {"search": PLAN, "pick": SEEN, "option": ACT, "buy": ACT}
_SHARE: dict[Stage, float] = {"search": 0.3, "pick": 0.3, "leave": 0.6, "option": 0.3, "buy": 0.0}


def _decide(rng: random.Random, errand: Errand, category: Category | None, spoken: Category | None = None) -> Decision:
    choices = _SAY[errand.stage]
    if MEND in (category, spoken):
        choices = _MENDING.get(errand.stage, _MENDING_ELSE)
    thought = rng.choice(choices).format(**errand.words)
    action = errand.action
    if errand.stage == "study" and rng.random() < 0.5:
        action = "click[Attributes]"
    # decisions of every kind reach the top somewhere
    return Decision(thought, action, category, 0.3 + 0.7 * rng.random() if category else 0.0)


SPEC = EnvironmentSpec(
    *("webshop", "in", MAX_ROUNDS, "success", "last"),
    instruction=INSTRUCTION,
    simulator=WebShop,
    n_train=N_TRAIN,
    n_test=N_TEST,
    extra="webshop",
    names_task=r"Instruction: .*?(?=, and price lower than | \[SEP\] Search|$)",
    tolerance=0.05,  # AgentGym's server draws price limits anew for every id
    dialect=Dialect(
        id_key="env_idx",
        index_key="session_id",
        observation_key="state",
        opening="observation",
        closes=False,
        bare=True,
        paged=True,
    ),
    custom_data="atlas_ray.environments.builtin.webshop.custom_data",
    agentgym="webshop",
    probe_actions=("search[lamp]", "search[red lamp]"),
)
