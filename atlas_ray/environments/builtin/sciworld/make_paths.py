"""Makes `paths.txt` anew: python -m atlas_ray.environments.builtin.sciworld.make_paths (about an hour of one core).

ScienceWorld looks for a way in each of AgentGym's tasks, in an order drawn once. It is written down if, played in
another simulator, it solves the task within `LONGEST` actions, and the first observation is that of no task before.
"""

from __future__ import annotations

import random
from pathlib import Path

from atlas_ray.environments.builtin.sciworld.machines import JavaGame
from atlas_ray.environments.builtin.sciworld.simulator import MAX_ROUNDS
from atlas_ray.environments.builtin.sciworld.tasks import N_TEST, N_TRAIN, games
from atlas_ray.runs.progress import Tracker

LONGEST = MAX_ROUNDS - 2  # room for one mistake and its correction
SEED = 0


def played(simulator: JavaGame, path: list[str]) -> list[str] | None:
    """As much of a path as it takes to solve the game that is loaded, or None if it does not."""
    for number, action in enumerate(path[:LONGEST], 1):
        simulator.step(action)
        if simulator.completed:
            return path[:number] if simulator.score == 100 else None
    return None


def main() -> None:
    """Writes the file."""
    order = list(range(len(games())))
    random.Random(SEED).shuffle(order)
    solver, player = JavaGame(), JavaGame()
    seen: set[str] = set()
    rows: list[str] = []
    with Tracker("paths", N_TEST + N_TRAIN) as progress:
        for index in order:
            game = games()[index]
            solver.load(game.kind, game.variation, solve=True)
            solver.step("look around")
            first = player.load(game.kind, game.variation) + player.step("look around")
            path = played(player, solver.path)
            if path is None or first in seen:
                continue
            seen.add(first)
            rows.append(f"{index}: {'; '.join(path)}\n")
            progress.advance()
            if len(rows) == N_TEST + N_TRAIN:
                break
    Path(__file__).with_name("paths.txt").write_text("".join(rows), "ascii")


if __name__ == "__main__":
    main()
