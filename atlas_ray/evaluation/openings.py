"""What evaluation's episodes open with, held against the training data before anything is played.

Flows in: an evaluation's settings; flows out: an opening for each environment and task, or what keeps it from being the
data's. An environment's first observation is compared with recorded ones by starting a few recorded tasks there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations, takewhile
from typing import Any, cast

from atlas_ray.config import ActionProtocol, DataConfig, EnvironmentsConfig, OpeningsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.agentgym.checkout import check_checkout, checkout_error_turn, checkout_opening
from atlas_ray.environments.agentgym.task_numbers import numbered
from atlas_ray.environments.client import open_session, own_instruction
from atlas_ray.environments.openings import OpeningTemplate, surroundings, told_of_task
from atlas_ray.environments.protocol import Opening
from atlas_ray.environments.tool_session import ToolSession
from atlas_ray.errors import AtlasError, UserError, together
from atlas_ray.evaluation.items import test_tasks
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.runs.folder import RunFolder
from atlas_ray.trajectories.readers import iter_trajectories
from atlas_ray.types import Task

_log = logging.getLogger(__name__)

COMPARED = 3  # recorded tasks that an environment's template is found from, and has to fit
_CANDIDATES = 8  # of them, for some may not be there any more
_FAILURES = 3  # to start one, from which an environment is given up
_SHOWN = 60  # characters of a difference
OWN = "the environment's own"
_BY_TEXT = "play it as text: protocol: react"


@dataclass(frozen=True, slots=True)
class EnvironmentOpening:
    """How one environment's episodes open.

    Attributes:
        source: Where that comes from, in words.
        template: None where the environment's own opening is shown as it is.
    """

    env: str
    source: str
    template: OpeningTemplate | None = None

    def record(self) -> dict[str, Any]:
        """What a manifest keeps: the source, the texts, and a digest of these."""
        own = Opening(own_instruction(registry.get(self.env)), "")
        texts = asdict(self.template or OpeningTemplate(own.instruction, own.acknowledgement))
        del texts["recorded"]
        for name in ("error_turn", "tools"):  # earlier manifests have none
            if texts[name] is None:
                del texts[name]
        digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16]
        return {"source": self.source, "digest": digest, **texts}


@dataclass(frozen=True, slots=True)
class OpeningDifference:
    """What keeps an environment's opening from being its training data's.

    Attributes:
        item_id: The recorded task that was started, if it came to that.
        reason: Why there is no comparison, or how the first observations differ.
        remedy: What to do where it is no matter of the data.
    """

    env: str
    item_id: str | None
    reason: str
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{self.item_id or self.env}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Openings:
    """What an evaluation's episodes open with.

    Attributes:
        environments: By name.
        recorded: Openings of tasks that the training data has, by environment and number.
        differences: What keeps environments from opening as their training data does.
    """

    environments: Mapping[str, EnvironmentOpening]
    recorded: Mapping[tuple[str, int | str], Opening] = field(default_factory=dict)
    differences: tuple[OpeningDifference, ...] = ()

    def of(self, task: Task) -> OpeningTemplate | None:
        """A task's opening; None for the environment's own."""
        template, recorded = self.environments[task.env].template, self.recorded.get(_key(task))
        if template is None or recorded is None or (template.tools is None) != (recorded.tools is None):
            return template
        first, second, third = recorded.instruction, recorded.acknowledgement, recorded.observation
        return replace(template, instruction=first, acknowledgement=second, recorded=third, tools=recorded.tools)

    def write_to(self, folder: RunFolder) -> None:
        """Notes in a run's manifest what its episodes open with.

        Raises:
            UserError: If its earlier episodes opened otherwise.
        """
        manifest = folder.read_json("manifest.json")
        now = {env: found.record() for env, found in self.environments.items()}
        held = manifest.get("openings", {})
        if other := [env for env in now if env in held and held[env]["digest"] != now[env]["digest"]]:
            raise UserError(
                f"earlier episodes in {folder.uri} open otherwise in {', '.join(other)}: {held[other[0]]['source']}",
                "restore the data or the checkout that they opened with, or start anew with --clean",
            )
        folder.write_json("manifest.json", manifest | {"openings": held | now})


def find_openings(config: EvaluateConfig) -> Openings:
    """What an evaluation's episodes open with: training data, else AgentGym's client, else the environment itself.

    Raises:
        UserError: If an environment with training data does not open as these do, or something cannot be read.
    """
    found = examine(config)
    wrong = [UserError(str(one), one.remedy) for one in found.differences if one.remedy is not None]
    if differing := [one for one in found.differences if one.remedy is None]:
        envs = dict.fromkeys(one.env for one in differing)
        lines = "\n    ".join(map(str, differing))
        error = UserError(
            f"{', '.join(envs)}: evaluation does not open as the training data does:\n    {lines}",
            "serve the environments that the data was recorded in (AgentGym's: environments.servers), give the data "
            f"that belongs to these (openings.data), or accept it: openings.differing: [{', '.join(envs)}]",
        )
        wrong.insert(0, error)
    if wrong:
        raise together(wrong)
    return found


def examine(config: EvaluateConfig) -> Openings:
    """The same with what differs as a part of the answer; nothing is written, and only recorded tasks are started, and
    the first one where sessions tell their tools.

    Raises:
        UserError: If data or checkout cannot be read.
    """
    given = config.openings or OpeningsConfig()
    for name in given.differing:
        registry.get(name)
    if given.agentgym is not None:
        check_checkout(given.agentgym)
    wanted = {_key(task) for tasks in test_tasks(config).values() for task in tasks} if given.data else set()
    rows = _read(given.data, set(config.tasks), wanted) if given.data else {}
    rows = {env: known for env, known in rows.items() if config.protocol in (None, known.protocol)}
    return asyncio.run(_examine(config, rows, given))


def _key(task: Task) -> tuple[str, int | str]:
    """What tells whether two ids are one task's: the number that they carry, `maze_3` being `lmrlgym_maze_3`."""
    try:
        return task.env, registry.get(task.env).index(task.item_id)
    except UserError:
        return task.env, task.item_id


