"""`atlas doctor`: of a recipe all that would stop its run, of environment servers what they can do."""

from __future__ import annotations

from typing import Annotated

import typer

from atlas_ray.cli.options import Extra, Only, Set, looking
from atlas_ray.errors import UserError


def doctor(
    what: Annotated[list[str], typer.Argument(metavar="RECIPE | ENV=URL...", help="A recipe's file, or servers.")],
    set_: Set = None,
    extra: Extra = None,
    only: Only = None,
) -> None:
    """Check before a run: a recipe's data, items, servers, models, keys, GPUs and disk; or single servers.

    Endpoints are asked for one token. Everything that is wrong is said at once; the exit code is then 1.
    """
    from atlas_ray.runs.progress import output

    if all("=" in one for one in what):
        from atlas_ray.cli.environments import servers_table

        table, healthy = servers_table(what)
        output.print(table)
    elif len(what) == 1:
        with looking("triton"):
            from atlas_ray.recipes.preflight.findings import failures, findings_table
            from atlas_ray.recipes.preflight.run import preflight
            from atlas_ray.recipes.stages import opened

            found = preflight(opened(what[0], set_ or [], extra or [], only or [])[0])
            output.print(findings_table(found))
        healthy = not failures(found)
    else:
        raise UserError("one recipe, or servers of the form ENV=URL", "write maze=http://127.0.0.1:8000")
    if not healthy:
        raise typer.Exit(1)
