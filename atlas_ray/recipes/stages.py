"""A recipe's stages: what each does, which must be over before it, and what it takes of a cluster.

Flows in: a `Recipe`; flows out: stages in an order in which they could run one after another. Where several run at once
every model is evaluated in a stage of its own; else one pool of engines plays all of a group in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from atlas_ray.address import below, name_of
from atlas_ray.cluster.placement import GROUP, ROLLOUT, TRAIN
from atlas_ray.config import EndpointConfig, EngineConfig
from atlas_ray.errors import AtlasError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.recipes.graph import Recipe, selector_words, untrained
from atlas_ray.recipes.scheduling import Bundle, Node, Stage, gpus_of, makespan, most_jobs
from atlas_ray.recipes.settings import BASE, load_recipe
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training.settings import TrainConfig

COMPARE = "compare"  # the group of what is left of an evaluation once its models are played one by one
_ONE_CPU: tuple[Bundle, ...] = (Bundle({"CPU": 1}),)
_PLAYED_SECONDS = 15.0  # of the quickstart's test tasks, by a model


def opened(
    file: str, overrides: Iterable[str] = (), extra: Iterable[str] = (), only: Sequence[str] = ()
) -> tuple[Recipe, Recipe, list[str]]:
    """A recipe from its file, by the names that `atlas run` takes.

    Args:
        file: Of the recipe.
        overrides: `a.b=c` strings.
        extra: What costs money and is included.
        only: Names of parts; those of tables narrow the recipe down to what they need.

    Returns:
        What is wanted of the recipe, all of it, and the names of `only` that are stages.

    Raises:
        UserError: A setting or name that is not known.
    """
    config, extra = load_recipe(file, overrides), list(extra)
    whole, tables = Recipe(config, extra), [name for name in only if name in config.tables]
    wanted = Recipe(config, extra, tables) if tables else whole
    return wanted, whole, [name for name in only if name not in tables]


def stages(recipe: Recipe, whole: Recipe | None = None, *, gpus: float = 0.0, at_once: bool = False) -> list[Stage]:
    """All stages in order.

    Args:
        recipe: What is run.
        whole: What is reported, where that is more.
        gpus: That the cluster has.
        at_once: Whether several may run at the same time.
    """
    found = [
        *_collections(recipe),
        *_tiny_models(recipe, gpus),
        *_selections(recipe, gpus),
        *_trainings(recipe, gpus, at_once),
        *(stage for key in recipe.evaluations for stage in _evaluations(recipe, key, gpus, at_once)),
        *_verifications(recipe, gpus),
    ]
    report = partial(_report, whole or recipe, recipe.tables)
    before = dict.fromkeys((stage.name for stage in found), "")
    return [*found, Stage("report", recipe.at("report", "index.html"), report, parts=before)]


def stages_for(
    recipe: Recipe,
    nodes: Sequence[Node],
    jobs: int | None = None,
    whole: Recipe | None = None,
    *,
    most: int | None = None,
) -> tuple[list[Stage], int]:
    """The stages as they run on a cluster, and how many at once.

    Args:
        nodes: Of the cluster.
        jobs: How many; None: as the recipe says, else as many as have room, if that is sooner than one after another.
        whole: What is reported, where that is more than what is run.
        most: How many the driver's machine bears; None: as this one.
    """
    most = most_jobs(nodes, os.cpu_count() or 1) if most is None else most
    gpus, jobs = gpus_of(nodes), jobs or recipe.config.jobs
    if jobs is not None:
        return stages(recipe, whole, gpus=gpus, at_once=jobs > 1), jobs
    one_by_one, at_once = (stages(recipe, whole, gpus=gpus, at_once=several) for several in (False, True))
    sooner = most > 1 and makespan(at_once, nodes, most) < makespan(one_by_one, nodes, 1)
    return (at_once, most) if sooner else (one_by_one, 1)


def evaluation_stages(key: str, config: EvaluateConfig) -> list[str]:
    """Names of an evaluation's stages: of the one for all of its models, then of each model's own."""
    group = f"evaluate/{key}".rstrip("/")
    return [group, *(f"{group}/{name}" for name in config.models)]


def answers_to(stage: str) -> set[str]:
    """What a stage is called by: its own name, every group that it is in, and the same without a seed."""
    stage = stage.replace(COMPARE, "evaluate", 1) if stage.partition("/")[0] == COMPARE else stage
    parts = stage.split("/")
    groups = {"/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return groups | {name.partition(".seed")[0] for name in groups}


def clean(recipe: Recipe) -> None:
    """Deletes what the recipe's stages made, but for judgements that were paid for; of a table, what it needs."""
    made = [RunFolder(c.run) for c in recipe.collections().values()]
    made += [RunFolder(c.run) for c in recipe.train.values()]
    made += [RunFolder(c.run) for c in recipe.select.values() if not c.selector.kept_on_clean()]
    made += [RunFolder(c.run).child(name) for c in recipe.evaluations.values() for name in c.models]
    made += [RunFolder(c.run) for c in recipe.verify.values()]
    for folder in (*made, RunFolder(recipe.at("rendered")), RunFolder(recipe.at("report"))):
        folder.delete()


