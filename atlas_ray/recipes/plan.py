"""What a recipe would take, with the arithmetic: counts, tokens, GPU-hours, dollars, and what must be there.

Flows in: a `Recipe`; flows out: lines for `--dry-run`. Nothing is called or loaded. What cannot be counted yet is
reckoned from AgentTraj-L's shape (`trajectories/agenttraj.py`) and the recipe's `assume` section, and said to be.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from atlas_ray.address import name_of
from atlas_ray.cluster.placement import held
from atlas_ray.environments import registry
from atlas_ray.environments.agentgym.agentboard import NAMES  # AgentGym has no server and AgentEval no items of these
from atlas_ray.errors import AtlasError
from atlas_ray.evaluation.items import remote_environments
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.evaluation.settings import EvaluateConfig, VerifyConfig
from atlas_ray.models.prices import price
from atlas_ray.recipes.disk import disk_line
from atlas_ray.recipes.graph import Recipe, selector_words
from atlas_ray.recipes.nodes import nodes_at_hand
from atlas_ray.recipes.scheduling import Node, Stage, gpus_of, makespan, most_at_once
from atlas_ray.recipes.settings import BASE
from atlas_ray.recipes.stages import evaluation_stages, stages, stages_for
from atlas_ray.report.paper.printed import eval_tasks
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training.estimate import gpu_hours
from atlas_ray.trajectories.agenttraj import OTHER, SHAPES, TOKENS_PER_WORD, Shape
from atlas_ray.types import Trajectory, Usage

_START_SECONDS = {True: 120.0, False: 30.0}  # of engines and workers, whether or not they need GPUs: models are large
_CALL_SECONDS, _CALLS_AT_ONCE = 5.0, 64  # of an endpoint
_SAMPLED = 4  # episodes of an environment whose trajectories are yet to be collected
_NODE_GPUS, _CPUS_PER_GPU = 8, 16  # of nodes that are assumed


@dataclass
class Work:
    """What a stage takes: tokens through training, read and written by engines; dollars and calls of endpoints."""

    trained: float = 0.0
    read: float = 0.0
    written: float = 0.0
    calls: float = 0.0
    dollars: float = 0.0


@dataclass(frozen=True)
class Line:
    """One stage: its name, what it does in counts, and the work."""

    stage: str
    words: str
    work: Work


def plan_lines(recipe: Recipe, jobs: int | None = None) -> list[str]:
    """What each stage will do, how that is reckoned, the sums, and how long it takes on the cluster at hand.

    Args:
        jobs: Stages that run at once at most; None: as a run without it would.

    Raises:
        UserError: If an environment has too few test tasks, or data at hand cannot be read.
    """
    shapes, how = _shapes(recipe)
    lines = [*_collections(recipe)]
    if shapes:
        steps = sum(s.trajectories * s.steps for s in shapes.values())
        number = sum(s.trajectories for s in shapes.values())
        lines.append(Line("data", f"{number:,.0f} trajectories with about {steps:,.0f} steps ({how})", Work()))
    lines += _worked(recipe, shapes)
    said = [f"{line.stage}: {line.words}{_cost(line.work, recipe)}" for line in _together(lines)]
    sums = _sums(recipe, [line.work for line in lines])
    return [*said, *sums, *_schedule(recipe, lines, jobs), *_needs(recipe), *_not_included(recipe, shapes)]


def timed(recipe: Recipe, planned: Iterable[Stage], lines: Iterable[Line] | None = None) -> list[Stage]:
    """Stages with the seconds that a model of the recipe's size takes; as they are where it is a tiny one.

    Args:
        lines: What they do; None: as far as it can be counted now.
    """
    if BASE in recipe.tiny:
        return list(planned)
    works = {line.stage: line.work for line in (_worked(recipe, _shapes(recipe)[0]) if lines is None else lines)}
    for key, config in recipe.evaluations.items():
        group, *own = evaluation_stages(key, config)
        works |= dict.fromkeys(own, _sum([works[group]], 1 / len(own)))
    return [replace(stage, seconds=_seconds(recipe, stage, works)) for stage in planned]


def _worked(recipe: Recipe, shapes: Mapping[str, Shape]) -> list[Line]:
    """The stages with a model."""
    return [
        *(_selection(name, config, shapes) for name, config in recipe.select.items()),
        *(_training(recipe, name, shapes) for name in recipe.train),
        *(_evaluation(key, config, shapes) for key, config in recipe.evaluations.items()),
        *(_verification(config, shapes) for config in recipe.verify.values()),
    ]


def _schedule(recipe: Recipe, lines: Iterable[Line], jobs: int | None) -> Iterator[str]:
    """Disk and time that it takes, by the order in which a run would start its stages."""
    nodes, where, most = _nodes(recipe)

    def takes(planned: list[Stage], jobs: int) -> str:
        seconds = makespan(timed(recipe, planned, lines), nodes, jobs)
        return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"

    planned, jobs = stages_for(recipe, nodes, jobs, most=most)
    told = f"makespan: about {takes(planned, jobs)} on {where}, "
    trainings = [stage for stage in planned if stage.name.removeprefix("train/") in recipe.train]
    yield from disk_line(recipe, most_at_once(trainings, nodes, jobs))
    if jobs == 1:
        yield f"{told}one stage after another"
        return
    many = "as many stages at once as have room" if jobs > len(planned) else f"at most {jobs} stages at once"
    alone = takes(stages(recipe, gpus=gpus_of(nodes)), 1)
    yield f"{told}{many}; {alone} one after another (--jobs 1)"


def _nodes(recipe: Recipe) -> tuple[list[Node], str, int | None]:
    """The cluster at hand; for want of GPUs one that is assumed. In words too, and how many stages it bears at once
    (None: as this machine)."""
    try:
        nodes = nodes_at_hand(recipe.config.ray)
    except AtlasError:
        nodes = []
    gpus = recipe.config.assume.gpus
    if _needs_gpus(recipe) and not gpus_of(nodes):
        needed = [b for s in stages(recipe, gpus=1) for b in s.takes]
        gpus = gpus or int(max(b.count * b.each.get("GPU", 0) for b in needed))
        return assumed_nodes(gpus), f"{gpus} GPUs (none are at hand; assume.gpus says how many)", sys.maxsize
    return nodes, held(node.resources for node in nodes), None


def assumed_nodes(gpus: int) -> list[Node]:
    """Nodes of a cluster of which only the number of GPUs is known."""
    sizes = [min(_NODE_GPUS, gpus - i) for i in range(0, gpus, _NODE_GPUS)]
    return [Node({"CPU": _CPUS_PER_GPU * size, "GPU": size}) for size in sizes]


def _seconds(recipe: Recipe, stage: Stage, works: Mapping[str, Work]) -> float:
    """Of one stage, on the GPUs that it takes; what no model works at takes what it always takes."""
    work = works.get(stage.name)
    if work is None or work == Work():
        return stage.seconds
    gpus = max(1.0, sum(bundle.count * bundle.each.get("GPU", 0.0) for bundle in stage.takes))
    worked = 3600 * _hours(work, recipe) / gpus + _CALL_SECONDS * work.calls / _CALLS_AT_ONCE
    return _START_SECONDS[_needs_gpus(recipe)] + worked


def _not_included(recipe: Recipe, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Extra arms that were not asked for, and what each would take besides its evaluation."""
    names = [name for name in recipe.config.extra_arms if name not in recipe.arms]
    if not names or recipe.tables != list(recipe.config.tables):
        return
    whole = Recipe(recipe.config, recipe.config.extra_arms)
    for name in names:
        units = [unit for unit in whole.units if unit.arm == name]
        line = _selection(name, whole.select[whole.arms[name].like or name], shapes)
        work = _sum([line.work, *(_training(whole, unit.name, shapes).work for unit in units)])
        yield f"not included, add it by --with {name}: {line.words}{_cost(work, whole)}"


