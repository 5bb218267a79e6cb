"""The paper's tables as files: Markdown, LaTeX, CSV and JSON, and as the report's own tables.

Flows in: `PaperTable`s; flows out: text, and `tables/table1.md` and so on under a report's folder.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from atlas_ray.report.paper.ours import Figure
from atlas_ray.report.paper.printed import AVERAGES
from atlas_ray.report.paper.tables import ChosenRow, Cost, PaperCell, PaperTable, PaperTableRow
from atlas_ray.report.tables import FLAG, OVERFLOW, Cell, Table, columns
from atlas_ray.report.verdict import GROUPS
from atlas_ray.runs.folder import RunFolder

_HEADINGS = {average: GROUPS[held] for average, held in AVERAGES.items()}
_CSV = (
    *("table", "section", "row", "arm", "column", "env", "other_tasks"),
    *("ours", "low", "high", "spread", "n", "seeds", "errors", "flagged", "of"),
    *("paper", "quoted", "held_against", "difference"),
)
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    c: f"\\{c}" for c in "&%$#_{}"
}
_TEX |= {"`": r"\textasciigrave{}", "<": "$<$", ">": "$>$", "|": "$|$"}
_TEX |= {"±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}", "¶": r"\P{}", "–": "--", "−": "$-$"}
FORMS = ("md", "tex", "csv", "json")
_FITTING = 3  # columns that a page is wide enough for


def write_paper_tables(folder: RunFolder, tables: Sequence[PaperTable]) -> list[str]:
    """Writes `tables/NAME.FORM` for every table and form; returns their paths below the folder."""
    written = []
    for table in tables:
        for form, text in zip(FORMS, (markdown(table), latex(table), as_csv(table), as_json(table)), strict=True):
            path = f"tables/{table.name}.{form}"
            folder.write_bytes(path, text.encode())
            written.append(path)
    return written


def markdown(table: PaperTable) -> str:
    """A table in Markdown: under each printed row's figures ours, and what they differ by."""
    rows, section = [], ""
    for row in table.rows:
        if row.section != section:
            section = row.section
            rows.append([f"**{_md(section)}**", "", *[""] * len(table.columns)])
        rows += [[_md(cell) for cell in cells] for cells in _lines(row)]
    lines = [f"## {table.title}", "", *_md_table(["", "", *map(_heading, table.columns)], rows, words=2)]
    lines += ["", *_remarks(table, _md)]
    for title, head, below in _below(table):
        lines += ["", f"{title}:", "", *_md_table(head, [[_md(cell) for cell in cells] for cells in below])]
    return "\n".join(lines) + "\n"


