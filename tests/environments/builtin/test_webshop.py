"""WebShop: its pages and clicks, its reward, its search, what its agents do, and its dialect."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from atlas_ray.environments.builtin.webshop.catalogue import DEPARTMENTS, product
from atlas_ray.environments.builtin.webshop.goals import (
    N_TEST,
    Goal,
    goals,
    has_attribute,
    likeness,
    reward,
    same_option,
)
from atlas_ray.environments.builtin.webshop.pages import Visit
from atlas_ray.environments.builtin.webshop.search import Search, search_of
from atlas_ray.environments.builtin.webshop.simulator import WebShop
from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError
from tests.support.serving import running
from tests.support.simulators import HUGE_ACTIONS

pytest.importorskip("tantivy", reason="needs the extra webshop: pip install 'atlas-ray[webshop]'")


def do(simulator: WebShop, *actions: str) -> list[str]:
    """Plays actions; the last page's parts."""
    for action in actions:
        result = simulator.step(action)
    return result.observation.split(" [SEP] ")


def model_goal() -> tuple[int, Goal]:
    """A task with two options and two attributes or more."""
    return next((n, goal) for n, goal in enumerate(goals()) if len(goal.options) == 2 and len(goal.attributes) > 1)


# --- pages ---


def test_the_pages_are_webshops() -> None:
    index, goal = model_goal()
    simulator, model = WebShop(), goal.model
    assert simulator.reset(index).observation == f"WebShop [SEP] Instruction: [SEP] {goal.text} [SEP] Search"
    assert simulator.available_actions == {"has_search_bar": True, "clickables": ["search"]}
    head = ["Instruction:", goal.text, "Back to Search"]

    query = f"search[{model.title} {' '.join(model.attributes)}]"
    results = do(simulator, query)
    assert results[:5] == [*head, "Page 1 (Total results: 50)", "Next >"]
    assert results[5:8] == [model.asin, model.title, f"${model.price:.2f}"]
    assert len(results) == 5 + 30
    assert do(simulator, "click[Next >]")[3:6] == ["Page 2 (Total results: 50)", "< Prev", "Next >"]
    assert do(simulator, "click[next >]", "click[Next >]", "click[Next >]")[3:5] == [
        "Page 5 (Total results: 50)",
        "< Prev",
    ]
    assert do(simulator, *["click[< Prev]"] * 4) == results

    options = [part for name, values in model.options.items() for part in (name, *values)]
    item = [*head, "< Prev", *options, model.title, f"Price: ${model.price:.2f}", "Rating: N.A."]
    item += ["Description", "Features", "Reviews", "Attributes", "Buy Now"]
    assert do(simulator, f"click[{model.asin.lower()}]") == item
    assert do(simulator, "click[Features]") == [*head, "< Prev", *model.features]
    assert do(simulator, "click[< Prev]", "click[Attributes]") == [*head, "< Prev", *model.attributes]
    assert do(simulator, "click[< Prev]", "click[Description]") == [*head, "< Prev", model.description]
    assert do(simulator, "click[< Prev]", "click[Reviews]") == [*head, "< Prev"]
    assert do(simulator, "click[< Prev]", *(f"click[{value}]" for value in goal.options.values())) == item
    bought = simulator.step("click[Buy Now]")
    assert (bought.reward, bought.done) == (1.0, True)
    receipt = bought.observation.split(" [SEP] ")
    assert receipt[:7] == [
        *("Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"),
        *("Purchased", "asin", model.asin),
    ]
    assert receipt[receipt.index("Your score (min 0.0, max 1.0)") + 1] == "1"
    assert simulator.step("click[Back to Search]") == bought


@pytest.mark.parametrize(
    "action",
    [
        *("", "dance", "click[search]", "click[Buy Now]", "click[]", "search[]", "Search[lamp]", "click[B000000000]"),
        *("search lamp", "click[< Prev]", " x search[lamp]", "search[a\nb]", "search[" + "x" * 600 + "]"),
    ],
)
def test_impossible_actions_change_nothing(action: str) -> None:
    simulator = WebShop()
    first = simulator.reset(0).observation
    result = simulator.step(action)
    assert (result.observation, result.reward, result.done) == (first, 0.0, False)


def test_another_product_forgets_what_was_chosen_and_a_new_value_replaces_the_old() -> None:
    _, goal = model_goal()
    visit = Visit(goal, search_of(1_000))
    visit.look_for(goal.text)
    one, other = visit.shown[:2]
    name, values = next(iter(one.options.items()))
    visit.click(one.asin)
    visit.click(values[0]), visit.click(values[1])
    assert visit.chosen == {name: values[1]}
    visit.click("< Prev"), visit.click(other.asin)
    assert visit.chosen == {}


