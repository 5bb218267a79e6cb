"""WebShop's own files, served in place of the built-in catalogue: fixtures are our products in their fields."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tantivy", reason="needs the extra webshop: pip install 'atlas-ray[webshop]'")

from atlas_ray.environments.builtin.webshop.catalogue import product
from atlas_ray.environments.custom_data import load_custom_data
from atlas_ray.environments.http.server import create_app
from atlas_ray.errors import UserError
from tests.support.serving import play, remote, running


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """1,000 of our products in the fields of WebShop's files, with a wish that was made up for every second one."""
    items: list[dict[str, Any]] = []
    traits: dict[str, dict[str, Any]] = {}
    for one in map(product, range(1_000)):
        items.append(
            {
                **{"asin": one.asin, "name": one.title, "query": one.query.title(), "pricing": f"${one.price:.2f}"},
                **{"product_category": " › ".join(one.category), "full_description": one.description},
                **{"small_description": list(one.features), "images": ["x.jpg"], "brand": "Visit", "total_reviews": ""},
                "customization_options": {
                    name.title(): [{"value": f" {value.title()} ", "price": None, "image": None} for value in values]
                    for name, values in one.options.items()
                },
            }
        )
        traits[one.asin] = {"attributes": list(one.attributes)}
        if len(items) % 2:
            asked = {"instruction": f"Find me {one.attributes[0]} {one.query}"}
            traits[one.asin] |= asked | {"instruction_attributes": [one.attributes[0]]}
    items.append(items[0])  # twice, and two of no good identifier: WebShop leaves them out
    items += [items[0] | {"asin": asin} for asin in ("nan", "B0123456789")]
    options = list(product(1).options.values())
    wish = {"instruction": "i want it.", "instruction_attributes": [product(1).attributes[0]], "worker_id": "w"}
    people = {product(1).asin: [wish | {"instruction_options": [values[0] for values in options]}]}
    people[product(1).asin].append(wish | {"instruction_attributes": []})  # asks for nothing
    for name, data in [("shuffle", items), ("ins_v2", traits)]:
        (tmp_path / f"items_{name}_1000.json").write_text(json.dumps(data, indent=1, ensure_ascii=False), "utf-8")
    (tmp_path / "items_human_ins.json").write_text(json.dumps(people), "utf-8")
    return tmp_path / "items_shuffle_1000.json"


def test_webshops_files_make_the_wishes_that_webshop_makes(products: Path) -> None:
    """Every choice of options is a wish; they are shuffled as WebShop does it, and those of people come after them."""
    made: list[str] = []
    for one in map(product, range(0, 1_000, 2)):
        options = sorted(one.options.items())
        for values in itertools.product(*(values for _, values in options)):
            chosen = ", and ".join(f"{name}: {value}" for (name, _), value in zip(options, values, strict=True))
            made.append(f"Find me {one.attributes[0]} {one.query} with {chosen}, and price lower than ")
    random.Random(233).shuffle(made)
    assert products.stat().st_size > 2**20  # it is read in pieces
    custom = load_custom_data([f"webshop={products}"])["webshop"]
    assert custom.parts == {"items_ins_v2_1000.json": len(made), "items_human_ins.json": 1}
    simulator: Any = custom.simulator()
    for index in (0, 1, 500, len(made) - 1):
        simulator.reset(index)
        told = simulator.state["instruction_text"]
        assert told.startswith(made[index])
        limit = float(told.removeprefix(made[index]).removesuffix(" dollars"))
        assert limit > simulator._visit.goal.model.price
        assert simulator.reset(index).observation == f"WebShop [SEP] Instruction: [SEP] {told} [SEP] Search"
    assert simulator.reset(len(made)).observation.startswith(
        "WebShop [SEP] Instruction: [SEP] i want it, and price lower"
    )
    with pytest.raises(UserError, match=f"webshop has no task {len(made) + 1}"):
        simulator.reset(len(made) + 1)


