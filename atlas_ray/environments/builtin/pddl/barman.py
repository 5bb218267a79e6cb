"""Barman: a robot with two hands fills shot glasses and mixes cocktails in a shaker. Problems and expert."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from atlas_ray.environments.builtin.pddl.problem import Advice, Problem, pairs
from atlas_ray.environments.builtin.pddl.strips import Fact, State

HANDS = ("left", "right")
LEVELS = ("l0", "l1", "l2")
SHAKER = "shaker1"
SLIPS = frozenset({"grasp", "leave"})


def problem(rng: random.Random) -> Problem:
    """Up to two cocktails and an ingredient, to serve in two to four shot glasses."""
    ingredients = [f"ingredient{i}" for i in range(1, rng.randint(2, 4) + 1)]
    cocktails = [f"cocktail{i}" for i in range(1, rng.randint(1, 3) + 1)]
    shots = [f"shot{i}" for i in range(1, rng.randint(2, 4) + 1)]
    facts: set[Fact] = {("handempty", hand) for hand in HANDS}
    facts |= {(name, box) for box in (*shots, SHAKER) for name in ("ontable", "clean", "empty")}
    facts |= {("dispenses", f"dispenser{i}", name) for i, name in enumerate(ingredients, 1)}
    facts |= {("shaker-empty-level", SHAKER, "l0"), ("shaker-level", SHAKER, "l0")}
    facts |= {("next", low, high) for low, high in itertools.pairwise(LEVELS)}
    for cocktail in cocktails:
        one, other = rng.sample(ingredients, 2)
        facts |= {("cocktail-part1", cocktail, one), ("cocktail-part2", cocktail, other)}
    drinks = [rng.choice(cocktails)] + [rng.choice(ingredients + cocktails[:1]) for _ in shots[2:]]
    goal = tuple(("contains", shot, drink) for shot, drink in zip(shots, drinks, strict=False))
    objects = dict.fromkeys(HANDS, "hand") | dict.fromkeys(LEVELS, "level") | dict.fromkeys(shots, "shot")
    objects |= dict.fromkeys(ingredients, "ingredient") | dict.fromkeys(cocktails, "cocktail") | {SHAKER: "shaker"}
    objects |= {f"dispenser{i}": "dispenser" for i in range(1, len(ingredients) + 1)}
    return Problem("barman", objects, frozenset(facts), goal)


def advise(state: State, task: Problem) -> Advice:
    """The next step for the first drink that is not served: cocktails before plain ingredients."""
    left = [fact for fact in task.goal if fact not in state]
    left.sort(key=lambda fact: task.objects[fact[2]] != "cocktail")
    if not left:
        return Advice(("leave", HANDS[0], SHAKER), "nothing is left to do")
    bar = _Bar(state, task, frozenset(shot for _, shot, _ in task.goal if (_, shot, _) not in left))
    _, shot, drink = left[0]
    return bar.serve(shot, drink) if task.objects[drink] == "cocktail" else bar.fill(shot, drink)


@dataclass
class _Bar:
    """A state, seen as a barkeeper sees it; every method answers with the first step towards what its name says."""

    state: State
    task: Problem
    served: frozenset[str]

    def __post_init__(self) -> None:
        self.hands = {held: hand for hand, held in pairs(self.state, "holding").items()}
        self.parts = {
            cocktail: (one, pairs(self.state, "cocktail-part2")[cocktail])
            for cocktail, one in pairs(self.state, "cocktail-part1").items()
        }
        self.level = pairs(self.state, "shaker-level")[SHAKER]

    def content(self, box: str) -> set[str]:
        return {fact[2] for fact in self.state if fact[:2] == ("contains", box)}

    def serve(self, shot: str, cocktail: str) -> Advice:
        """Cocktail into shot."""
        inside = self.content(SHAKER)
        if ("shaked", SHAKER) in self.state:
            if inside == {cocktail} and self.level != LEVELS[0]:
                below = LEVELS[LEVELS.index(self.level) - 1]
                return (
                    self.clean(shot)
                    or self.hold(SHAKER)
                    or Advice(
                        ("pour-shaker-to-shot", cocktail, shot, self.hands[SHAKER], SHAKER, self.level, below),
                        f"{cocktail} is ready for {shot}",
                        "goal",
                    )
                )
            return self.hold(SHAKER) or Advice(
                ("empty-shaker", self.hands[SHAKER], SHAKER, min(inside), self.level, LEVELS[0]),
                f"{SHAKER} must be emptied before {cocktail} is mixed",
                "obstacle",
            )
        if not inside <= set(self.parts[cocktail]):
            fits = [name for name, parts in sorted(self.parts.items()) if inside <= set(parts)]
            if not fits:
                return Advice(("check",), f"{SHAKER} cannot be used any more")
            cocktail = fits[0]  # mixed to be poured away
        missing = [part for part in self.parts[cocktail] if part not in inside]
        if not missing:
            hand = self.hands.get(SHAKER)
            return self.hold(SHAKER, free_other=True) or Advice(
                ("shake", cocktail, *self.parts[cocktail], SHAKER, hand or "", self.other(hand or "")),
                f"both parts of {cocktail} are in {SHAKER}",
                "goal",
            )
        return self.pour(missing[0], cocktail)

    def pour(self, part: str, cocktail: str) -> Advice:
        """Ingredient into the shaker."""
        fresh = not self.content(SHAKER)
        if fresh and ("clean", SHAKER) not in self.state:
            hand = self.hands.get(SHAKER)
            return self.hold(SHAKER, free_other=True) or Advice(
                ("clean-shaker", hand or "", self.other(hand or ""), SHAKER), f"{SHAKER} is not clean", "obstacle"
            )
        shots = [shot for shot in self.task.named("shot") if shot not in self.served]
        wanted = {shot for _, shot, _ in self.task.goal}
        shot = min(
            shots,
            key=lambda s: (
                self.content(s) != {part},
                s not in self.hands,
                s in wanted,
                ("clean", s) not in self.state,
                s,
            ),
        )
        ready = self.fill(shot, part)
        if self.content(shot) != {part} or shot not in self.hands:
            return ready
        name = "pour-shot-to-clean-shaker" if fresh else "pour-shot-to-used-shaker"
        above = LEVELS[min(LEVELS.index(self.level) + 1, 2)]
        key = (name, shot, part, SHAKER, self.hands[shot], self.level, above)
        return Advice(key, f"{part} is a part of {cocktail}")

    def fill(self, shot: str, ingredient: str) -> Advice:
        """Ingredient into shot, which ends in a hand."""
        if self.content(shot) == {ingredient}:
            return self.hold(shot) or Advice(("leave", self.hands[shot], shot), f"{shot} is filled")
        used = ("used", shot, ingredient) in self.state and not self.content(shot)
        if not used and (first := self.clean(shot)):
            return first
        if first := self.hold(shot, free_other=True):
            return first
        dispenser = next(fact[1] for fact in self.state if fact[0] == "dispenses" and fact[2] == ingredient)
        hand = self.hands[shot]
        name = "refill-shot" if used else "fill-shot"
        key = (name, shot, ingredient, hand, self.other(hand), dispenser)
        return Advice(key, f"{ingredient} is needed in {shot}", "goal")

    def clean(self, shot: str) -> Advice | None:
        """An empty and clean shot."""
        for drink in sorted(self.content(shot)):
            return self.hold(shot) or Advice(
                ("empty-shot", self.hands[shot], shot, drink), f"{shot} holds {drink}, which is not wanted", "obstacle"
            )
        if ("clean", shot) in self.state:
            return None
        used = min(fact[2] for fact in self.state if fact[:2] == ("used", shot))
        hand = self.hands.get(shot, "")
        return self.hold(shot, free_other=True) or Advice(
            ("clean-shot", shot, used, hand, self.other(hand)), f"{shot} is not clean", "obstacle"
        )

    def hold(self, box: str, free_other: bool = False) -> Advice | None:
        """A box in hand, and the other hand empty where that is asked for."""
        busy = {hand: held for held, hand in self.hands.items()}
        if box in self.hands:
            other = busy.get(self.other(self.hands[box]))
            if free_other and other:
                return Advice(("leave", self.hands[other], other), "the other hand has to be empty")
            return None
        for hand in HANDS:
            if hand not in busy:
                return Advice(("grasp", hand, box), f"{box} is needed in hand")
        hand = next((hand for hand in HANDS if busy[hand] != SHAKER), HANDS[0])
        return Advice(("leave", hand, busy[hand]), f"a hand has to be free for {box}")

    def other(self, hand: str) -> str:
        return HANDS[1 - HANDS.index(hand)] if hand else ""
