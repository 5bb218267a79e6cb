"""The report stage's end: figures in, files out. Flows in: results and examples; flows out: the page's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atlas_ray.report.html import render_page
from atlas_ray.runs.folder import RunFolder

RESULTS = "results.json"
PAGE = "index.html"


def write_report(folder: RunFolder, results: Mapping[str, Any], examples: Sequence[Mapping[str, Any]] = ()) -> str:
    """Writes `results.json` and `index.html`; the same input gives the same bytes.

    Args:
        folder: The report's run folder.
        results: From `results.build_results`.
        examples: From `examples.pick_examples`, for the viewer.

    Returns:
        Where the page lies.
    """
    folder.write_json(RESULTS, results)
    folder.write_bytes(PAGE, render_page(results, examples).encode())
    return f"{folder.uri.rstrip('/')}/{PAGE}"
