"""The `atlas` command: verbs only. Each verb reads a configuration and calls its stage."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated, Any

import typer

from atlas_ray.cli.data import compare, export, export_selection, trajectories_app, view_mask
from atlas_ray.cli.environments import environments_app, serve
from atlas_ray.cli.options import (
    Clean,
    Config,
    Data,
    DryRun,
    Extra,
    Only,
    Run,
    Set,
    ends_with_its_command,
    load_settings,
    looking,
    show_plan,
)
from atlas_ray.cli.recipes import doctor
from atlas_ray.cli.runs import cache, fetch_model, status
from atlas_ray.cluster.processes import kill_descendants
from atlas_ray.cluster.watchdog import lost
from atlas_ray.errors import AtlasError, Unresponsive, is_interrupted
from atlas_ray.text import printable

_INTERRUPTED = 130  # exit code after Ctrl-C, as a shell's

app = typer.Typer(
    name="atlas",
    help="Agent tuning on critical steps: select, train, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(trajectories_app, name="trajectories")
app.add_typer(environments_app, name="environments")


@app.callback()
def _main(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tracebacks and Ray's logs.")] = False,
    log_units: Annotated[bool, typer.Option(help="Show a line of JSON per finished unit.")] = False,
) -> None:
    from atlas_ray.runs.units import show_units

    show_units(log_units)
    if verbose:
        os.environ["ATLAS_VERBOSE"] = os.environ["ATLAS_RAY_LOGS"] = "1"
        return
    # transformers loads torchao wherever it is installed, which tells of kernels that it does not find
    for chatty in ("torchao", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


@app.command()
def collect(
    config: Config = None, set_: Set = None, run: Run = None, dry_run: DryRun = False, clean: Clean = False
) -> None:
    """Write trajectories of a scripted expert or novice in built-in environments."""
    settings = load_settings("CollectConfig", config, set_, run=run)
    if dry_run:
        from atlas_ray.trajectories.collect import episodes_of

        return show_plan(settings, f"{len(episodes_of(settings))} episodes, no model call")
    from atlas_ray.trajectories.collect import collect as stage

    folder = stage(settings, clean=clean)
    _print_figures(folder, "trajectories")


@app.command()
def select(
    config: Config = None,
    set_: Set = None,
    run: Run = None,
    data: Data = None,
    max_cost: Annotated[float | None, typer.Option(help="US dollars that an LLM selector may spend in all.")] = None,
    dry_run: DryRun = False,
    clean: Clean = False,
) -> None:
    """Choose the critical steps of expert trajectories."""
    cost = [] if max_cost is None else [f"selector.max_cost={max_cost}"]
    settings = load_settings("SelectConfig", config, [*(set_ or []), *cost], run=run, data=data)
    if dry_run:
        from atlas_ray.selection.estimate import estimate_lines

        return show_plan(settings, *estimate_lines(settings))
    from atlas_ray.selection.pipeline import select_steps

    _print_figures(select_steps(settings, clean=clean), "selections")


@app.command()
def train(
    config: Config = None,
    set_: Set = None,
    run: Run = None,
    data: Data = None,
    dry_run: DryRun = False,
    clean: Clean = False,
) -> None:
    """Fine-tune a model with loss on the selected steps only."""
    settings = load_settings("TrainConfig", config, set_, run=run, data=data)
    if dry_run:
        with looking("triton", *([] if settings.lora else ["accelerate"])):
            from atlas_ray.training.stage import plan_lines

            return show_plan(settings, *plan_lines(settings))
    from atlas_ray.training import stage

    stage.train_agent(settings, clean=clean)
    from atlas_ray.address import below

    typer.echo(f"model: {below(settings.run, 'model')}")


@app.command()
def evaluate(
    config: Config = None, set_: Set = None, run: Run = None, dry_run: DryRun = False, clean: Clean = False
) -> None:
    """Play test tasks with one or several models in live environments."""
    settings = load_settings("EvaluateConfig", config, set_, run=run)
    from atlas_ray.evaluation import stage

    if dry_run:
        return show_plan(settings, *stage.plan_lines(settings))
    from atlas_ray.errors import ModelUnavailable, TooManyFailed
    from atlas_ray.report.terminal import print_evaluation

    try:
        stage.evaluate(settings, clean=clean)
    except (ModelUnavailable, TooManyFailed):  # what the others reached is shown as well
        print_evaluation(settings)
        raise
    print_evaluation(settings)


@app.command()
def verify(
    config: Config = None,
    set_: Set = None,
    run: Run = None,
    data: Data = None,
    dry_run: DryRun = False,
    clean: Clean = False,
) -> None:
    """Play a model from scratch, right after each critical step, and with those steps put in (Table 6)."""
    settings = load_settings("VerifyConfig", config, set_, run=run, data=data)
    from atlas_ray.evaluation.verification import plan_lines
    from atlas_ray.evaluation.verification import verify as stage

    if dry_run:
        return show_plan(settings, *plan_lines(settings))
    from atlas_ray.report.terminal import verification_table
    from atlas_ray.runs.progress import output

    output.print(verification_table(stage(settings, clean=clean)))


app.command()(compare)
app.command()(export)
app.command(name="export-selection")(export_selection)


@app.command(name="run")
def run_recipe(
    recipe: Annotated[str, typer.Argument(help="YAML file, or a name: quickstart, paper, table3, ...")],
    set_: Set = None,
    extra: Extra = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Run these parts: train, table3, ...")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Stages that run at once at most; as many as have room else.")
    ] = None,
    dry_run: DryRun = False,
    clean: Clean = False,
    skip_preflight: Annotated[
        bool, typer.Option("--skip-preflight", help="Start without `atlas doctor`'s checks; it is recorded.")
    ] = False,
) -> None:
    """Run a recipe: a preflight, then all stages, as many at once as have room; resumable at any point."""
    from atlas_ray.recipes import stages

    wanted, whole, names = stages.opened(recipe, set_ or [], extra or [], only or [])
    if dry_run:
        from atlas_ray.recipes.plan import plan_lines

        return show_plan(whole.config, *plan_lines(wanted, jobs))
    if clean:
        stages.clean(wanted)
    from atlas_ray.recipes.running import run

    run(wanted, names, whole, jobs=jobs, skip_preflight=skip_preflight)


@app.command()
def study(
    file: Annotated[str, typer.Argument(help="YAML file, or a name: study.")],
    set_: Set = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Stages that run at once at most.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Run a recipe in several cells that differ in a setting or two, and answer the questions announced about them."""
    from atlas_ray.recipes.study import load_study

    found = load_study(file, set_ or [])
    if dry_run:
        return show_plan(found.config, *found.plan_lines(jobs))
    found.run(jobs)


