"""The evaluation stage: models play test tasks in live environments.

Flows in: an `EvaluateConfig`; flows out: per arm a run folder `<run>/<arm>` with the table `episodes`, and the results.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from typing import Any

from rich.text import Text

from atlas_ray.cluster.connection import connect
from atlas_ray.config import EngineConfig
from atlas_ray.environments import registry
from atlas_ray.errors import AtlasError, ModelUnavailable, TooManyFailed, UserError, together
from atlas_ray.evaluation.items import item_figures, item_lines, problems, test_tasks, wrong_servers
from atlas_ray.evaluation.metrics import EnvironmentResult, summarise
from atlas_ray.evaluation.openings import Openings, find_openings
from atlas_ray.evaluation.paired import Comparison, compare_all
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.prices import price
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.coordinator import EpisodePlayer, player_of
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.heartbeat import Heartbeat
from atlas_ray.runs.failures import FailureWatch, check_failed, failure_recorded
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import AGAIN, failure_of, loading, unavailable
from atlas_ray.runs.progress import Tracker, console
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Episode, Usage


def evaluate(config: EvaluateConfig, *, clean: bool = False) -> dict[str, list[EnvironmentResult]]:
    """Evaluates every arm, or goes on where an earlier run stopped.

    A finished arm is left alone, unless it holds infrastructure failures: those are tried again. One pool of engines
    serves all arms; weights are swapped in between.

    Args:
        config: Which models, which tasks, and where to write.
        clean: Starts anew.

    Returns:
        Per arm one result for each environment, in the order of `config.tasks`.

    Raises:
        UserError: If a folder holds a run of another configuration, or an environment has neither a server nor a
            built-in simulator.
        ModelUnavailable: If models could not be loaded; all others are evaluated then.
        TooManyFailed: If hardly any episode of a model was played; all others are evaluated then, unless so many failed
            in a row that it makes no sense.
        AtlasError: If engines or environments fail as a whole.
    """
    if wrong := problems(config, ask=False):
        raise together(wrong)
    for line in item_lines(config):
        console.print(line)
    requests = {r.id: r for r in _requests(config)}
    folders = {arm: RunFolder(config.run).child(arm) for arm in config.models}
    missing: dict[str, ModelUnavailable] = {}
    failed: list[AtlasError] = []
    with ExitStack() as stack:
        player: EpisodePlayer | None = None
        held: tuple[type, EngineConfig] | None = None
        openings: Openings | None = None
        for arm, folder in folders.items():
            # Another arm more or less changes nothing for this one.
            own = config.model_copy(update={"models": {arm: config.models[arm]}})
            folder.begin(own, stage="evaluate", clean=clean)
            done = folder.done(EPISODES)
            left = [request for key, request in requests.items() if key not in done]
            if not left and folder.finished is not None:
                continue
            begun, context = time.monotonic(), None
            if left:
                if player is None and (wrong := wrong_servers(config)):
                    raise together(wrong)
                openings = openings or find_openings(config)
                openings.write_to(folder)
                left = [replace(request, opening=openings.of(request.task)) for request in left]
                connect(config.ray, [type(config.played[arm]).__module__])
                try:
                    with loading(folder, arm):
                        model = config.played[arm]
                        spec, pool = model.spec(arm, config.engine), model.pool(config.engine)
                        if player is not None and held == (type(spec), pool):
                            player.load(spec)
                        else:
                            # an engine's actor holds GPUs, an endpoint's none
                            stack.close()
                            player = player_of(
                                spec, pool, config.environments, limits=config.limits, retries=config.retries
                            )
                            held = type(spec), pool
                            stack.enter_context(player)
                except ModelUnavailable as error:
                    console.print(Text(f"left out: {error.what}", "red"))
                    missing[arm], player = error, None
                    stack.close()  # the next model gets engines that hold no part of this one
                    continue
                context = player.context
                with failure_recorded(folder):
                    _play(player, left, folder, f"evaluate {arm}", len(requests))
            folder.compact(EPISODES)
            failed += _finish(folder, own, time.monotonic() - begun, context, len(requests))
    write_comparisons(config)
    _raise_together(failed, missing, any(folder.finished is not None for folder in folders.values()))
    return played(config)


def played(config: EvaluateConfig) -> dict[str, list[EnvironmentResult]]:
    """Results of every arm that was evaluated to the end, as `evaluate` returns them."""
    folders = {arm: RunFolder(config.run).child(arm) for arm in config.models}
    done = {arm: folder for arm, folder in folders.items() if folder.finished is not None}
    return {arm: results(folder.read(EPISODES), config) for arm, folder in done.items()}


def failures(config: EvaluateConfig) -> dict[str, str]:
    """Why arms could not be loaded, by name."""
    found = {arm: failure_of(RunFolder(config.run).child(arm)) for arm in config.models}
    return {arm: reason for arm, reason in found.items() if reason is not None}


def _raise_together(failed: list[AtlasError], missing: dict[str, ModelUnavailable], others: bool) -> None:
    """Says of which models there are no figures, if of any."""
    errors = [*failed, *([_without(missing, others)] if missing else [])]
    if errors:
        raise errors[0] if len(errors) == 1 else TooManyFailed("\n  ".join(error.what for error in errors), AGAIN)


def _without(errors: dict[str, ModelUnavailable], others: bool) -> AtlasError:
    """What to say at the end: engines that start with no model at all are hardly the models' fault."""
    causes = {arm: error.__cause__ for arm, error in errors.items() if isinstance(error.__cause__, AtlasError)}
    said = unavailable(causes)
    if others or len(causes) == 1 or any(isinstance(cause, UserError) for cause in causes.values()):
        return said
    return AtlasError(
        f"no engine starts, with whatever model: {said.what}", "check GPUs, memory and `ATLAS_RAY_LOGS=1`"
    )


