"""Tasks that an OpenEnv server offers (OpenEnv 0.10 and later), by split and index, under the numbers of this package.

Flows in: a server's address; flows out: how many tasks it has, and what a reset is told of one. Where a server offers
none, a task's number is a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from atlas_ray.errors import EnvironmentFailure

N_TEST, N_TRAIN = 200, 10_000  # of seeds; of a single split the first half, up to as many, are test tasks
_NONE_OFFERED = {404, 405, 501}  # a server before 0.10, and an environment without tasks


@dataclass(frozen=True)
class Offer:
    """Tasks under one range of numbers: those of the test split first.

    Attributes:
        splits: Which the numbers run through, each with its size; none where numbers are seeds.
        n_test: So many numbers are test tasks.
        n_train: As many after them are for training.
    """

    splits: tuple[tuple[str, int], ...] = ()
    n_test: int = N_TEST
    n_train: int = N_TRAIN

    @classmethod
    def of(cls, splits: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]) -> Offer:
        """The first split for tests and the first for training; a single one is parted."""
        kinds = {split["name"]: split.get("type") for split in splits if sizes.get(split["name"])}
        test = next((name for kind in ("test", "validation") for name in kinds if kinds[name] == kind), None)
        train = next((name for name in kinds if kinds[name] == "train"), None)
        if test and train:
            return cls(((test, sizes[test]), (train, sizes[train])), sizes[test], sizes[train])
        for name in filter(None, (test, train, *kinds)):
            n_test = min(N_TEST, (sizes[name] + 1) // 2)
            return cls(((name, sizes[name]),), n_test, sizes[name] - n_test)
        return cls()

    def reset(self, number: int) -> dict[str, Any]:
        """What a reset is told.

        Raises:
            EnvironmentFailure: If there is no such task.
        """
        if not self.splits:
            return {"seed": number}
        index = number
        for split, size in self.splits:
            if index < size:
                return {"seed": number, "split": split, "index": index}
            index -= size
        total = sum(size for _, size in self.splits)
        raise EnvironmentFailure(f"it has {total} tasks, and number {number} was asked for")


async def offered(http: aiohttp.ClientSession, url: str) -> Offer:
    """What a server offers.

    Raises:
        aiohttp.ClientError: If it does not answer.
        EnvironmentFailure: If it fails to tell.
    """
    names = await _answer(http, "GET", f"{url}/list_environments")
    if not isinstance(names, list) or not names:
        return Offer()
    at = f"{url}/{names[0]}"
    splits = await _answer(http, "GET", f"{at}/splits") or []
    sizes = dict[str, int]()
    for split in splits:
        if not isinstance(split, dict) or not isinstance(split.get("name"), str):
            raise EnvironmentFailure(f"{at}/splits lists a split without a name: {str(split)[:200]}")
        told = await _answer(http, "POST", f"{at}/num_tasks", {"split": split["name"]}) or {}
        sizes[split["name"]] = int(told.get("num_tasks", 0))
    return Offer.of(splits, sizes)


async def _answer(http: aiohttp.ClientSession, how: str, url: str, body: Mapping[str, Any] | None = None) -> Any:
    """A server's answer; None where it offers no such thing."""
    async with http.request(how, url, json=body) as answer:
        if answer.status in _NONE_OFFERED:
            return None
        if answer.status != 200:
            raise EnvironmentFailure(f"{url} answers {answer.status}: {(await answer.text())[:200]}")
        return await answer.json()
