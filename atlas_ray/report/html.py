"""`index.html`: one static page without network, opened from a file.

Flows in: results and examples; flows out: HTML. Every template escapes what it is given; only the drawings and the
page's own script are passed as they are, and the page's policy lets no other script run and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from atlas_ray.report import tables
from atlas_ray.report.figures import draw
from atlas_ray.report.intervals import listed, percent


def render_page(results: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """Renders the report; the same input gives the same text."""
    templates = Environment(
        loader=PackageLoader("atlas_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "duration": duration, "score": score, "listed": listed}
    script = templates.get_template("viewer.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template("index.html.j2").render(
        results=results,
        verdict=results["verdict"],
        examples=examples,
        figures=draw(results),
        tables={
            "success": tables.success_table(results),
            "verdict": tables.verdict_table(results),
            "selectors": tables.selector_table(results),
            "overlap": tables.overlap_table(results),
            "detail": tables.detail_table(results),
        },
        seconds=_by_stage(results["seconds"]),
        flag=tables.FLAG,
        script=Markup(script),
        script_digest=digest,
    )


def _by_stage(seconds: Mapping[str, float]) -> dict[str, float]:
    """Sums of `train/gold`, `train/all`, ... under `train`; the parts stand in `results.json`."""
    found: dict[str, float] = {}
    for name, spent in seconds.items():
        stage = name.partition("/")[0]
        found[stage] = found.get(stage, 0.0) + spent
    return found


def duration(seconds: float) -> str:
    """Seconds in words: `48 s`, `12 min 3 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def score(value: float | None) -> str:
    """A step's score, short; a dash where the selector gives none."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")