def comparisons(config: EvaluateConfig) -> list[Comparison]:
    """Every later model against every earlier one, task by task, from what was played."""
    return compare_all({arm: RunFolder(config.run).child(arm).read(EPISODES) for arm in config.models})


def write_comparisons(config: EvaluateConfig) -> None:
    """Writes them down, where there are several models."""
    if len(config.models) > 1:
        pairs = [asdict(found) for found in comparisons(config)]
        RunFolder(config.run).write_json("comparisons.json", pairs)


def plan_lines(config: EvaluateConfig) -> list[str]:
    """What an evaluation would do, in words.

    Raises:
        UserError: If an environment is unknown or has too few test tasks.
    """
    specs = {env: registry.get(env) for env in config.tasks}
    tasks = {env: len(found) for env, found in test_tasks(config).items()}
    models, samples = len(config.models), config.samples
    calls = models * samples * sum(tasks[env] * spec.max_rounds for env, spec in specs.items())
    return [
        f"{models} models ({', '.join(config.models)}) x {sum(tasks.values())} tasks x {samples} samples"
        f" = {models * samples * sum(tasks.values()):,} episodes",
        "tasks: " + ", ".join(f"{env} {n}" for env, n in tasks.items()),
        *item_lines(config),
        f"at most {calls:,} replies of at most {config.max_tokens} tokens, {_payers(config)}",
    ]


def _payers(config: EvaluateConfig) -> str:
    """Who is asked, and whether that costs anything."""
    asked = [model.path for model in config.played.values() if model.endpoint is not None]
    if not asked:
        return "by local engines; no cost"
    return f"of them those of {', '.join(asked)} by endpoints, which are paid"


def results(episodes: Sequence[Episode], config: EvaluateConfig) -> list[EnvironmentResult]:
    """One arm's result in each environment, in the order of `config.tasks`."""
    found = []
    for env, tasks in test_tasks(config).items():
        played = [e for e in episodes if e.env == env]
        found.append(summarise(played, registry.get(env), len(tasks) * config.samples, config.max_excluded))
    return found


def _requests(config: EvaluateConfig) -> Iterator[EpisodeRequest]:
    sampling = Sampling(config.temperature, config.max_tokens)
    for tasks in test_tasks(config).values():
        for task in tasks:
            for sample in range(config.samples):
                group = task.id if config.samples > 1 else None
                yield EpisodeRequest(task, sampling, seed=config.seed, sample=sample, group=group)


def _play(player: EpisodePlayer, left: Sequence[EpisodeRequest], folder: RunFolder, title: str, total: int) -> None:
    """Plays what is left and writes it down.

    Raises:
        TooManyFailed: If nothing but infrastructure failures comes back.
    """
    watch, usage = FailureWatch("episodes"), Usage()
    successes = played = 0
    with closing(player.play(left, folder)) as episodes, Tracker(title, total, total - len(left)) as tracker:
        tracker.between_units(Heartbeat(player.usage))
        for _, episode in episodes:
            failed = episode.stop_reason.is_infrastructure
            played, successes = played + (not failed), successes + episode.success
            usage += episode.usage
            note = f"success {successes / max(1, played):.0%}, prefix cache {usage.hit_rate:.0%}"
            tracker.advance(note=note)
            watch.add(cause_of(episode) if failed else None)


def cause_of(episode: Episode) -> str:
    """Why infrastructure spoilt it, and where."""
    return f"{episode.env}: {episode.error}"


def check_played(folder: RunFolder, episodes: Sequence[Episode], total: int, most: float) -> None:
    """Ends a stage that has hardly any episode; see `check_failed`."""
    causes = [cause_of(episode) for episode in episodes if episode.stop_reason.is_infrastructure]
    check_failed(folder, "episodes", len(causes), total, next(iter(causes), None), most)


def _finish(
    folder: RunFolder, config: EvaluateConfig, seconds: float, context: int | None, total: int
) -> list[AtlasError]:
    """Marks an arm finished; or says that too much of it failed."""
    episodes, ((arm, model),) = folder.read(EPISODES), config.played.items()
    try:
        with failure_recorded(folder):
            check_played(folder, episodes, total, config.max_failed)
    except TooManyFailed as error:
        return [TooManyFailed(f"{arm}: {error.what}", error.remedy)]
    paid = {}
    if model.endpoint is not None:
        known = price(model.path)
        usage = sum((e.usage for e in episodes), Usage())
        # an endpoint that reports no tokens is not free
        paid = {"dollars": None if known is None or not usage.prompt_tokens else round(known.of(usage), 6)}
    told = [asdict(result) for result in results(episodes, config)]
    record_played(folder, episodes, seconds, context, **paid, **item_figures(config), results=told)
    return []


def record_played(
    folder: RunFolder, episodes: Sequence[Episode], seconds: float, context: int | None, **figures: Any
) -> None:
    """Marks a run of episodes finished, with what they cost; seconds add to those of earlier attempts."""
    usage = sum((e.usage for e in episodes), Usage())
    earlier = folder.finished or {}
    context = context or earlier.get("context")
    folder.finish(
        seconds=round(earlier.get("seconds", 0.0) + seconds, 1),
        **({} if context is None else {"context": context}),
        episodes=len(episodes),
        excluded=dict(Counter(str(e.stop_reason) for e in episodes if e.stop_reason.is_infrastructure)),
        usage=asdict(usage),
        prefix_cache_hit_rate=round(usage.hit_rate, 4),
        **figures,
    )
