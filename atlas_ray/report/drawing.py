"""What our drawings share: the page's colours, rows with names, and SVG without anything that is not the drawing.

Flows in: matplotlib figures; flows out: SVG whose colours are the page's, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

# Stand-ins that matplotlib takes for colours and the page's style sheet replaces.
_COLOURS = {"#0a0001": "ink", "#0a0002": "muted", "#0a0003": "line", "#0a0004": "accent", "#0a0005": "paper"}
INK, MUTED, LINE, ACCENT, PAPER = _COLOURS
WIDTH = 3.75
_ROW = 0.255
_NAME = 16
_DARK = 0.55
STYLE = {
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans"],
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing of the page: `slug` names it in links, `svg` is our own inline SVG, `group` one of environments."""

    slug: str
    title: str
    caption: str
    svg: str
    group: str = ""

    @classmethod
    def of(cls, drawing: Drawing, slug: str, label: str, title: str, caption: str = "", group: str = "") -> Figure:
        """A figure of matplotlib's; `label` describes it to who cannot see it."""
        return cls(slug, title, caption, to_svg(drawing, slug, label), group)


def panel(height: float, left: float, bottom: float, right: float, top: float, grid: str = "") -> tuple[Drawing, Axes]:
    """An empty panel of the page's width, `height` inches high, without frame and ticks.

    Args:
        left, bottom, right, top: Where its axes end, as shares of the panel.
        grid: The axis whose grid is drawn: `x`, `y` or `both`; none where empty.
    """
    figure = Drawing(figsize=(WIDTH, height))
    axes = figure.add_axes((left, bottom, right - left, top - bottom))
    bare(axes)
    if grid:
        axes.grid(axis=grid)  # type: ignore[arg-type]
    return figure, axes


def named_rows(names: Sequence[str], critical: str) -> tuple[Drawing, Axes]:
    """A panel with one named row a line, from the top, over 0 to 100 %."""
    top, bottom = 0.06, 0.46
    height = top + bottom + _ROW * len(names)
    figure, axes = panel(height, 1.12 / WIDTH, bottom / height, 1 - 0.16 / WIDTH, 1 - top / height, grid="x")
    axes.set(xlim=(-2, 102), ylim=(len(names) - 0.5, -0.5), xticks=[0, 25, 50, 75, 100])
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        if name == critical:
            label.set(color=ACCENT, weight="bold")
    return figure, axes


def block(
    axes: Axes, row: float, left: float, size: tuple[float, float], alpha: float, text: str = "", points: float = 7.5
) -> None:
    """A shaded rectangle of a width and height, with a text in its middle that is light where the shade is dark."""
    width, height = size
    axes.barh(row, width, height, left=left, color=ACCENT, alpha=alpha, linewidth=0)
    colour = PAPER if alpha > _DARK else INK
    axes.text(left + width / 2, row, text, ha="center", va="center", size=points, color=colour)


def bare(axes: Axes) -> None:
    """No frame and no ticks; what is drawn lies over the grid."""
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)


def short(name: str) -> str:
    """A name that fits beside a row."""
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def standalone(svg: str) -> str:
    """A drawing as a file of its own: with the page's colours, light and dark."""
    sheet = (resources.files(__package__) / "assets" / "site.css").read_text()
    named = "|".join(_COLOURS.values())
    light, dark = (
        ";".join(re.findall(rf"--(?:{named}): [^;]+", block))
        for block in re.findall(r"\{[^{}]*--paper: [^{}]*\}", sheet)[:2]
    )
    style = f"<style>:root{{{light};--sans:sans-serif}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    opened, _, rest = str(svg).partition(">")  # plain text: what it holds is escaped already
    names = 'xmlns="http://www.w3.org/2000/svg"'
    return f"{opened.replace('<svg ', f'<svg {names} ', 1)}>{style}{rest}"


def to_svg(figure: Drawing, name: str, label: str) -> Markup:
    """The drawing alone: no date, no name spaces, no fonts, colours as variables."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    text = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    drawn = text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return Markup(drawn)  # noqa: S704 (matplotlib escapes what it writes)