@app.command()
def models(
    recipe: Annotated[str, typer.Argument(help="YAML file, e.g. jobs/paper.yaml.")],
    set_: Set = None,
    extra: Extra = None,
    only: Only = None,
) -> None:
    """List the hub's models and data sets that a recipe reads, one a line: `model ID REVISION`."""
    from atlas_ray.recipes.hub import hub_files
    from atlas_ray.recipes.stages import opened

    for files in hub_files(opened(recipe, set_ or [], extra or [], only or [])[0]):
        typer.echo(str(files))


@app.command()
def report(
    recipe: Annotated[str, typer.Argument(help="The recipe whose runs are reported.")],
    set_: Set = None,
    extra: Extra = None,
) -> None:
    """Build tables, figures and the report of a recipe's runs."""
    from atlas_ray.recipes.report import report_recipe
    from atlas_ray.recipes.stages import opened

    report_recipe(opened(recipe, set_ or [], extra or [], [])[1])


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="collect, select, train, export, evaluate, verify, report or run.")],
    address: Annotated[str | None, typer.Option(help="Dashboard of the cluster, e.g. http://HEAD:8265.")] = None,
    wait: Annotated[bool, typer.Option(help="Stream the log and wait for the end.")] = True,
    fetch: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Copy the report of `run` or `report` here.")
    ] = None,
    driver_cpus: Annotated[float | None, typer.Option(min=0, help="CPUs that the job's driver takes.")] = None,
    driver_on_head: Annotated[
        bool, typer.Option(help="Keep it there: the head outlives nodes that come and go.")
    ] = False,
) -> None:
    """Run a stage as a job on a Ray cluster; further options are the stage's own."""
    from atlas_ray.cluster.submit import submit as send
    from atlas_ray.recipes.fetch import bring, report_to_fetch

    report = report_to_fetch(stage, context.args, wait=wait, folder=fetch)
    job = send(stage, context.args, address, wait, driver_cpus=driver_cpus, driver_on_head=driver_on_head)
    if report is not None:
        bring(report, fetch)
    typer.echo(f"job: {job}")


app.command()(serve)
app.command()(status)
app.command()(cache)
app.command(name="fetch-model")(fetch_model)
app.command()(doctor)
app.command(name="view-mask")(view_mask)


def _print_figures(folder: Any, what: str) -> None:
    """Prints where a finished stage's records lie, and what it counted."""
    from atlas_ray.runs.status import figures_line

    typer.echo(printable(f"{what}: {folder.uri} ({figures_line(folder.finished or {})})"))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; errors are sentences, exit code 2 for the user's mistakes and 1 for failures.

    Args:
        arguments: The command line without the program's name; this process's own where None.
    """
    if arguments is None:
        ends_with_its_command()
    try:
        app(arguments)
    except (Exception, KeyboardInterrupt, SystemExit) as raised:
        if isinstance(raised, SystemExit) and not raised.code:
            raise
        error = lost() or raised
        if is_interrupted(error):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one would break into Ray's own end
            typer.secho("atlas: stopped; the same command goes on from here", fg="yellow", err=True)
            sys.exit(_INTERRUPTED)
        if isinstance(error, SystemExit) or os.environ.get("ATLAS_VERBOSE"):
            raise
        if isinstance(error, AtlasError):
            typer.secho(f"atlas: {error}", fg="red", err=True)
            if isinstance(error, Unresponsive):
                sys.stdout.flush()
                kill_descendants()  # parts of Ray, which look for each other for a minute
                os._exit(error.exit_code)
            sys.exit(error.exit_code)
        typer.secho(printable(f"atlas: {type(error).__name__}: {str(error).strip()[-1500:]}"), fg="red", err=True)
        typer.secho("  run again with `atlas -v ...` for the traceback; what is recorded is kept", err=True)
        sys.exit(1)