_Kind = tuple[str, str, str | None]


@dataclass
class _Rows:
    """One environment's rows: how often each kind of opening occurs, some tasks of each, and the tasks wanted.

    A kind is an instruction, its acknowledgement, and the tools.
    """

    kinds: Counter[_Kind] = field(default_factory=Counter)
    tasks: dict[_Kind, dict[str, Opening]] = field(default_factory=dict)
    wanted: dict[tuple[str, int | str], Opening] = field(default_factory=dict)
    otherwise: int = 0

    @property
    def commonest(self) -> tuple[_Kind, int]:
        """The kind that most rows have, and how many."""
        return next(iter(self.kinds.most_common(1)), (("", "", None), 0))

    @property
    def protocol(self) -> ActionProtocol:
        """How it acts in most rows."""
        return "react" if self.commonest[0][2] is None else "tools"


def _read(data: DataConfig, envs: set[str], wanted: set[tuple[str, int | str]]) -> dict[str, _Rows]:
    """Rows by environment; of the rows themselves only a few are kept."""
    envs = envs & set(data.envs) if data.envs is not None else envs
    found: dict[str, _Rows] = {}
    if not envs:
        return found
    for trajectory in iter_trajectories(data.model_copy(update={"envs": sorted(envs)}), []):
        rows, opening = found.setdefault(trajectory.env, _Rows()), Opening.recorded(trajectory)
        if opening is None:
            rows.otherwise += 1
            continue
        kind = (opening.instruction, opening.acknowledgement, opening.tools)
        rows.kinds[kind] += 1
        tasks = rows.tasks.setdefault(kind, {})
        if len(tasks) < _CANDIDATES:
            tasks.setdefault(trajectory.item_id, opening)
        if (key := _key(trajectory.task)) in wanted:
            rows.wanted.setdefault(key, opening)
    return found


async def _examine(config: EvaluateConfig, rows: Mapping[str, _Rows], given: OpeningsConfig) -> Openings:
    envs, environments = config.tasks, config.environments
    found: dict[str, EnvironmentOpening] = {}
    differences: list[OpeningDifference] = []
    compared = await asyncio.gather(*(_of_data(env, rows[env], given, environments) for env in rows))
    for opening, different in compared:
        found[opening.env] = _with_error_turn(opening, given.agentgym)
        differences += different
    for env in envs:
        if env not in found:
            found[env], different = await _of_others(env, given, config)
            differences += different
    alike = [known for env, known in rows.items() if env not in given.differing]
    verbatim = {key: opening for known in alike for key, opening in known.wanted.items()}
    return Openings({env: found[env] for env in envs}, verbatim, tuple(differences))


def _with_error_turn(opening: EnvironmentOpening, checkout: str | None) -> EnvironmentOpening:
    """The same with what AgentGym's client answers to a malformed reply; training data does not tell."""
    several = registry.get(opening.env).action_rule == "single"
    told = checkout_error_turn(checkout, opening.env) if checkout and several and opening.template else None
    if told is None or opening.template is None:
        return opening
    text, where = told
    template = replace(opening.template, error_turn=text)
    return replace(opening, source=f"{opening.source}; the error turn AgentGym's {where}", template=template)


