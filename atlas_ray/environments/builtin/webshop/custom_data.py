"""WebShop's own products and wishes, as its `setup.sh` fetches them, or a seeded catalogue of another size.

Flows in: an `items_shuffle*.json` and, beside it, `items_ins_v2*.json` (attributes and made-up wishes) and perhaps
`items_human_ins.json` (people's wishes); flows out: a task per wish, in the order that WebShop and AgentGym give them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from atlas_ray.environments.builtin.scripted import task_at
from atlas_ray.environments.builtin.webshop.catalogue import Product
from atlas_ray.environments.builtin.webshop.goals import N_TEST, N_TRAIN, Goal
from atlas_ray.environments.builtin.webshop.pages import Visit, Visiting
from atlas_ray.environments.builtin.webshop.search import Search
from atlas_ray.environments.builtin.webshop.simulator import INSTRUCTION, WebShop
from atlas_ray.environments.custom_data import CustomData
from atlas_ray.environments.protocol import Opening, StepResult, Unscripted
from atlas_ray.errors import UserError

Form = TypeVar("Form", bound=BaseModel)

_CHUNK, _MOST_ITEM_CHARACTERS, _MOST_WISHES = 2**20, 2**24, 20_000_000
_SHUFFLE_SEED = 233  # WebShop's
_NO_PRICE, _NO_LIMIT = 100.0, 1_000_000.0  # WebShop's too
_GAP = re.compile(r"[\s,]*")
_PRICE = re.compile(r"\$\s*(\d[\d,]{0,9}(?:\.\d+)?)")
# words of titles that are no nouns; WebShop asks spaCy, which would take adjectives out as well
_NO_NOUNS = frozenset(("for", "with", "and", "the", "from", "our", "your", "you", "all", "any", "not", "are", "that"))


class _Value(BaseModel):
    value: str


class _Item(BaseModel):
    """A product in `items_shuffle`."""

    asin: str
    name: str
    query: str = ""
    product_category: str = ""
    full_description: str = ""
    small_description: list[str] | str = []
    pricing: str = ""
    customization_options: dict[str, list[_Value] | None] = {}


class _Traits(BaseModel):
    """What `items_ins_v2` holds of a product: its attributes, and a wish for it."""

    attributes: list[str] = []
    instruction: str | None = None
    instruction_attributes: list[str] | None = None


class _Wish(BaseModel):
    """A wish in `items_human_ins`."""

    instruction: str
    instruction_attributes: list[str]
    instruction_options: dict[str, str] | list[str] = []


@dataclass(frozen=True)
class _Shelf:
    """One product with what is wished of it."""

    product: Product
    made_up: _Traits
    people: tuple[_Wish, ...]


class Shop:
    """The products, their index, and the wishes, each made into a `Goal` when it is asked for.

    Attributes:
        made_up: How many wishes were made up from attributes and options; those of people come after them.
    """

    def __init__(self, shelves: list[_Shelf]) -> None:
        self._shelves = shelves
        made_up, people = array("q"), array("q")  # shelf and number there
        for at, shelf in enumerate(shelves):
            if shelf.made_up.instruction is not None and shelf.made_up.instruction_attributes:
                choices = math.prod(len(values) for values in shelf.product.options.values())
                if len(made_up) + choices > _MOST_WISHES:
                    raise UserError(f"more than {_MOST_WISHES:,} wishes", "serve fewer products")
                made_up.extend(range(at << 32, (at << 32) + choices))
            people.extend((at << 32) + n for n, wish in enumerate(shelf.people) if wish.instruction_attributes)
        for wishes in (made_up, people):
            random.Random(_SHUFFLE_SEED).shuffle(wishes)  # type: ignore[arg-type]
        self.made_up, self._wishes = len(made_up), made_up + people

    def __len__(self) -> int:
        return len(self._wishes)

    @functools.cached_property
    def search(self) -> Search:
        """The index that all sessions share."""
        letters = sum(len(shelf.product.text) for shelf in self._shelves) // len(self._shelves)
        return Search(len(self._shelves), lambda number: self._shelves[number].product, 1_000 + 2 * letters)

    def goal(self, index: int) -> Goal:
        """Wish `index`; its limit is drawn above the product's price, as in WebShop, but the same each time."""
        at, number = divmod(self._wishes[index], 2**32)
        shelf = self._shelves[at]
        product = shelf.product
        rng = random.Random(f"webshop/{product.asin}/{index < self.made_up}/{number}")
        above = [10.0 * n for n in range(1, 100) if 10.0 * n > product.price][:4]
        limit = max(rng.sample(above, 2)) if len(above) > 1 else _NO_LIMIT
        end = f", and price lower than {limit:.2f} dollars" if len(above) > 1 else ""
        if index >= self.made_up:
            wish = shelf.people[number]
            given = wish.instruction_options
            chosen = given if isinstance(given, dict) else {str(n): value for n, value in enumerate(given)}
            return Goal(product, tuple(wish.instruction_attributes), chosen, limit, wish.instruction.strip(".") + end)
        chosen = {}
        for name in sorted(product.options, reverse=True):  # the last option's values change fastest
            number, n = divmod(number, len(product.options[name]))
            chosen[name] = product.options[name][n]
        chosen = dict(sorted(chosen.items()))
        options = ", and ".join(f"{name}: {value}" for name, value in chosen.items())
        text = f"{shelf.made_up.instruction}{' with ' if options else ''}{options}{end}"
        return Goal(product, tuple(shelf.made_up.instruction_attributes or ()), chosen, limit, text)