# --- reward ---


def test_the_reward_is_the_share_that_is_met_times_the_type() -> None:
    _, goal = model_goal()
    model, options = goal.model, dict(goal.options)
    goal = replace(goal, attributes=goal.attributes[:2])
    assert reward(goal, model, options) == 1.0  # 2 attributes, 2 options, the price
    name = next(iter(options))
    assert reward(goal, model, {k: v for k, v in options.items() if k != name}) == pytest.approx(4 / 5)
    assert reward(goal, replace(model, price=goal.limit + 0.01), options) == pytest.approx(4 / 5)
    bare = replace(model, attributes=(), features=(), title="Thing", description="")
    assert reward(goal, bare, options) == pytest.approx(3 / 5)
    assert reward(goal, model, {}) == pytest.approx(3 / 5)
    # the type: nouns, query and category
    stranger = replace(model, query="lamps", category=("Home", "Lamps"), nouns=frozenset({"lamps"}))
    assert reward(goal, stranger, options) == 0.0
    wanted = replace(goal.model, nouns=frozenset(f"n{n}" for n in range(10)))
    for shared, factor in [(0, 0.0), (1, 0.5), (2, 0.5), (3, 1.0)]:
        other = replace(stranger, nouns=frozenset(f"n{n}" for n in range(shared)))
        assert _factor(wanted, other) == factor
    assert _factor(wanted, replace(model, nouns=frozenset({"n1"}))) == 1.0  # of the same query


def _factor(wanted: Any, bought: Any) -> float:
    from atlas_ray.environments.builtin.webshop.goals import type_factor

    return type_factor(wanted, bought)


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        ("red", "red", True),
        ("navy blue", "light blue", True),  # shades of one color
        ("red", "green", False),
        ("small", "large", False),
        ("large", "x-large", True),  # WebShop's own leniency: all words of the one are in the other
        ("12 ounce (pack of 6)", "24 count", False),
    ],
)
def test_options_agree_as_webshops_token_sets_do(wanted: str, got: str, same: bool) -> None:
    assert same_option(wanted, got) is same


def test_likeness() -> None:
    assert likeness("long sleeve", "sleeve long") == 100
    assert likeness("machine wash", "machine washable") == 86  # 2 * 12 of 28 letters
    assert likeness("a", "") == 0
    assert has_attribute(replace(product(0), description="It is quite waterproof"), "waterproof")


# --- catalogue and search ---


def test_products_differ_and_do_not_depend_on_the_size() -> None:
    some = [product(n) for n in range(1_000)]
    assert len({one.asin for one in some}) == 1_000
    assert {one.query for one in some} == {kind for department in DEPARTMENTS for kind in department.kinds}
    assert {len(one.asin) for one in some} == {10}
    for one in some:
        assert any(words in one.title.lower() for words in one.attributes)
        assert all(any(words in line for line in one.features) for words in one.attributes)
    assert Search(1_000).find("leather sofa for cats") == Search(1_000).find("leather sofa for cats") != []


def test_the_search_ranks_what_holds_more_of_the_words_higher() -> None:
    search = search_of(1_000)
    for n in (3, 400, 999):
        assert search.find(product(n).title + " " + product(n).text)[0] == n
    assert len(search.find("men's")) == 50
    assert search.find("qwertyuiop") == search.find("") == search.find('"+-:^~*?\\/()[]{}') == []
    tied = search.find("green tea")
    assert tied == search.find("tea GREEN tea!")


@pytest.mark.parametrize(
    "query", ["text:*", "AND OR NOT", "number:[0 TO 9]", "a^99", '"unclosed', "x" * 500, "é☃١\x00"]
)
def test_queries_are_not_parsed(query: str) -> None:
    assert isinstance(search_of(1_000).find(query), list)


def test_sizes_are_bounded() -> None:
    for size in (999, 1_000_001):
        with pytest.raises(UserError, match="webshop cannot have"):
            WebShop(size)


def test_a_larger_shop_has_the_same_tasks_and_more_to_find() -> None:
    small, large = WebShop(), WebShop(3_000)
    assert small.reset(7).observation == large.reset(7).observation
    small.step("search[green tea]"), large.step("search[green tea]")
    assert small.state["html"] != large.state["html"]


# --- agents ---


def test_train_and_test_do_not_overlap() -> None:
    spec = get("webshop")
    assert {t.id for t in spec.tasks("test")}.isdisjoint(t.id for t in spec.tasks("train"))
    texts = [goal.text for goal in goals()]
    assert len(set(texts)) == len(texts)
    assert (len(texts[:N_TEST]), len(texts[N_TEST:])) == (200, 3930)


