"""The verbs that look at data: trajectories, selections, and what carries loss. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from atlas_ray.cli.options import Clean, Config, Data, DryRun, Set, load_settings, looking, show_plan
from atlas_ray.text import printable

trajectories_app = typer.Typer(help="Look at a data set.", no_args_is_help=True)


def compare(
    selections: Annotated[list[str], typer.Argument(help="Run folders of selections of the same trajectories.")],
    data: Annotated[str, typer.Option("--data", help="The trajectories that they were made from.")],
    ratio: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Show scored selections as their top k at this ratio too.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose tokenizer counts loss tokens; words are counted else.")
    ] = None,
    json_: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write all figures.")] = None,
    figure: Annotated[str | None, typer.Option(metavar="FILE", help="Draw them: .png, .svg or .pdf.")] = None,
) -> None:
    """Say how far selections agree with each other and with the expert's own annotation."""
    with looking("torch"):
        from rich.console import Console

        from atlas_ray.runs.progress import output
        from atlas_ray.selection.compare.agreement import compare_runs
        from atlas_ray.selection.compare.show import comparison_tables, write_figure, write_json

        found = compare_runs(selections, data, ratio, model)
        if json_:
            write_json(json_, found)
        if figure:
            write_figure(figure, found)
        # a file is as wide as it needs to be
        console = output if output.is_terminal else Console(width=160, markup=False)
        for table in comparison_tables(found):
            console.print(table)


def export_selection(
    selection: Annotated[str, typer.Argument(help="Run folder of a selection.")],
    file: Annotated[str, typer.Argument(help="Table to write: .csv or .jsonl.")],
) -> None:
    """Write a selection as a table to edit; `selector={name: file, path: FILE}` brings it back, checked."""
    from atlas_ray.errors import UserError
    from atlas_ray.runs.folder import RunFolder
    from atlas_ray.runs.tables import SELECTIONS
    from atlas_ray.selection.file import write_table

    records = RunFolder(selection).read(SELECTIONS)
    if not records:
        raise UserError(f"no selection lies in {selection}", "name a run folder that `atlas select` wrote")
    write_table(file, records)
    typer.echo(f"table: {file} ({len(records)} trajectories)")


def export(
    run: Annotated[
        str | None, typer.Argument(help="Run folder of a selection, or of a training, whose data and model are taken.")
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Of which trainer: axolotl, trl, openai, ...")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FOLDER", help="Where to write: a path or a URI.")] = None,
    config: Config = None,
    set_: Set = None,
    data: Data = None,
    model: Annotated[str | None, typer.Option("--model", help="Whose tokenizer and chat template.")] = None,
    dry_run: DryRun = False,
    clean: Clean = False,
) -> None:
    """Write data with loss on the chosen steps only, as another trainer reads it."""
    from atlas_ray.training.export import stage

    given = {} if run is None else stage.settings_of_run(run)
    options = {"data": data, "model": model, "format": format_, "out": out}
    given |= {name: value for name, value in options.items() if value is not None}
    settings = load_settings("ExportConfig", config, set_, **given)
    if dry_run:
        return show_plan(settings, *stage.plan_lines(settings))
    from atlas_ray.address import below
    from atlas_ray.runs.status import figures_line
    from atlas_ray.training.export.trainers import RULES
    from atlas_ray.training.export.writer import DATA

    folder = stage.export(settings, clean=clean)
    typer.echo(printable(f"rows: {below(folder.uri, DATA)} ({figures_line(folder.finished or {})})"))
    typer.echo(RULES[settings.format])


def view_mask(
    data: Annotated[str, typer.Option("--data", help="Trajectories.")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer and chat template.")],
    selection: Annotated[
        str | None, typer.Option("--selection", help="Run folder of a selection; all steps else.")
    ] = None,
    trajectory: Annotated[str | None, typer.Option("--trajectory", help="Its id; the first one else.")] = None,
    chat_template: Annotated[
        str | None, typer.Option("--chat-template", help="Built-in name or file; the tokenizer's own else.")
    ] = None,
) -> None:
    """Print a trajectory with its loss tokens coloured."""
    with looking("torch"):
        from atlas_ray.runs.progress import output
        from atlas_ray.training.view import view

        output.print(view(data, model, selection, trajectory, chat_template))


@trajectories_app.command("stats")
def trajectories_stats(
    path: Annotated[str, typer.Argument(help="File, folder, run folder or Hugging Face data set id.")], set_: Set = None
) -> None:
    """Count trajectories, steps, words and gold steps by environment; bad rows go to ./rejected.jsonl."""
    from atlas_ray.errors import AtlasError
    from atlas_ray.runs.folder import RunFolder
    from atlas_ray.runs.progress import output
    from atlas_ray.trajectories.readers import read_trajectories
    from atlas_ray.trajectories.rejected import write_rejected
    from atlas_ray.trajectories.statistics import statistics_tables

    rejected: list[Any] = []
    settings = load_settings("DataConfig", None, set_, path=path)
    found = read_trajectories(settings, rejected)
    for table in statistics_tables(found) if found else ():
        output.print(table)
    unusable = [row for row in rejected if row.is_unusable]
    for row in unusable[:5]:
        typer.echo(f"rejected: {row}", err=True)
    if rejected:
        write_rejected(RunFolder("."), rejected)
    if unusable:
        typer.echo(f"rejected in all: {len(unusable)}; rejected.jsonl lists them with their reasons", err=True)
    if not found:
        raise AtlasError(f"{path} holds no usable trajectory", "docs/own-data.md shows what a row holds")
