"""A bounded number of trajectories and episodes for the viewer, picked by rule and not by hand.

Flows in: records; flows out: plain dicts of text. The text is untrusted; the page's templates escape it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.types import Episode, Message, Selection, Step, Trajectory

MAX_STEPS = 30
MAX_CHARACTERS = 1500


def pick_examples(given: ReportInput) -> list[dict[str, Any]]:
    """One example for each environment that has trajectories or episodes.

    Returns:
        Dicts of env, held, trajectory (or None) and task (or None).
    """
    found = []
    for env, spec in given.specs.items():
        example = {"env": env, "held": spec.held, "trajectory": _trajectory(env, given), "task": _task(env, given.arms)}
        if example["trajectory"] or example["task"]:
            found.append(example)
    return found


def _trajectory(env: str, given: ReportInput) -> dict[str, Any] | None:
    """The trajectory of median length among those that most selectors chose in, with every selector's choice."""
    chosen = {
        name: {s.trajectory_id: s for s in records if s.error is None} for name, records in given.selections.items()
    }
    here = [t for t in given.trajectories if t.env == env]
    covered = {t.id: sum(t.id in by_id for by_id in chosen.values()) for t in here}
    most = [t for t in here if covered[t.id] == max(covered.values()) > 0]
    if not most:
        return None
    picked = sorted(most, key=lambda t: (len(t.steps), t.id))[(len(most) - 1) // 2]
    selections = {name: by_id[picked.id] for name, by_id in chosen.items() if picked.id in by_id}
    steps = picked.steps
    return {
        "id": picked.id,
        "opening": [_turn(m) for m in picked.messages[: steps[0].position - 1]] if steps else [],
        "reward": picked.reward,
        "selectors": [{"name": name, "chosen": list(s.chosen)} for name, s in selections.items()],
        "steps": [_step(step, picked, selections) for step in steps[:MAX_STEPS]],
        "n_steps": len(steps),
    }


def _step(step: Step, trajectory: Trajectory, selections: Mapping[str, Selection]) -> dict[str, Any]:
    mark = next((g for g in trajectory.gold or () if g.step == step.index), None)
    return {
        "index": step.index,
        "observation": _cut(step.observation),
        "thought": _cut(step.thought),
        "action": _cut(step.action),
        "gold": {"rank": mark.rank, "category": str(mark.category)} if mark else None,
        "marks": [
            {
                "selector": name,
                "chosen": step.index in selection.chosen,
                "score": selection.scores[step.index - 1] if len(selection.scores) >= step.index else None,
                "category": str(selection.categories.get(step.index, "")),
            }
            for name, selection in selections.items()
        ],
    }


def _task(env: str, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """The first task on which the arms disagree most: an illustration, not a sample."""
    played: dict[str, dict[str, Episode]] = {}
    for arm in arms:
        for episode in sorted(arm.episodes, key=lambda e: (e.sample, e.id)):
            if episode.env == env and not episode.stop_reason.is_infrastructure:
                played.setdefault(episode.item_id, {}).setdefault(arm.name, episode)
    if not played:
        return None
    item_id = min(played, key=lambda item: (-len(played[item]), -_disagreement(played[item]), item))
    episodes = played[item_id]
    opening = _opening(next(iter(episodes.values())).messages)
    return {
        "item_id": item_id,
        "opening": [_turn(message) for message in opening],
        "episodes": [_episode(name, episode, len(opening)) for name, episode in episodes.items()],
    }


def _opening(messages: Sequence[Message]) -> Sequence[Message]:
    """The turns before the policy's first; all arms start with the same."""
    return messages[: next((i for i, m in enumerate(messages) if m.trainable), 3)]


def _disagreement(episodes: Mapping[str, Episode]) -> int:
    successes = sum(e.success for e in episodes.values())
    return min(successes, len(episodes) - successes)


def _episode(arm: str, episode: Episode, start: int) -> dict[str, Any]:
    turns = episode.messages[start : start + 2 * MAX_STEPS]
    return {
        "arm": arm,
        "success": episode.success,
        "reward": episode.reward,
        "rounds": episode.rounds,
        "stop_reason": str(episode.stop_reason),
        "turns": [_turn(message) for message in turns],
        "left_out": len(episode.messages) - start - len(turns),
    }


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "text": _cut(message.content)}


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:MAX_CHARACTERS]} … ({len(text) - MAX_CHARACTERS} more characters)"