def _together(lines: Iterable[Line]) -> Iterator[Line]:
    """Lines that differ in their seed alone as one, in the first one's place."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.stage.partition(".seed")[0], line.words), []).append(line)
    for (stage, words), alike in found.items():
        times = f"{len(alike)} seeds x " if len(alike) > 1 else ""
        yield Line(stage, times + words, _sum(line.work for line in alike))


def _sum(works: Iterable[Work], times: float = 1.0) -> Work:
    found = list(works)
    return Work(*(times * sum(getattr(w, name) for w in found) for name in Work.__dataclass_fields__))


def _shapes(recipe: Recipe) -> tuple[dict[str, Shape], str]:
    """The expert's trajectories by environment, and how they were counted; none where they are yet to be collected for
    a tiny model, whose time nobody reckons with."""
    from atlas_ray.trajectories.collect import episodes_of, sample
    from atlas_ray.trajectories.readers import read_trajectories

    at_hand = RunFolder(recipe.expert.path).exists
    if recipe.expert.path == "AgentGym/AgentTraj-L" and not at_hand:
        return _only(SHAPES, recipe.expert.envs), "as the paper counts them; steps from AgentGym's means"
    by_env: dict[str, list[Trajectory]] = {}
    if at_hand:
        for t in read_trajectories(recipe.expert):
            by_env.setdefault(t.env, []).append(t)
        return {env: _shape(own, len(own)) for env, own in by_env.items()}, "counted"
    config = recipe.collections().get("expert")
    if config is None or BASE in recipe.tiny:
        return {}, ""
    number = Counter(task.env for task, _ in episodes_of(config))
    by_env = sample(config, _SAMPLED)
    found = {
        env: _shape(own, number[env] * len(own) / min(_SAMPLED, number[env])) for env, own in by_env.items() if own
    }
    return found, f"reckoned from the first {_SAMPLED} episodes of each environment"


def _shape(trajectories: Sequence[Trajectory], number: float) -> Shape:
    """Of as many trajectories as these are."""
    steps = [len(t.steps) for t in trajectories]
    words = sum(len(m.text.split()) for t in trajectories for m in t.messages)
    turn = round(words / sum(2 * n + 2 for n in steps))
    return Shape(number, sum(steps) / len(steps), max(steps), 2 * turn, turn, turn)


def _only(shapes: Mapping[str, Shape], envs: Iterable[str] | None) -> dict[str, Shape]:
    return {env: shape for env, shape in shapes.items() if envs is None or env in set(envs)}


def _collections(recipe: Recipe) -> list[Line]:
    from atlas_ray.trajectories.collect import episodes_of

    return [
        Line(f"collect/{name}", f"{len(episodes_of(c))} episodes by script, no model call", Work())
        for name, c in recipe.collections().items()
    ]


def _selection(name: str, config: SelectConfig, shapes: Mapping[str, Shape]) -> Line:
    selector, own = config.selector, _only(shapes, config.data.envs)
    words, forecast = selector_words(selector), selector.forecast(own)
    if forecast is None:
        return Line(f"select/{name}", words, Work())
    if not shapes:
        words += " (its cost is known once the expert's trajectories are collected)"
        return Line(f"select/{name}", words, Work())
    work = Work(read=forecast.read, written=forecast.written, calls=forecast.calls, dollars=forecast.dollars)
    return Line(f"select/{name}", f"{words}; {forecast.words}", work)


def _training(recipe: Recipe, name: str, shapes: Mapping[str, Shape]) -> Line:
    config = recipe.train[name]
    words = f"{config.epochs:g} epochs, {config.num_workers} worker(s)"
    if name in recipe.tiny:
        return Line(f"train/{name}", f"{words}, on the novice's trajectories", Work())
    tokens = sum(s.trajectories * s.tokens for s in _only(shapes, config.data.envs).values())
    if tokens:
        words += f", at most {config.epochs:g} x {_short(tokens)} tokens, less all behind the last chosen steps"
    if config.match_loss_tokens:
        words += "; and again until as many tokens carried loss as all steps have"
    return Line(f"train/{name}", words, Work(trained=config.epochs * tokens))


def _evaluation(key: str, config: EvaluateConfig, shapes: Mapping[str, Shape]) -> Line:
    number = {env: config.samples * _tasks(config, env) for env in config.tasks}
    models, episodes = len(config.models), sum(number.values())
    calls = models * sum(n * registry.get(env).max_rounds for env, n in number.items())
    words = (
        f"{models} models x {episodes} episodes in {len(number)} environment(s), at most {calls:,} calls; "
        f"{config.engine.replicas} engine replica(s), contexts of at most {config.engine.cap:,} tokens"
    )
    played = [(shapes.get(e) or SHAPES.get(e) or OTHER)._replace(trajectories=n) for e, n in number.items()]
    asked = [model.path for model in config.played.values() if model.endpoint]
    work = _played(sum(bool(model.models()) for model in config.played.values()), played)
    if asked:
        # an endpoint reads the whole conversation at every turn
        turns = sum(s.trajectories * s.steps for s in played)
        half = [(s.trajectories * s.steps, s.opening + s.steps * (s.observation + s.reply) / 2) for s in played]
        read, written = TOKENS_PER_WORD * sum(n * words for n, words in half), _played(1, played).written
        prices = {path: price(path) for path in asked}
        usage = Usage(prompt_tokens=round(read), completion_tokens=round(written))
        work.calls, work.dollars = len(asked) * turns, sum(found.of(usage) for found in prices.values() if found)
        unknown = [path for path, found in prices.items() if found is None]
        words += f"; endpoints: {', '.join(asked)}" + (f" ({', '.join(unknown)}: price unknown)" if unknown else "")
    return Line(f"evaluate/{key}".rstrip("/"), words, work)


def _verification(config: VerifyConfig, shapes: Mapping[str, Shape]) -> Line:
    name = name_of(config.run)
    words = "from scratch, after each critical step, after as many others, and with those put in"
    if not shapes:
        return Line(name, f"{words} (its size is known once the expert's trajectories are collected)", Work())
    limit = config.data.limit or 10**9
    own = [s._replace(trajectories=min(s.trajectories, limit)) for s in _only(shapes, config.data.envs).values()]
    tasks, starts = sum(s.trajectories for s in own), sum(0.3 * s.trajectories * s.steps for s in own)
    # a start half-way leaves half an episode
    work = _played((2 * tasks + starts) / max(1, tasks), own)
    return Line(name, f"{tasks:,.0f} tasks, about {2 * tasks + 2 * starts:,.0f} episodes: {words}", work)


def _tasks(config: EvaluateConfig, env: str) -> int:
    """Test tasks of an environment: the built-in ones, or as many as the paper's where a server holds them."""
    limit = config.tasks[env]
    if registry.get(env).knows_tasks and (config.items is None or env in NAMES):
        return len(registry.get(env).tasks("test", limit))
    printed = eval_tasks(env)
    return printed if limit is None else min(limit, printed)


