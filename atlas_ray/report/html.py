"""The report's files, `index.html` among them: overview, tables, figures, and trajectories and episodes from `data/`.

Flows in: results and what belongs to the site; flows out: the page's path. Every template escapes what it is
given; only our own drawings are passed as they are. The page's policy runs no script but the folder's, and loads
nothing from elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from atlas_ray.errors import AtlasError
from atlas_ray.evaluation.intervals import percent, points
from atlas_ray.report import tables
from atlas_ray.report.figures import draw
from atlas_ray.report.site import SiteInput, write_assets, write_data
from atlas_ray.runs.folder import RunFolder

# In the order in which they need each other; the data's names come before the last, which starts the page.
SCRIPTS = (
    *(f"assets/{name}.js" for name in ("dom", "data", "route", "turns", "list", "trajectory", "episode")),
    "data/meta.js",
    "assets/app.js",
)


def write_report(folder: RunFolder, results: Mapping[str, Any], site: SiteInput | None = None) -> str:
    """Writes `results.json`, `index.html`, `assets/` and `data/`; the same input gives the same bytes.

    Args:
        folder: The report's run folder.
        results: From `results.build_results`.
        site: What the viewer shows beside the results; nothing where None.

    Returns:
        Where the page lies.
    """
    site = site or SiteInput()
    folder.write_json("results.json", results)
    write_assets(folder)
    meta = write_data(folder, site, results["verdict"]["critical"])
    folder.write_bytes("index.html", render_page(results, site, meta).encode())
    return folder.child("index.html").uri


def render_page(results: Mapping[str, Any], site: SiteInput, meta: Mapping[str, Any]) -> str:
    """Renders the page; the same input gives the same text.

    Args:
        meta: From `site.write_data`.

    Raises:
        AtlasError: If a download lies outside the report's folder.
    """
    page = templates().get_template("index.html.j2")
    return page.render(
        results=results,
        verdict=results["verdict"],
        site=site,
        meta=meta,
        downloads=[(path, _link(path)) for path in site.downloads],
        figures=draw(results),
        tables={
            "success": tables.success_table(results),
            "verdict": tables.verdict_table(results),
            "selectors": tables.selector_table(results),
            "replays": tables.replay_table(results),
            "overlap": tables.overlap_table(results),
            "detail": tables.detail_table(results),
        },
        seconds=_by_stage(results["seconds"]),
        flag=tables.FLAG,
        group_words=tables.GROUP_WORDS,
        scripts=SCRIPTS,
    )


def templates() -> Environment:
    """The pages' templates; everything is escaped but our own drawings."""
    found = Environment(
        loader=PackageLoader("atlas_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "duration": duration, "points": points, "svg": Markup}
    return found


def _link(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise AtlasError(f"the download {path!r} lies outside the report's folder", "give a path within it")
    return "./" + quote("/".join(parts))


def _by_stage(seconds: Mapping[str, float]) -> dict[str, float]:
    """Sums of `train/gold`, `train/all`, ... under `train`; the parts stand in `results.json`."""
    found: dict[str, float] = defaultdict(float)
    for name, spent in seconds.items():
        found[name.partition("/")[0]] += spent
    return found


def duration(seconds: float) -> str:
    """Seconds in words: `48 s`, `12 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