def test_the_real_products_are_searched_shown_and_paid_as_the_built_in_ones(products: Path) -> None:
    custom = load_custom_data([f"webshop={products}"])["webshop"]
    simulator: Any = custom.simulator()
    ours = product(1)
    simulator.reset(custom.parts["items_ins_v2_1000.json"])  # somebody's wish for product 1
    results = simulator.step(f"search[{ours.title} {' '.join(ours.attributes)}]").observation.split(" [SEP] ")
    assert results[5:8] == [ours.asin, ours.title, f"${ours.price:.2f}"]
    page = simulator.step(f"click[{ours.asin.lower()}]").observation
    assert all(f"[SEP] {value} [SEP]" in page for values in ours.options.values() for value in values)
    assert " [SEP] ".join(ours.features) in simulator.step("click[Features]").observation
    simulator.step("click[< Prev]")
    for values in ours.options.values():
        simulator.step(f"click[{values[0]}]")
    bought = simulator.step("click[Buy Now]")
    assert (bought.reward, bought.done) == (1.0, True)
    assert simulator.step("search[tea]") == bought

    simulator.reset(custom.parts["items_ins_v2_1000.json"])
    simulator.step(f"search[{ours.title}]"), simulator.step(f"click[{ours.asin}]")
    asked = 1 + len(ours.options) + 1  # attribute, options, price
    assert simulator.step("click[Buy Now]").reward == pytest.approx(2 / asked)


@pytest.mark.parametrize(
    ("pricing", "low", "high"),
    [("", 100, 100), ("$1,299.00", 1299, 1299), ("$10.00$20.00", 10, 20), ("soon", 100, 100)],
)
def test_prices_are_read_as_webshop_reads_them(pricing: str, low: float, high: float, products: Path) -> None:
    item = json.loads(products.read_text("utf-8"))[0]
    item |= {"pricing": pricing, "customization_options": "", "query": None}
    products.write_text(json.dumps([item]), "utf-8")
    custom = load_custom_data([f"webshop={products}"])["webshop"]
    simulator: Any = custom.simulator()
    told = simulator.reset(0).observation
    assert custom.parts == {"items_ins_v2_1000.json": 1}
    assert low <= simulator._visit.goal.model.price <= high
    assert ("price lower" in told) == (high < 980)
    assert " with " not in told


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("items_shuffle_1000.json", None, "No such file"),
        ("items_ins_v2_1000.json", None, "No such file"),
        ("items_shuffle_1000.json", "{}", "not JSON of WebShop's form"),
        ("items_shuffle_1000.json", '[{"asin": "B1", "name": "x"}', "not JSON of WebShop's form"),
        ("items_shuffle_1000.json", "[" * 100_000, "not JSON of WebShop's form"),
        ("items_shuffle_1000.json", "[1]", "product 0: it: "),
        ("items_shuffle_1000.json", '[{"asin": "B1"}]', "product 0: name: Field required"),
        ("items_shuffle_1000.json", "[]", "nobody wishes for any of its products"),
        ("items_ins_v2_1000.json", "[]", "not an object by asin"),
        ("items_ins_v2_1000.json", "{}", "nobody wishes for any of its products"),
        ("items_human_ins.json", '{"ASIN": [{"instruction": 1}]}', "ASIN: instruction: "),
        ("items_human_ins.json", '{"ASIN": {}}', "ASIN: not a list of wishes"),
    ],
)
def test_other_files_are_named(file: str, content: str | None, told: str, products: Path) -> None:
    asin = json.loads(products.read_text("utf-8"))[0]["asin"]
    wrong = products.with_name(file)
    if content is None:
        wrong.unlink()
    else:
        wrong.write_text(content.replace("ASIN", asin), "utf-8")
    if "nobody" in told:
        products.with_name("items_human_ins.json").unlink()
    with pytest.raises(UserError) as caught:
        load_custom_data([f"webshop={products}"])
    assert told.replace("ASIN", asin) in caught.value.what
    assert (products.name if "nobody" in told else file) in caught.value.what


def test_a_number_is_the_built_in_catalogue_of_that_size(products: Path) -> None:
    custom = load_custom_data(["webshop=3000"])["webshop"]
    assert str(custom) == "test 0 to 199, train 200 to 4129"
    simulator: Any = custom.simulator()
    simulator.reset(7)
    assert simulator._visit.search.size == 3_000
    assert simulator.expert(random.Random(0)).action.startswith("search[")  # it is not somebody's own
    for wrong, told in (("999", "webshop cannot have 999 products"), ("shop.json", "neither a number nor")):
        with pytest.raises(UserError, match=told):
            load_custom_data([f"webshop={wrong}"])


async def test_webshops_dialect_serves_it(products: Path) -> None:
    app: Any = create_app(["webshop"], custom_data=load_custom_data([f"webshop={products}"]))
    async with running(app) as url, remote("webshop", url) as session:
        opening, results = await play(session, 3, ["Action: search[green tea]", "Action: click[Next >]"])
        assert opening.observation.startswith("WebShop [SEP] Instruction: [SEP] Find me ")
        assert [result.observation.split(" [SEP] ")[3][:6] for result in results] == ["Page 1", "Page 2"]
