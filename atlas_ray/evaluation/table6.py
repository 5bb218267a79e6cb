"""Table 6's rows: how a model does by where it starts. Flows in: planned starts and episodes; flows out: rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal, get_args

from atlas_ray.environments import registry
from atlas_ray.environments.replay import count_starts
from atlas_ray.evaluation.metrics import EnvironmentResult, summarise
from atlas_ray.evaluation.paired import Comparison, compare
from atlas_ray.rollouts.guided import GivenTurn, GivenTurns
from atlas_ray.types import Episode

Start = Literal["from scratch", "from critical step", "from other step"]
Kind = Literal["from scratch", "from critical step", "iterative", "from other step"]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of start in one environment.

    Attributes:
        result: Per task the mean over its starts, then over the tasks that have such a start.
        starts: Starts with an episode that counts.
        by_start: The environment's metric averaged over starts instead, each weighing the same.
        by_ordinal: The same of each trajectory's first such start, its second, and so on.
        position: Mean of start / |tau| over the starts: nearness to the goal.
        put_in: Share of the critical steps that could be put in (`iterative` alone).
        gain: Difference from scratch, over the tasks that both have.
        over_control: The critical steps' difference from the control.
        replays: Starts after steps of the expert's by how the environment repeated those.
    """

    env: str
    start: Kind
    result: EnvironmentResult
    starts: int
    by_start: float | None
    by_ordinal: tuple[float, ...]
    position: float
    put_in: float | None
    gain: Comparison | None
    over_control: Comparison | None = None
    replays: dict[str, int] = field(default_factory=dict)


def rows(
    plan: Mapping[str, Mapping[Start, set[int]]],
    given: Mapping[str, Sequence[GivenTurn]],
    lengths: Mapping[str, int],
    episodes: Sequence[Episode],
    iterative: Sequence[Episode],
    max_excluded: float = 0.02,
) -> list[Row]:
    """Environment by environment, the kinds of start in Table 6's order, then the control.

    Args:
        plan: By trajectory id, after which steps each kind of start begins.
        given: By trajectory id, the turns put in by `iterative`.
        lengths: By trajectory id, |tau|.
        episodes: Of all starts; a start may serve one kind only, and scratch none but itself.
        iterative: Episodes with the critical steps put in.
        max_excluded: See `summarise`.
    """
    found = []
    for env in dict.fromkeys(name.split("/")[0] for name in plan):
        here = [e for e in episodes if e.env == env and _followed(e) in plan]
        played: dict[Kind, list[Episode]] = {
            kind: [e for e in here if e.start_step in plan[_followed(e)][kind]] for kind in get_args(Start)
        }
        played["iterative"] = [e for e in iterative if e.env == env and _followed(e) in plan]

        def over(ours: Kind, theirs: Kind, played: dict[Kind, list[Episode]] = played) -> Comparison | None:
            return next(compare(ours, theirs, played[ours], played[theirs]), None)

        for kind in get_args(Kind):
            if played[kind]:
                gain = None if kind == "from scratch" else over(kind, "from scratch")
                row = _row(env, kind, played[kind], gain, given, lengths, max_excluded)
                control = over(kind, "from other step") if kind == "from critical step" else None
                found.append(replace(row, over_control=control))
    return found


def put_in(episode: Episode, given: Sequence[GivenTurn]) -> int:
    """How many of the given turns an episode holds."""
    turns, seen, count = GivenTurns(given), "", 0
    for message in episode.messages:
        if message.role == "assistant" and message.trainable:
            count += turns.after(seen) is not None
        seen = message.content
    return count


def _row(
    env: str,
    kind: Kind,
    played: Sequence[Episode],
    gain: Comparison | None,
    given: Mapping[str, Sequence[GivenTurn]],
    lengths: Mapping[str, int],
    max_excluded: float,
) -> Row:
    spec = registry.get(env)
    valid = [e for e in played if not e.stop_reason.is_infrastructure]
    samples: dict[tuple[str, int], list[float]] = defaultdict(list)
    for e in valid:
        samples[_followed(e), e.start_step].append(float(getattr(e, spec.metric)))
    by_start = {key: fmean(values) for key, values in sorted(samples.items())}
    ordinals: dict[int, list[float]] = defaultdict(list)
    seen: dict[str, int] = defaultdict(int)
    for (name, _), value in by_start.items():
        ordinals[seen[name]].append(value)
        seen[name] += 1
    share = None
    if kind == "iterative" and valid:
        share = fmean(put_in(e, given[_followed(e)]) / len(given[_followed(e)]) for e in valid)
    return Row(
        env=env,
        start=kind,
        result=summarise(played, spec, len(played), max_excluded),
        starts=len(by_start),
        by_start=fmean(by_start.values()) if by_start else None,
        by_ordinal=tuple(fmean(values) for _, values in sorted(ordinals.items())),
        position=fmean(e.start_step / lengths[_followed(e)] for e in played),
        put_in=share,
        gain=gain,
        replays=count_starts(((_followed(e), e.start_step), e.replay) for e in played),
    )


def _followed(episode: Episode) -> str:
    """The trajectory whose steps an episode has; older records name it by the task."""
    return episode.trajectory or f"{episode.env}/{episode.item_id}"
