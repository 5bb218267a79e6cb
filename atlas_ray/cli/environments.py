"""The verbs about environments: serving them, checking servers, and what there is. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from atlas_ray.cli.options import Set
from atlas_ray.errors import UserError
from atlas_ray.text import printable

if TYPE_CHECKING:
    from rich.table import Table

environments_app = typer.Typer(help="Look at the environments.", no_args_is_help=True)


def serve(
    envs: Annotated[list[str], typer.Argument(help="Environments, e.g. maze wordle.")],
    host: Annotated[str, typer.Option(help="Beyond loopback a token is needed (ATLAS_SERVER_TOKEN).")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any free port, printed.")] = 8000,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="NAME=PATH", help="Your own games, products or problems in place of the built-in ones."
        ),
    ] = None,
    protocol: Annotated[Literal["agentgym", "openenv"], typer.Option(help="As whose server it answers.")] = "agentgym",
    config: Annotated[str | None, typer.Option("--config", "-c", help="YAML file: register.")] = None,
    set_: Set = None,
) -> None:
    """Serve environments over HTTP, as AgentGym's servers or OpenEnv's do: built-in ones, and any that are registered
    (`--set register.NAME=...`) and played in this process."""
    from atlas_ray.config import EnvironmentsConfig, load
    from atlas_ray.environments.http.server import serve as run_server

    load(EnvironmentsConfig, config, set_ or [])  # makes known what it registers
    run_server(envs, host, port, os.environ.get("ATLAS_SERVER_TOKEN"), data or (), protocol)


def servers_table(servers: Sequence[str]) -> tuple[Table, bool]:
    """Looks at servers: reachable, tasks, whether replay is exact.

    Args:
        servers: Of the form ENV=URL.

    Returns:
        A row a server, and whether all can be used.

    Raises:
        UserError: If one is of another form, or its environment is unknown.
    """
    import asyncio

    from rich.table import Table

    from atlas_ray.environments.http.probe import probe

    table = Table("environment", "server", "reachable", "tasks", "replay")
    healthy = True
    for server in servers:
        env, _, url = server.partition("=")
        found = asyncio.run(probe(url, env))
        healthy &= found.ok
        table.add_row(env, url, *map(printable, (found.reachable, found.tasks, found.replay)))
    return table, healthy


@environments_app.command("start")
def environments_start(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[=N]]...", help="Servers, N processes each; the file's else.")
    ] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="YAML file: servers, host, out, ...")] = None,
    set_: Set = None,
    built_in: Annotated[bool, typer.Option(help="This project's own servers of the names given.")] = False,
) -> None:
    """Start AgentGym's servers on this machine, keep them alive, and write their addresses for runs."""
    import signal
    import threading

    from atlas_ray.config import load
    from atlas_ray.environments.agentgym.launcher import LaunchConfig, launch

    overrides, wanted = [], []
    for given in names or []:
        name, sign, processes = given.partition("=")
        wanted.append(name)
        if sign or config is None:
            overrides.append(f"servers.{name}.processes={processes if sign else 1}")
        if built_in:
            overrides.append(f"servers.{name}.built_in=true")
    settings = load(LaunchConfig, config, [*overrides, *(set_ or [])])
    if unknown := [name for name in wanted if name not in settings.servers]:
        raise UserError(f"{config} names no server {unknown[0]!r}", f"it names {', '.join(settings.servers)}")
    if wanted:
        settings = settings.model_copy(update={"servers": {name: settings.servers[name] for name in wanted}})
    stop = threading.Event()
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, lambda *_: stop.set())
    launch(settings, stop)


@environments_app.command("list")
def environments_list() -> None:
    """Show every environment: held in or out, built in or remote, extra, tasks, cap, metric, replay."""
    from atlas_ray.environments.registry import overview
    from atlas_ray.runs.progress import output

    output.print(overview())


@environments_app.command("check")
def environments_check(
    name: Annotated[str, typer.Argument(help="One that is built in, served, or registered.")],
    config: Annotated[str | None, typer.Option("--config", "-c", help="YAML file: register, servers, ...")] = None,
    set_: Set = None,
) -> None:
    """Play, replay, mix, and close an environment, give it nonsense, and say which of the rules hold."""
    import asyncio

    from rich.table import Table

    from atlas_ray.config import EnvironmentsConfig, load
    from atlas_ray.environments.check import check
    from atlas_ray.runs.progress import output

    settings, shown, broken = load(EnvironmentsConfig, config, set_ or []), Table("rule", "holds", "seen"), 0

    async def checked() -> None:
        nonlocal broken
        async for finding in check(name, settings):
            shown.add_row(finding.rule, "yes" if finding.holds else "NO", printable(finding.told))
            broken += not finding.holds

    asyncio.run(checked())
    output.print(shown)
    if broken:
        raise typer.Exit(1)