async def _of_data(
    env: str, rows: _Rows, given: OpeningsConfig, environments: EnvironmentsConfig
) -> tuple[EnvironmentOpening, list[OpeningDifference]]:
    """An environment's opening from its training data, and what speaks against it."""
    kind, count = rows.commonest
    total = rows.kinds.total() + rows.otherwise
    if 2 * count <= total:
        reason = (
            f"no two of three opening turns are common to most of its {total} trajectories; the commonest begin {count}"
        )
        return EnvironmentOpening(env, OWN), [OpeningDifference(env, None, reason)] * (env not in given.differing)
    source = f"training data ({count} of {total} trajectories)"
    template = OpeningTemplate(*kind[:2], tools=kind[2])
    if template.tools is not None and not registry.get(env).offers_tools:
        reason = f"the training data calls tools, and {env} offers none"
        return EnvironmentOpening(env, OWN), [OpeningDifference(env, None, reason, _BY_TEXT)]
    if env in given.differing:
        source += ", but for the first observation"
        return EnvironmentOpening(env, source, template), []
    around, differences = await _compare(env, rows.tasks[kind], environments)
    if around is not None:
        template = replace(template, before=around[0], after=around[1], plain=around[2])
    return EnvironmentOpening(env, source, template), differences


async def _compare(
    env: str, tasks: Mapping[str, Opening], environments: EnvironmentsConfig
) -> tuple[tuple[str, str, bool] | None, list[OpeningDifference]]:
    """What recorded first observations put around the environment's text; that is the same for all, or differs."""
    spec = registry.get(env)
    found: dict[str, tuple[str, str, bool]] = {}
    differences: list[OpeningDifference] = []
    failures: list[OpeningDifference] = []
    session = None
    try:
        session = open_session(spec, environments)
        for item_id, recorded in tasks.items():
            if len(found) + len(differences) == COMPARED or len(failures) == _FAILURES:
                break
            try:
                own = (await session.reset(numbered(Task(env, item_id), environments))).observation
                told = told_of_task(spec, own, tools=recorded.tools is not None)
            except AtlasError as error:
                failures.append(OpeningDifference(env, item_id, f"it cannot be started: {error.what}"))
                continue
            around = surroundings(spec, recorded.observation, told)
            if around is not None:
                found[item_id] = around
            else:
                differences.append(OpeningDifference(env, item_id, _difference(recorded.observation, told)))
    except UserError as error:
        failures.append(OpeningDifference(env, None, error.what))
    finally:
        if session is not None:
            await session.close()
    if len(set(found.values())) > 1:
        (one, first), (other, second) = next((a, b) for a, b in combinations(found.items(), 2) if a[1] != b[1])
        at = next(i for i in range(3) if first[i] != second[i])
        what = ("before", "behind", "around")[at] + " the environment's text"
        differences.append(OpeningDifference(env, other, f"{what} {_difference(str(first[at]), str(second[at]), one)}"))
    # a task that cannot be started says nothing about those that can
    return next(iter(found.values()), None), differences or ([] if found else failures)


def _difference(recorded: str, told: str, other: str | None = None) -> str:
    """Where two texts part."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(recorded, told, strict=False))
    at = sum(1 for _ in alike)
    shown = [f"{text[at : at + _SHOWN]!r}" for text in (recorded, told)]
    if other is not None:
        return f"the data has {shown[1]}, but {shown[0]} in {other} (character {at + 1})"
    return f"turn 3 has {shown[0]} in the data, and the environment tells {shown[1]} (character {at + 1})"


async def _of_others(
    env: str, given: OpeningsConfig, config: EvaluateConfig
) -> tuple[EnvironmentOpening, list[OpeningDifference]]:
    """The opening of an environment without training data: AgentGym's where a server plays it, else its own."""
    if config.protocol == "tools":
        by_calls = EnvironmentOpening(env, f"{OWN}, by its tools", OpeningTemplate.of_tools(registry.get(env)))
        return by_calls, await _without_tools(env, config)
    if env not in config.environments.servers:
        return EnvironmentOpening(env, OWN), []
    if given.agentgym is not None:
        try:
            read = checkout_opening(given.agentgym, env)
        except UserError as error:
            return EnvironmentOpening(env, OWN), [OpeningDifference(env, None, error.what, error.remedy)]
        if read is not None:
            return EnvironmentOpening(env, f"AgentGym's {read[1]}", read[0]), []
    if given.data is not None:
        _log.warning(
            "%s: no training data and no AgentGym client of it is at hand (openings.agentgym: CHECKOUT), so "
            "conversations open with this package's own instruction",
            env,
        )
    return EnvironmentOpening(env, f"{OWN}, in this package's words" if given.data else OWN), []


async def _without_tools(env: str, config: EvaluateConfig) -> list[OpeningDifference]:
    """What keeps an environment whose sessions tell their tools from being played by calls: its first task says so."""
    spec = registry.get(env)
    if not spec.tells_tools:
        return []
    task = test_tasks(config)[env][0]
    session = cast(ToolSession, open_session(spec, config.environments))
    try:
        await session.reset_for_calls(task)
    except AtlasError as error:
        return [OpeningDifference(env, task.item_id, error.what, error.remedy or _BY_TEXT)]
    finally:
        await session.close()
    return []