# --- replies ---

PIECES = (
    "search[",
    "click[",
    "]",
    "buy now",
    "Thought: ",
    "Action: ",
    "\n",
    "AND",
    "text:",
    '"',
    "(",
    "^2",
    "~",
    "\ud800",
)
CODE = [
    "search[__import__('os').system('x')]",
    "click[{}.__class__]",
    "search[{0}%s$(id)`id`]",
    "search[*:*]",
    "click[\\]",
]


def fuzzed(rng: random.Random, simulator: WebShop) -> str:
    """A reply that is mostly a search or a click of wild or offered words."""
    wild = "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(20)))
    offered = rng.choice([*simulator.available_actions["clickables"], "search"])
    inner = rng.choice([wild, offered, offered, *CODE, "".join(rng.choices(PIECES, k=4)), "rose lotion"])
    reply = f"Thought: {wild}\nAction: {rng.choice(['search', 'click', 'click', wild])}[{inner}]"
    return rng.choice([reply, reply, reply, "".join(rng.choices(PIECES, k=8)), wild])


def test_random_replies_get_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000, and those that are huge."""
    rng, simulator, spec, done, moved = random.Random("fuzz"), WebShop(), get("webshop"), True, 0
    for name in ("eval", "exec", "compile"):
        monkeypatch.setattr(f"builtins.{name}", lambda *_, name=name: pytest.fail(f"{name} was called"))
    huge = [
        *HUGE_ACTIONS,
        "search[" * 2**17,
        "search[" + "x " * 2**19 + "]",
        "Action: " * 2**17,
        "search[" + "[" * 2**20,
    ]
    for n in range(2_000 + len(huge)):
        if done:
            page = simulator.reset(rng.randrange(4_130)).observation
        expert = rng.random() < 0.2  # so that it gets somewhere
        reply = huge[n - 2_000] if n >= 2_000 else simulator.expert(rng).reply if expert else fuzzed(rng, simulator)
        result = simulator.step(spec.take_action(reply) or "")
        assert len(result.observation) < 10_000
        result.observation.encode()
        assert 0 <= result.reward <= 1
        moved += not expert and result.observation != page
        done, page = result.done, result.observation
        if n % 5 == 0:
            assert "Action: " in simulator.novice(rng).reply
    assert moved > 100  # some are understood


# --- the dialect ---


async def test_the_dialect() -> None:
    async with running(create_app(["webshop"])) as url, aiohttp.ClientSession(url) as http:

        async def ask(method: str, path: str, status: int = 200, **body: Any) -> Any:
            sent = {"params": body} if method == "GET" else {"json": body or None}
            async with http.request(method, path, **sent) as response:
                assert response.status == status
                return await (response.json() if status != 500 else response.text())

        one, other = await ask("POST", "/create"), await ask("POST", "/create")
        assert isinstance(one, int)
        page = goals()[5].text
        assert await ask("POST", "/reset", env_idx=one, session_id=5) == [
            f"WebShop [SEP] Instruction: [SEP] {page} [SEP] Search",
            None,
        ]
        first = await ask("GET", "/observation", env_idx=one)
        assert page in first
        assert page not in await ask("GET", "/observation", env_idx=other)
        assert await ask("GET", "/instruction_text", env_idx=one) == page
        step = await ask("POST", "/step", env_idx=one, action="search[rose]")
        assert list(step) == ["state", "reward", "done", "info"]
        assert (step["reward"], step["done"], step["info"]) == (0.0, False, None)
        assert await ask("GET", "/observation", env_idx=one) == step["state"]
        actions = await ask("GET", "/available_actions", env_idx=one)
        assert actions["has_search_bar"] is False
        assert actions["clickables"][0] == "back to search"
        assert set(await ask("GET", "/state", env_idx=one)) == {"url", "html", "instruction_text"}
        assert await ask("GET", "/list_envs") == [one, other]
        assert (await ask("POST", "/reset", env_idx=one, session_id=None))[0] == first  # the same task again
        asin = actions["clickables"][-1]
        for action in ("search[rose]", f"click[{asin}]"):
            await ask("POST", "/step", env_idx=one, action=action)
        ends = [await ask("POST", "/step", env_idx=one, action="click[Buy Now]") for _ in range(2)]
        assert ends[0]["done"]
        assert ends[0] == ends[1]  # only a reset starts anew
        assert await ask("POST", "/step", 500, env_idx=one + 10**9, action="x") == "Internal Server Error"
        assert await ask("POST", "/reset", 500, env_idx=one, session_id=10**6) == "Internal Server Error"
        await ask("POST", "/step", 422, env_idx=one)