def load(given: str) -> CustomData:
    """A shop: a number of products of the built-in catalogue, or a file of WebShop's.

    Raises:
        UserError: If a file is missing or not in WebShop's form, there is nothing to be wished, or the number is out of
            the catalogue's bounds.
    """
    if given.isdecimal():
        WebShop(int(given))  # makes the index now
        return CustomData(functools.partial(WebShop, int(given)), {"test": N_TEST, "train": N_TRAIN})
    file = Path(given)
    if "items_shuffle" not in file.name:
        raise UserError(f"webshop={given} is neither a number nor an items_shuffle file", "name WebShop's file so")
    traits = file.with_name(file.name.replace("items_shuffle", "items_ins_v2"))
    people = file.with_name("items_human_ins.json")
    shop = Shop(list(_shelves(file, traits, people)))
    if not len(shop):
        raise UserError(f"{file}: nobody wishes for any of its products", f"take {traits.name} from the same download")
    parts = {traits.name: shop.made_up, people.name: len(shop) - shop.made_up}
    OwnWebShop(shop)  # makes the index now
    return CustomData(functools.partial(OwnWebShop, shop), {name: size for name, size in parts.items() if size})


class OwnWebShop(Visiting, Unscripted):
    """The simulator: the purchase's reward in [0, 1], and done at the purchase."""

    def __init__(self, shop: Shop) -> None:
        self._shop, self._search = shop, shop.search

    def reset(self, index: int) -> Opening:
        """Starts with wish `index`.

        Raises:
            UserError: If there is no such wish.
        """
        self._visit = Visit(self._shop.goal(task_at(range(len(self._shop)), index, "webshop")), self._search)
        return Opening(INSTRUCTION, self._visit.text)

    def step(self, action: str) -> StepResult:
        """Plays `search[...]` or `click[...]`; anything else, and anything after the purchase, changes nothing."""
        if self._visit.page != "bought":
            self._visit.play(action[:2_000].strip())
        return StepResult(self._visit.text, self._visit.reward, self._visit.page == "bought")


def _shelves(file: Path, traits_file: Path, people_file: Path) -> Iterator[_Shelf]:
    """The products in the file's order, without those that WebShop leaves out: bad identifiers and repetitions."""
    traits, seen = _by_asin(traits_file), set[str]()
    people = _by_asin(people_file) if people_file.exists() else {}
    for number, raw in enumerate(_items(file)):
        told = (
            {key: value for key, value in raw.items() if value} if isinstance(raw, dict) else raw
        )  # "" for no options
        item = _form(_Item, told, f"{file}: product {number}")
        if item.asin == "nan" or len(item.asin) > 10 or item.asin in seen:
            continue
        seen.add(item.asin)
        known = _form(_Traits, traits.get(item.asin, {}), f"{traits_file}: {item.asin}")
        wishes = people.get(item.asin, [])
        where = f"{people_file}: {item.asin}"
        if not isinstance(wishes, list):
            raise UserError(f"{where}: not a list of wishes", "take WebShop's file as it is")
        yield _Shelf(_product(item, known), known, tuple(_form(_Wish, wish, where) for wish in wishes))


def _product(item: _Item, traits: _Traits) -> Product:
    prices = [float(found.replace(",", "")) for found in _PRICE.findall(item.pricing)][:2] or [_NO_PRICE]
    price = round(random.Random(f"webshop/{item.asin}").uniform(min(prices), max(prices)), 2)
    options = {
        name.lower(): tuple(_value(one.value) for one in values)
        for name, values in item.customization_options.items()
        if values is not None
    }
    features = item.small_description
    return Product(
        item.asin,
        item.name,
        price,
        item.query.lower().strip(),
        tuple(part.strip() for part in item.product_category.split("›")),
        tuple(traits.attributes),
        options,
        tuple(features) if isinstance(features, list) else (features,),
        item.full_description,
        frozenset(word for word in re.findall(r"[a-z]{3,}", item.name.lower()) if word not in _NO_NOUNS),
    )


def _value(text: str) -> str:
    """An option's value as WebShop shows it; in round brackets, for others would end a click."""
    return " ".join(text.replace("/", " | ").replace("[", "(").replace("]", ")").lower().split())


def _form(form: type[Form], raw: Any, where: str) -> Form:
    try:
        return form.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "it"
        raise UserError(f"{where}: {field}: {first['msg']}", "take WebShop's file as it is") from None


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Says which file cannot be read."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", "WebShop's setup.sh fetches it") from None
    except (ValueError, RecursionError) as error:
        said = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UserError(f"{file}: not JSON of WebShop's form ({said})", "fetch it again") from None


def _by_asin(file: Path) -> dict[str, Any]:
    """A file's JSON object, by the products' identifiers."""
    with _reading(file):
        found = json.loads(file.read_text("utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"{file}: not an object by asin", "take WebShop's file as it is")
    return found


def _items(file: Path) -> Iterator[Any]:
    """The items of a JSON list one at a time: WebShop's whole file has gigabytes."""
    decode = json.JSONDecoder().raw_decode
    with _reading(file), file.open(encoding="utf-8") as stream:
        text = stream.read(_CHUNK).lstrip()
        if not text.startswith("["):
            raise ValueError("not a list")
        at = 1
        while True:
            gap = _GAP.match(text, at)
            at = gap.end() if gap else at
            if text.startswith("]", at):
                return
            try:
                item, at = decode(text, at)
            except json.JSONDecodeError:
                more = stream.read(_CHUNK)
                if not more or len(text) - at > _MOST_ITEM_CHARACTERS:
                    raise
                text, at = text[at:] + more, 0
                continue
            yield item
