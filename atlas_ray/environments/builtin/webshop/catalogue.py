"""The seeded catalogue: product n is a function of n alone, so that a larger shop holds every smaller one.

Flows in: a product's number; flows out: a `Product` in WebShop's fields.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

_COLORS = (
    "black",
    "white",
    "navy blue",
    "red",
    "green",
    "grey",
    "purple",
    "pink",
    "yellow",
    "orange",
    "brown",
    "beige",
)


@dataclass(frozen=True)
class Department:
    """Products alike in what they are called, described and chosen by.

    Attributes:
        path: Their category below the kind.
        kinds: What they are.
        attributes: What may hold of them.
        options: The values that a product may offer, by the option's name.
        prices: The lowest and the highest, in dollars.
    """

    path: tuple[str, ...]
    kinds: tuple[str, ...]
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    prices: tuple[float, float]


DEPARTMENTS = (
    Department(
        ("Clothing, Shoes & Jewelry", "Clothing"),
        (
            *("men's dress shirts", "men's t-shirts", "men's polos", "women's sweaters", "women's blouses"),
            *("men's hoodies", "women's dresses", "women's leggings", "men's shorts", "women's jackets"),
        ),
        (
            *("machine wash", "hand wash", "slim fit", "regular fit", "long sleeve", "short sleeve", "quick drying"),
            *("moisture wicking", "polyester cotton", "elastic waist", "button closure", "stretch fabric"),
            *("water resistant", "drawstring closure"),
        ),
        {"color": _COLORS, "size": ("small", "medium", "large", "x-large", "xx-large", "3x-large")},
        (9, 90),
    ),
    Department(
        ("Clothing, Shoes & Jewelry", "Shoes"),
        (
            *("men's sneakers", "women's sandals", "men's loafers", "women's boots", "men's running shoes"),
            "women's slippers",
        ),
        (
            *("rubber sole", "anti slip", "arch support", "memory foam", "open toe", "leather lining", "high heel"),
            *("lace closure", "all day comfort", "steel toe", "ankle strap", "faux fur"),
        ),
        {"color": _COLORS, "size": ("6", "6.5", "7", "8", "8.5", "9", "9.5", "10", "11", "12")},
        (15, 140),
    ),
    Department(
        ("Beauty & Personal Care",),
        (
            *("body lotion", "hair shampoo", "hair conditioner", "lip balm", "face serum", "hair mask", "hand cream"),
            "eye cream",
        ),
        (
            *("cruelty free", "sulfate free", "paraben free", "long lasting", "coconut oil", "tea tree"),
            *(
                "hyaluronic acid",
                "sensitive skin",
                "dermatologist tested",
                "fragrance free",
                "alcohol free",
                "easy to apply",
            ),
        ),
        {
            "scent": ("lavender", "vanilla", "rose", "citrus", "mint", "unscented", "almond", "jasmine"),
            "size": ("1 ounce", "2.5 ounce", "4 ounce", "8 ounce", "16 ounce", "travel set"),
        },
        (4, 45),
    ),
    Department(
        ("Electronics",),
        (
            *("bluetooth speakers", "usb cables", "phone cases", "wireless headphones", "tablet stands"),
            *("power banks", "security cameras", "hdmi adapters"),
        ),
        (
            *("fast charging", "noise cancelling", "water proof", "high speed", "plug and play", "easy to install"),
            *("hands free", "stereo sound", "gold plated", "heavy duty", "carrying case", "high definition"),
        ),
        {"color": _COLORS, "style": ("standard", "compact", "pro", "with charger", "2 pack", "5 pack")},
        (8, 160),
    ),
    Department(
        ("Home & Kitchen",),
        (
            *("storage ottomans", "area rugs", "table lamps", "coffee tables", "throw pillows", "blackout curtains"),
            *("bookcases", "bar stools"),
        ),
        (
            *("easy to assemble", "space saving", "solid wood", "steel frame", "machine washable", "eco friendly"),
            *("mid century", "faux leather", "living room", "easy to clean", "non slip", "high density"),
        ),
        {
            "color": _COLORS,
            "size": ("16 x 16 inch", "20 x 20 inch", "2 x 3 feet", "4 x 6 feet", "52 x 84 inch", "set of two"),
        },
        (14, 240),
    ),
    Department(
        ("Grocery & Gourmet Food",),
        (
            *("granola bars", "green tea", "protein powder", "dried mango", "popcorn", "coffee beans", "cookies"),
            "hot sauce",
        ),
        (
            *("gluten free", "non gmo", "sugar free", "low carb", "keto friendly", "plant based", "dairy free"),
            *("high protein", "nut free", "usda organic", "kosher certified", "low sodium"),
        ),
        {
            "flavor name": (
                "original",
                "chocolate",
                "peanut butter",
                "sea salt",
                "honey",
                "cinnamon",
                "coconut",
                "chili",
            ),
            "size": ("3 ounce (pack of 1)", "12 ounce (pack of 1)", "12 ounce (pack of 6)", "2 pound", "24 count"),
        },
        (4, 60),
    ),
)

_HEADS = ("Al", "Bre", "Cor", "Dun", "El", "Fen", "Gar", "Hol", "Is", "Jor", "Kel", "Lum", "Mar", "Nor", "Os", "Pel")
_TAILS = ("ano", "bury", "dale", "evo", "field", "gate", "ix", "ley", "mont", "ora", "sen", "tis", "vik", "well", "zo")
_USES = ("for Everyday Use", "for Home and Travel", "Gift for Family", "New Season", "Value Pick", "Best Seller")


@dataclass(frozen=True, slots=True)
class Product:
    """One product.

    Attributes:
        asin: Its identifier: ten letters and digits.
        price: In dollars.
        query: What people search for to find it: its kind.
        category: From the general to the particular.
        attributes: What holds of it; its title names some, its features all.
        options: What it can be had in, by the option's name.
        nouns: The title's nouns, lower case.
    """

    asin: str
    title: str
    price: float
    query: str
    category: tuple[str, ...]
    attributes: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    features: tuple[str, ...]
    description: str
    nouns: frozenset[str]

    @property
    def text(self) -> str:
        """What the search looks into."""
        values = (value for values in self.options.values() for value in values)
        return " ".join((self.title, *self.features, *values))


@functools.lru_cache(maxsize=8192)
def product(number: int) -> Product:
    """Product `number` of every shop that is large enough, from 0."""
    rng = random.Random(f"webshop/{number}")
    department = DEPARTMENTS[rng.randrange(len(DEPARTMENTS))]
    kind = rng.choice(department.kinds)
    attributes = tuple(rng.sample(department.attributes, rng.randint(3, 6)))
    if number % 2 and rng.random() < 0.7:  # its neighbor's rival: alike but for the price and the choices
        rival = product(number - 1)
        department = next(one for one in DEPARTMENTS if rival.query in one.kinds)
        kind, attributes = rival.query, rival.attributes
    brand = rng.choice(_HEADS) + rng.choice(_TAILS)
    options = {}
    for name, values in department.options.items():
        kept = rng.sample(range(len(values)), rng.randint(3, min(6, len(values))))
        options[name] = tuple(values[at] for at in sorted(kept))
    low, high = department.prices
    price = round(low * (high / low) ** rng.random(), 2)
    named = [words.title() for words in attributes[: rng.randint(1, 2)]]
    title = f"{brand} {_capital(kind)} {', '.join(named)}, {rng.choice(_USES)}"
    if rng.random() < 0.5:
        title = f"{brand} {named[0]} {_capital(kind)} {rng.choice(_USES)}, {' '.join(named[1:]) or 'Quality'}"
    features = tuple(f"{words}: {rng.choice(_PRAISE)}" for words in sorted(attributes))
    description = f"{kind.capitalize()} by {brand}, {rng.choice(_ORIGINS)}. Comes in {len(options)} kinds of choices."
    return Product(
        _asin(number),
        title,
        price,
        kind,
        (*department.path, _capital(kind)),
        attributes,
        options,
        features,
        description,
        frozenset({brand.lower(), *kind.split()}),
    )


_PRAISE = ("made with care", "as you would expect", "tested by our team", "a feature that customers value")
_ORIGINS = ("designed for daily life", "chosen by people who know", "a favorite for years", "made to last")


def _capital(kind: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in kind.split())


_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SPACE = 36**8


def _asin(number: int) -> str:
    """One of its own for each number: the factor and 36 have no common divisor."""
    rest, letters = (number * 1_739_482_657_913 + 987_654_321_987) % _SPACE, ""
    for _ in range(8):
        rest, digit = divmod(rest, 36)
        letters += _DIGITS[digit]
    return "B0" + letters