def _collections(recipe: Recipe) -> Iterator[Stage]:
    from atlas_ray.trajectories.collect import collect, episodes_of

    for name, config in recipe.collections().items():
        words = f"{config.role} trajectories in {', '.join(config.envs)}"
        seconds = 5 + len(episodes_of(config)) / 300
        yield Stage(f"collect/{name}", words, partial(collect, config), seconds, takes=_ONE_CPU)


def _tiny_models(recipe: Recipe, gpus: float) -> Iterator[Stage]:
    for name in recipe.tiny:
        words = f"the tiny model `{name}`, on the novice"
        seconds = 10 + _collected(recipe, name_of(recipe.train[name].data.path)) / 40
        yield Stage(
            f"train/{name}",
            words,
            partial(_train_tiny, recipe, name),
            seconds,
            needs=frozenset(f"collect/{made}" for made in recipe.collections()),
            takes=_workers(recipe.train[name], gpus),
            folders=(below(recipe.evaluations[""].run, name),),
        )


def _selections(recipe: Recipe, gpus: float) -> Iterator[Stage]:
    number = _collected(recipe, "expert")
    for name, config in recipe.select.items():
        selector, seconds, takes = config.selector, 1.0, _ONE_CPU
        if engines := selector.engines():
            seconds, takes = 30.0 + number, tuple(_engines(engine, gpus) for engine in engines)
        elif selector.paid_endpoint is not None:
            seconds = 15 + number / 5
        elif any(not use.tokenizer_only for use in selector.models()):
            workers = int(getattr(selector, "num_workers", None) or gpus or 1)
            seconds, takes = 15 + number / 50, (Bundle({"CPU": 1, "GPU": min(1, gpus)}, workers),)
        sources = {f"select/{source}" for source in selector.sources()}
        made = _models_made(recipe, [use.path for use in selector.models()])
        paid = [selector.paid_endpoint] if selector.paid_endpoint is not None else []
        yield Stage(
            f"select/{name}",
            selector_words(selector),
            partial(_select, config),
            seconds,
            needs=_expert(recipe) | sources | made,
            takes=takes,
            endpoints=frozenset(map(_address, paid)),
        )


def _trainings(recipe: Recipe, gpus: float, at_once: bool) -> Iterator[Stage]:
    from atlas_ray.training.stage import render_tokens, train_agent

    rendered: dict[str, str] = {}
    for unit in recipe.units:
        config = recipe.train[unit.name]
        needs = _expert(recipe) | _models_made(recipe, [config.model])
        if at_once:  # what trainings share is made before them
            key = f"{config.data} {config.model} {config.chat_template}"
            if key not in rendered:
                rendered[key] = f"train/{unit.name}/tokens"
                words, run = "the token ids that trainings share", partial(render_tokens, config)
                shared = frozenset([str(config.rendered)])
                yield Stage(rendered[key], words, run, needs=needs, takes=_ONE_CPU, endpoints=shared)
            needs |= {rendered[key]}
        yield Stage(
            f"train/{unit.name}",
            f"on steps by `{unit.selection}`",
            partial(train_agent, config, sample=unit.name == recipe.config.critical),  # once is enough
            10 + _collected(recipe, "expert") * config.epochs / 100,
            needs=needs | {f"select/{unit.selection}"},
            takes=_workers(config, gpus),
            folders=(below(recipe.evaluations[recipe.group_of(unit.arm)].run, unit.name),),
        )


def _evaluations(recipe: Recipe, key: str, gpus: float, at_once: bool) -> Iterator[Stage]:
    """One stage for all models of a group; or one for each, and one that compares them."""
    from atlas_ray.evaluation.stage import evaluate, write_comparisons

    config = recipe.evaluations[key]
    made = {name: _models_made(recipe, [model.path]) for name, model in config.played.items()}
    group, *own = evaluation_stages(key, config)
    tasks = ", ".join(f"{env} {n if n is not None else 'all'}" for env, n in config.tasks.items())
    words = f"{len(config.models)} model(s) on test tasks: {tasks}"
    parts = {stage: name for name, made_by in made.items() for stage in made_by}
    if at_once:
        for stage, name in zip(own, config.models, strict=True):
            yield Stage(
                stage,
                f"on test tasks: {tasks}",
                partial(evaluate, config.model_copy(update={"models": {name: config.models[name]}})),
                20 + _PLAYED_SECONDS,
                needs=made[name],
                takes=_players(config, [name], gpus),
                endpoints=_asked(config, [name]),
                folders=(below(config.run, name),),
            )
        parts = dict(zip(own, config.models, strict=True))
        words = "the models with each other, task by task"
    yield Stage(
        group.replace("evaluate", COMPARE, 1) if at_once else group,
        words,
        partial(_with_made, write_comparisons if at_once else evaluate, config),
        1.0 if at_once else 20 + _PLAYED_SECONDS * len(config.models),
        parts=parts,
        takes=() if at_once else _players(config, config.models, gpus),
        endpoints=frozenset() if at_once else _asked(config, config.models),
        folders=() if at_once else tuple(below(config.run, name) for name in config.models),
    )


