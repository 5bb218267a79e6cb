"""Trajectories and episodes as the viewer holds them: a short line for the list, a full record, the text to search.

Flows in: records of the stages; flows out: lists that JSON can hold. Names that the text of others could choose are
never keys: environments, selectors and models are numbers, so that no name can clash with one of JavaScript's own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atlas_ray.environments.registry import ENVIRONMENTS
from atlas_ray.types import Episode, GoldStep, Message, Selection, Step, ToolCall, Trajectory, first_observation

TRAJECTORY_OUTCOMES = ("success", "partial", "failure", "not recorded")
EPISODE_OUTCOMES = ("success", "failure", "excluded")
PREVIEW = 110

Chosen = Sequence[Selection | None]


def trajectory_line(trajectory: Trajectory, env: int, selections: Chosen) -> list[Any]:
    """Id, environment, outcome, steps, how many each selector chose (None: no selection, -1: it failed), preview."""
    return [
        trajectory.id,
        env,
        _outcome(trajectory.env, trajectory.reward),
        len(trajectory.steps),
        [None if s is None else -1 if s.error is not None else len(s.chosen) for s in selections],
        _preview(trajectory.messages),
    ]


def trajectory_record(trajectory: Trajectory, selections: Chosen) -> dict[str, Any]:
    """Everything that the trajectory view shows."""
    return {
        "reward": trajectory.reward,
        "turns": _turns(trajectory.messages),
        "gold": _gold(trajectory.gold),
        "selections": [None if s is None else _selection(s) for s in selections],
    }


def trajectory_texts(trajectory: Trajectory, selections: Chosen) -> Iterator[str]:
    """What a search looks through."""
    yield trajectory.id
    yield trajectory.env
    yield from (message.text for message in trajectory.messages)
    for selection in selections:
        if selection is not None:
            yield from (text for text in (selection.plan, selection.reason, selection.error) if text)


def episode_line(episode: Episode, env: int, model: int, stop: int) -> list[Any]:
    """Id, environment, outcome, model, stop reason, rounds, reward, preview."""
    outcome = "excluded" if episode.stop_reason.is_infrastructure else "success" if episode.success else "failure"
    return [
        episode.id,
        env,
        EPISODE_OUTCOMES.index(outcome),
        model,
        stop,
        episode.rounds,
        _short(episode.reward),
        _preview(episode.messages),
    ]


def episode_record(episode: Episode) -> dict[str, Any]:
    """Everything that the episode view shows."""
    return {
        "turns": _turns(episode.messages),
        "gold": _gold(episode.gold),
        "reward": _short(episode.reward),
        "progress": _short(episode.progress),
        "seconds": round(episode.seconds, 1),
        "start": episode.start_step,
        "sample": episode.sample,
        "tokens": episode.usage.prompt_tokens + episode.usage.completion_tokens,
        "error": episode.error,
    }


def episode_texts(episode: Episode) -> Iterator[str]:
    """What a search looks through."""
    yield episode.id
    yield episode.env
    yield from (message.text for message in episode.messages)
    if episode.error:
        yield episode.error


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that orders `maze_9` before `maze_10`."""
    parts = re.split(r"([0-9]+)", text)
    numbers = [part.lstrip("0") if part[:1].isdecimal() else None for part in parts]
    return [(1, 0, p) if n is None else (0, len(n), n) for p, n in zip(parts, numbers, strict=True) if p]


def _turns(messages: Sequence[Message]) -> list[list[Any]]:
    """Steps as `["step", thought, action]`, with the whole reply where it says more, or None and the calls of tools;
    results of these as `["tool", text, name]`; other turns as role and text."""
    found, asked = list[list[Any]](), dict[str, str]()
    for m in messages:
        if m.role == "tool":
            found.append(["tool", m.content, asked.pop(m.call_id or next(iter(asked), ""), "")])
            continue
        if m.calls:
            asked = {call.id or f"#{number}": call.name for number, call in enumerate(m.calls)}
        found.append(_step(m) if m.role == "assistant" and m.trainable else [str(m.role), m.text])
    return found


def _step(message: Message) -> list[Any]:
    step = Step(0, 0, message, "")
    if message.calls:
        return ["step", step.thought, step.action, None, [[call.name, _arguments(call)] for call in message.calls]]
    thought, action, reply = step.thought, step.action, step.reply
    plain = f"Thought: {thought} Action: {action}" if thought else f"Action: {action}"
    is_whole = message.thought or plain.split() == reply.split()
    return ["step", thought, action] if is_whole else ["step", thought, action, reply]


def _arguments(call: ToolCall) -> list[list[str]] | str:
    """Names and values of a call's arguments, values that are no text as JSON; the text of what is no object."""
    if not call.is_well_formed:
        return call.arguments
    given = json.loads(call.arguments).items()
    return [[k, v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, indent=1)] for k, v in given]


def _gold(gold: Sequence[GoldStep] | None) -> list[list[Any]] | None:
    return None if gold is None else [[mark.step, mark.rank, str(mark.category)] for mark in gold]


def _selection(selection: Selection) -> dict[str, Any]:
    found: Mapping[str, Any] = {
        "chosen": list(selection.chosen),
        "scores": [_short(score) for score in selection.scores],
        "categories": [[step, str(category)] for step, category in sorted(selection.categories.items())],
        "plan": selection.plan,
        "reason": selection.reason,
        "model": selection.model,
        "error": selection.error,
    }
    return {key: value for key, value in found.items() if value}


def _outcome(env: str, reward: float | None) -> int:
    enough = ENVIRONMENTS[env].success_at if env in ENVIRONMENTS else 1.0
    said = (
        "not recorded" if reward is None else "success" if reward >= enough else "partial" if reward > 0 else "failure"
    )
    return TRAJECTORY_OUTCOMES.index(said)


def _preview(messages: Sequence[Message]) -> str:
    """The start of what the first step answers."""
    text = " ".join(first_observation(messages)[: 8 * PREVIEW].split())
    return text if len(text) <= PREVIEW else f"{text[:PREVIEW]}…"


def _short(value: float) -> float | None:
    """Four significant digits; None for what JSON has no number for."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