def latex(table: PaperTable) -> str:
    r"""A table in LaTeX, for `\usepackage{booktabs,graphicx}`: no wider than the page, what training took below."""
    layout = "ll" + "r" * len(table.columns)
    wide = len(table.columns) > _FITTING
    lines = [r"\begin{table*}", r"\centering", r"\small", *([r"\resizebox{\textwidth}{!}{%"] if wide else [])]
    lines += [rf"\begin{{tabular}}{{{layout}}}", r"\toprule"]
    lines += [_tex_row(["", "", *map(_heading, table.columns)]), r"\midrule"]
    section = ""
    for row in table.rows:
        if row.section != section:
            section = row.section
            lines.append(rf"\multicolumn{{{len(layout)}}}{{l}}{{\textit{{{_tex(section)}}}}} \\")
        lines += [_tex_row(cells) for cells in _lines(row)]
    lines += [r"\bottomrule", r"\end{tabular}" + "}" * wide, rf"\caption{{{_tex(table.title)}}}"]
    lines += [rf"\footnotesize {line}" + r" \\" for line in _remarks(table, _tex, "")]
    for _, head, below in _below(table):
        lines += [
            r"\medskip",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            _tex_row(head),
            r"\midrule",
        ]
        lines += [*map(_tex_row, below), r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _below(table: PaperTable) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """Titles, headings and rows of the smaller tables under one."""
    if table.costs:
        yield "What training took, a seed on average", _COST_HEAD, [_cost_cells(cost) for cost in table.costs]
    if table.chosen:
        yield _CHOSEN_TITLE, _CHOSEN_HEAD, [_chosen_cells(row) for row in table.chosen]


def as_csv(table: PaperTable) -> str:
    """One line a cell; empty where there is nothing."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(table))
    return out.getvalue()


def as_json(table: PaperTable) -> str:
    """The table with all that is known of its cells."""
    found = asdict(table)
    for row, given in zip(found["rows"], table.rows, strict=True):
        for cell, held in zip(row["cells"], given.cells, strict=True):
            cell["difference"] = held.difference
        for claim, made in zip(row["claims"], given.claims, strict=True):
            claim["words"] = made.words
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def as_table(table: PaperTable, averages: bool = False) -> Table:
    """For the page and the terminal: ours, with the paper's under it.

    Args:
        averages: Only these, of a table that is too wide for a terminal.
    """
    shown = [c for c in table.columns if c in AVERAGES] if averages and len(table.columns) > len(AVERAGES) else []
    kept = set(shown or table.columns)
    heads = columns("", *(_heading(column) for column in table.columns if column in kept))
    rows = []
    for row in table.rows:
        label = Cell(row.label, row.section)
        rows.append([label, *(_page_cell(cell) for cell in row.cells if cell.column in kept)])
    claims = [f"{row.named}, {claim.words}." for row in table.rows for claim in row.claims]
    strong = next((i for i, row in enumerate(table.rows) if row.key in ("atlas", "critical-30")), None)
    return Table(table.title, heads, rows, [*table.notes, *claims], strong)


def cost_table(table: PaperTable) -> Table:
    """What the trainings of a table took, for the page."""
    rows = [[Cell(text) for text in _cost_cells(cost)] for cost in table.costs]
    return Table(f"{table.title.partition(':')[0]}: what training took", columns(*_COST_HEAD), rows)


def chosen_table(table: PaperTable) -> Table:
    """What the selections of Table 3 chose, for the page and the terminal."""
    rows = [[Cell(text) for text in _chosen_cells(row)] for row in table.chosen]
    title = f"{table.title.partition(':')[0]}: {_CHOSEN_TITLE.lower()}"
    return Table(title, columns(*_CHOSEN_HEAD), rows, _CHOSEN_NOTES)


_CHOSEN_TITLE = "Steps chosen at each maximum (section 4.5.2)"
_CHOSEN_HEAD = ("row", "at most", "chosen", "steps", "of all steps", "points more", "trajectories")
_CHOSEN_NOTES = ["A trajectory of n steps gives max(1, floor(m n)) at most, so short ones may give more than m."]


def _chosen_cells(row: ChosenRow) -> list[str]:
    counted, failed = row.steps, f", {row.steps.failed} failed" if row.steps.failed else ""
    counts = f"{counted.allowed:.0%}", f"{counted.chosen:,}", f"{counted.steps:,}", f"{row.share:.1%}"
    return [row.row, *counts, _number(row.gain, "+.1f"), f"{counted.trajectories:,}{failed}"]


_COST_HEAD = (
    "row",
    "steps with loss",
    "loss tokens",
    "of all steps'",
    "tokens",
    "FLOPs",
    "of all steps'",
    "device-hours",
)


def _cost_cells(cost: Cost) -> list[str]:
    mean = cost.mean
    hours = None if mean.device_seconds is None else mean.device_seconds / 3600
    return [
        cost.row,
        *(_number(mean.step_fraction, ".0%"), _number(mean.loss_tokens, ","), _number(cost.loss_share, ".0%")),
        *(_number(mean.trajectory_tokens, ","), _number(mean.flops, ".3g"), _number(cost.flops_share, ".0%")),
        f"{_number(hours, '.3g')} {mean.device or ''}".strip(),
    ]


def _number(value: float | None, form: str) -> str:
    """A number in Python's format; nothing where there is none."""
    return "" if value is None else format(value, form)


def _heading(column: str) -> str:
    return _HEADINGS.get(column, column)


def _lines(row: PaperTableRow) -> Iterator[list[str]]:
    """The printed figures; ours and the differences below, where there are any."""
    printed = any(cell.paper is not None for cell in row.cells)
    if printed:
        yield [row.label, "paper", *(_paper(cell) for cell in row.cells)]
    yield ["" if printed else row.label, "ours", *(_ours(cell) for cell in row.cells)]
    if any(cell.difference is not None for cell in row.cells):
        yield ["", "difference", *(_number(cell.difference, "+.1f") for cell in row.cells)]


def _paper(cell: PaperCell) -> str:
    return _number(cell.paper, ".2f") + " q" * (cell.paper is not None and cell.quoted)


def _marks(cell: PaperCell, found: Figure) -> str:
    return "§" * bool(cell.other_tasks) + "‡" * bool(found.of)


def _ours(cell: PaperCell) -> str:
    found = cell.ours
    if found is None:
        return ""
    marks = _marks(cell, found) + FLAG * found.flagged + OVERFLOW * found.overflowed
    spread = _number(found.spread, ".1f")
    words = [f"{found.value:.1f}{marks}", *([f"± {spread}"] if spread else []), f"[{found.low:.0f}–{found.high:.0f}]"]
    words += [f"n={found.n}", *([f"in {cell.env}"] if cell.env else [])]
    return " ".join(words) + (f", {found.errors} excluded" if found.errors else "")


def _page_cell(cell: PaperCell) -> Cell:
    paper = [f"paper {_paper(cell)}"] if cell.paper is not None else []
    found = cell.ours
    if found is None:
        return Cell("", "".join(paper))
    notes = [f"[{found.low:.0f}–{found.high:.0f}]", *([] if found.spread is None else [f"± {found.spread:.1f}"])]
    notes += [f"in {cell.env}"] if cell.env else []
    notes += [cell.other_tasks] if cell.other_tasks else []
    notes += paper + ([] if cell.difference is None else [f"({cell.difference:+.1f})"])
    text = f"{found.value:.1f}{_marks(cell, found)}"
    return Cell(text, " ".join(notes), flagged=found.flagged, overflowed=found.overflowed)


def _remarks(table: PaperTable, escape: Any, bullet: str = "- ") -> list[str]:
    claims = [f"{row.named}, {claim.words}." for row in table.rows for claim in row.claims]
    return [f"{bullet}{escape(line)}" for line in (*claims, *table.notes)]


def _flat(table: PaperTable) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        for cell in row.cells:
            yield {
                **{"table": table.name, "section": row.section, "row": row.label, "arm": row.arm or ""},
                **{"column": cell.column, "env": cell.env or "", "other_tasks": cell.other_tasks or ""},
                **{"paper": _number(cell.paper, ".2f"), "quoted": "yes" if cell.quoted else ""},
                "held_against": "" if cell.ours is None else _number(cell.fair, ".2f"),
                "difference": _number(cell.difference, ".2f"),
                **({} if cell.ours is None else _our_fields(cell.ours)),
            }


def _our_fields(found: Figure) -> dict[str, Any]:
    return {
        "ours": f"{found.value:.2f}",
        **{name: _number(getattr(found, name), ".2f") for name in ("low", "high", "spread")},
        **{name: getattr(found, name) for name in ("n", "seeds", "errors")},
        **{"flagged": "yes" if found.flagged else "", "of": " ".join(found.of)},
    }


def _md_table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> list[str]:
    """Lines of a table whose first columns are of words, the others of numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def _md(text: str) -> str:
    """Text that Markdown shows as it is, in one line: no markup, no HTML, no cell borders."""
    plain = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|])", r"\\\1", plain)


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"