def _played(times: float, shapes: Collection[Shape]) -> Work:
    """Episodes as long as the expert's, `times` over; the prefix cache holds what was read before."""
    return Work(
        read=times * sum(s.trajectories * s.read for s in shapes),
        written=times * sum(s.trajectories * s.written for s in shapes),
    )


def _hours(work: Work, recipe: Recipe) -> float:
    a = recipe.config.assume
    training = gpu_hours(6 * a.parameters * work.trained, a.flops, a.mfu)
    return training + (work.read / a.prefill + work.written / a.decode) / 3600


def _hours_of(recipe: Recipe) -> str:
    return "GPU-hours" if _needs_gpus(recipe) else "hours"


def _short(number: float) -> str:
    """Three digits and a prefix: 8.03 G."""
    power = min(int(math.log10(max(number, 1.0))) // 3, 4)
    return f"{number / 1000**power:.3g} {('', 'k', 'M', 'G', 'T')[power]}".rstrip()


def _cost(work: Work, recipe: Recipe) -> str:
    """Dollars and GPU-hours of one stage; none of a tiny model's, which needs no GPU."""
    parts = [f"${work.dollars:,.2f} at list price"] if work.dollars else []
    if BASE not in recipe.tiny and (hours := _hours(work, recipe)) >= 0.05:
        parts.append(f"{hours:,.1f} {_hours_of(recipe)}")
    return f"; {', '.join(parts)}" if parts else ""


def _sums(recipe: Recipe, works: list[Work]) -> list[str]:
    whole, a, lines = _sum(works), recipe.config.assume, []
    if BASE not in recipe.tiny:
        hours = _hours(whole, recipe)
        lines += [
            f"{_hours_of(recipe)}: {hours:,.{0 if hours >= 10 else 1}f} = 6 x {_short(a.parameters)} parameters x "
            f"{_short(whole.trained)} trained tokens / ({a.mfu:.0%} of {_short(a.flops)}FLOP/s) + "
            f"{_short(whole.read)} tokens read / {a.prefill:,.0f} a second + {_short(whole.written)} written / "
            f"{a.decode:,.0f} a second"
        ]
        if a.dollars_per_gpu_hour is not None:
            lines.append(f"GPUs: ${hours * a.dollars_per_gpu_hour:,.0f} at ${a.dollars_per_gpu_hour:g} an hour")
    dollars = f"${whole.dollars:,.2f} at list prices for {whole.calls:,.0f} calls" if whole.calls else "none"
    return [*lines, f"dollars for endpoints: {dollars}"]


def _needs_gpus(recipe: Recipe) -> bool:
    return BASE not in recipe.tiny and recipe.config.assume.gpus != 0


def _needs(recipe: Recipe) -> list[str]:
    """What must be there before it starts: GPUs, environment servers, keys."""
    remote = dict.fromkeys(env for config in recipe.evaluations.values() for env in remote_environments(config))
    missing = [env for env in remote if env not in recipe.config.environments.servers]
    keys = {c.selector.paid_endpoint.api_key_env for c in recipe.select.values() if c.selector.paid_endpoint}
    models = [m for config in recipe.evaluations.values() for m in config.played.values()]
    keys |= {m.endpoint.api_key_env for m in models if m.endpoint is not None}
    workers = max((c.num_workers for name, c in recipe.train.items() if name not in recipe.tiny), default=0)
    lines = []
    if _needs_gpus(recipe):
        lines.append(f"needs GPUs: {workers} for training, those again for engines")
    if missing:
        lines.append(f"needs servers, in environments.servers: {', '.join(missing)}")
    played = {env for config in recipe.evaluations.values() for env in config.tasks}
    boards = played & set(NAMES) if recipe.config.tables else set()
    for env, words in other_tasks(sorted(boards), recipe.config.environments).items():
        lines.append(f"{env}: {words} (environments.agentboard); held against none of the paper's figures")
    if keys:
        lines.append(f"needs keys in the environment: {', '.join(sorted(keys))}")
    return lines
