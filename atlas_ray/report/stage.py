"""The report stage's end: figures in, files out. Flows in: results and records; flows out: the page's path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_ray.report.html import render_page
from atlas_ray.report.site import SiteInput, write_assets, write_data
from atlas_ray.runs.folder import RunFolder

RESULTS = "results.json"
PAGE = "index.html"


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
    folder.write_json(RESULTS, results)
    write_assets(folder)
    meta = write_data(folder, site, results["verdict"]["critical"])
    folder.write_bytes(PAGE, render_page(results, site, meta).encode())
    return folder.child(PAGE).uri