def _verifications(recipe: Recipe, gpus: float) -> Iterator[Stage]:
    from atlas_ray.evaluation.verification import verify

    for config in recipe.verify.values():
        yield Stage(
            name_of(config.run),
            f"the base model from `{recipe.config.verify_arm}`'s steps",
            partial(verify, config),
            120.0,
            needs=_expert(recipe) | _models_made(recipe, [config.model]) | {f"select/{name_of(config.selection)}"},
            takes=(_engines(config.engine, gpus),),
            folders=(config.run,),
        )


def _collected(recipe: Recipe, name: str) -> int:
    """Trajectories of a collection; as many as the paper has where the data is brought."""
    from atlas_ray.trajectories.collect import episodes_of

    found = recipe.collections().get(name)
    return 10_000 if found is None else len(episodes_of(found))


def _expert(recipe: Recipe) -> frozenset[str]:
    return frozenset({"collect/expert"} & {f"collect/{name}" for name in recipe.collections()})


def _models_made(recipe: Recipe, paths: Iterable[str]) -> frozenset[str]:
    """The stages that make models."""
    made = {below(config.run, "model"): f"train/{name}" for name, config in recipe.train.items()}
    return frozenset(made[path] for path in paths if path in made)


def _address(endpoint: EndpointConfig) -> str:
    """What has limits of its own: a server, for a key."""
    return f"{endpoint.base_url} {endpoint.api_key_env}"


def _asked(config: EvaluateConfig, models: Iterable[str]) -> frozenset[str]:
    found = [config.played[name].endpoint for name in models]
    return frozenset(_address(endpoint) for endpoint in found if endpoint is not None)


def _players(config: EvaluateConfig, models: Iterable[str], gpus: float) -> tuple[Bundle, ...]:
    local = any(config.played[name].models() for name in models)
    return (_engines(config.engine, gpus),) if local else _ONE_CPU


def _engines(engine: EngineConfig, gpus: float) -> Bundle:
    each = {"CPU": 1, "GPU": engine.tensor_parallel if gpus or engine.tensor_parallel > 1 else 0}
    return Bundle(each, engine.replicas, engine.label_selector or {GROUP: ROLLOUT})


def _workers(config: TrainConfig, gpus: float) -> tuple[Bundle, ...]:
    use_gpu = gpus > 0 if config.use_gpu is None else config.use_gpu
    each = {"CPU": config.cpus_per_worker, "GPU": int(use_gpu)}
    return (Bundle(each, config.num_workers, config.label_selector or {GROUP: TRAIN}),)


def _select(config: SelectConfig) -> None:
    from atlas_ray.selection.estimate import estimate_lines
    from atlas_ray.selection.pipeline import select_steps

    if config.selector.kept_on_clean() and RunFolder(config.run).finished is None:
        # it costs money: the estimate comes first
        for line in estimate_lines(config):
            console.print(line)
    select_steps(config)


def _with_made(
    run: Callable[[EvaluateConfig], object], config: EvaluateConfig, without: Mapping[str, str] | None = None
) -> None:
    """Plays or compares the models that were made.

    Raises:
        AtlasError: If none was.
    """
    models = {name: model for name, model in config.models.items() if name not in (without or {})}
    if not models:
        raise AtlasError("no model was made", "see why their training failed")
    run(config.model_copy(update={"models": models}))


def _train_tiny(recipe: Recipe, name: str) -> None:
    from atlas_ray.config import DataConfig
    from atlas_ray.models.tiny import write_untrained
    from atlas_ray.training.stage import train_agent
    from atlas_ray.trajectories.readers import read_trajectories

    tiny, train = recipe.tiny[name], recipe.train[name]
    if RunFolder(train.run).finished is None:
        words = [t for c in recipe.collections().values() for t in read_trajectories(DataConfig(path=c.run))]
        with TemporaryDirectory() as made:
            size = write_untrained(
                made,
                words,
                hidden_size=tiny.hidden_size,
                layers=tiny.layers,
                heads=tiny.heads,
                context=tiny.context,
                seed=recipe.config.seeds[0],
            )
            RunFolder(recipe.at("collect", untrained(name))).copy_from(Path(made))
        what = "tiny model" if name == BASE else f"tiny model {name}"
        console.print(f"{what}: {size / 1e6:.2f} M parameters")
    train_agent(train, sample=False)


def _report(recipe: Recipe, tables: Sequence[str]) -> None:
    from atlas_ray.recipes.report import report_recipe

    report_recipe(recipe, tables)
