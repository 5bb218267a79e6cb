"""Tables as data, and the terminal's rendering of them; the page renders the same data.

Flows in: `results.json` as a dict; flows out: `Table`s, one builder per table, and rich tables.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from atlas_ray.evaluation.intervals import OUTCOME_WORDS, limits, percent, points
from atlas_ray.evaluation.metrics import many_overflowed
from atlas_ray.report.verdict import GROUPS, ROLES
from atlas_ray.runs.progress import output

HELD = {"in": "held in", "out": "held out"}
FLAG = "†"
GROUP_WORDS = (
    "Arm: a model fine-tuned on the steps of one selector. Held in: environments that the arms were trained on; "
    "held out: those that they never saw."
)
OVERFLOW = "¶"
AVERAGE = "average"


@dataclass(frozen=True, slots=True)
class Column:
    """A column's title and the group that it stands in, if any."""

    title: str
    group: str = ""
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, a smaller note after it (its interval), marks, and a word on what it means."""

    text: str
    note: str = ""
    best: bool = False
    flagged: bool = False
    tone: str = ""
    overflowed: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells under columns; `strong` is the row that the table is about."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    strong: int | None = None

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Groups of neighbouring columns with their widths."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = column.group, found[-1][1] + 1
            else:
                found.append((column.group, 1))
        return found


def columns(*titles: str | tuple[str, str], words: int = 1) -> list[Column]:
    """Columns by title, or by group and title; the first `words` of them hold words, the others numbers."""
    pairs = [("", title) if isinstance(title, str) else title for title in titles]
    return [Column(title, group, "left" if i < words else "right") for i, (group, title) in enumerate(pairs)]


def success_table(results: Mapping[str, Any]) -> Table:
    """Success by arm and environment, held in and held out, with averages and what training took."""
    arms = results["arms"]
    found = [_by_column(arm) for arm in arms]
    keys = list(dict.fromkeys(key for cells in found for key in cells))
    keys.sort(key=lambda key: (list(HELD).index(key[0]), key[1] == AVERAGE))
    best = {key: _best(cells.get(key) for cells in found) for key in keys}
    rows = [
        [
            Cell(arm["name"]),
            *(_score(cells.get(key), best[key]) for key in keys),
            Cell(percent(arm["step_fraction"])),
            Cell(percent(arm["loss_token_fraction"])),
        ]
        for arm, cells in zip(arms, found, strict=True)
    ]
    notes = ["Success in per cent with its 95 % interval. Bold: the highest figure of a column, which is no claim."]
    if any(cell.flagged for row in rows for cell in row):
        notes.append(f"{FLAG} Too many episodes were excluded for reasons of infrastructure, or are missing.")
    notes += overflow_notes(
        (arm["name"], cell["env"], cell.get("overflowed")) for arm in arms for cell in arm["environments"]
    )
    notes += [*_notes_on_names(results), *context_notes({arm["name"]: arm["context"] for arm in arms})]
    notes += [
        f"{name} could not be made, loaded or played, so it has no figures: {why}"
        for name, why in results["failures"].items()
    ]
    names = [arm["name"] for arm in arms]
    critical = results["verdict"]["critical"]
    return Table(
        "Every arm on the test tasks",
        columns(
            "arm",
            *((HELD[held], marked(name, results["other_tasks"])) for held, name in keys),
            *(("loss, %", part) for part in ("steps", "tokens")),
        ),
        rows,
        notes,
        names.index(critical) if critical in names else None,
    )


def context_notes(contexts: Mapping[str, int | None]) -> list[str]:
    """What conversations could have in tokens, by model, where it is known; those that could have less by name."""
    known = {name: context for name, context in contexts.items() if context is not None}
    if not known:
        return []
    most = max(known.values())
    less = [f"{name} {context:,}" for name, context in known.items() if context < most]
    return [f"Context: {most:,} tokens" + (f"; less, for they were made for less: {', '.join(less)}." if less else ".")]


def _notes_on_names(results: Mapping[str, Any]) -> list[str]:
    """On environments and models that are not what their names say."""
    weights = {arm["name"]: arm["weights"] for arm in results["arms"]}
    return [*task_notes(results["other_tasks"]), *weights_notes(weights)]


def weights_notes(weights: Mapping[str, str | None]) -> list[str]:
    """Which models, by name, start from weights that are not those of their name, and what these are."""
    by_words: dict[str, list[str]] = {}
    for name, words in weights.items():
        if words is not None:
            by_words.setdefault(words, []).append(name)
    return [f"Weights: {', '.join(names)} start from {words}." for words, names in by_words.items()]


def overflow_notes(cells: Iterable[tuple[str, str, float | None]]) -> list[str]:
    """A sentence on the cells that are marked, if any: (model, environment, share of overflowed episodes)."""
    marked = [f"{name} in {env} {percent(share, 0)} %" for name, env, share in cells if many_overflowed(share)]
    if not marked:
        return []
    return [
        f"{OVERFLOW} Share of episodes that ended because the conversation no longer fitted the model's context: "
        f"{', '.join(marked)}."
    ]


def verdict_table(results: Mapping[str, Any]) -> Table:
    """Every selector's difference from what it is held against, in points, by environment and group."""
    statements = results["verdict"]["statements"]
    roles = [role for role in ROLES if any(s["role"] == role for s in statements)]
    places = dict.fromkeys((s["arm"], s["held"], s["scope"]) for s in statements)
    found = {(s["arm"], s["scope"], s["role"]): s for s in statements}
    rows = [
        [
            Cell(arm),
            Cell(marked(scope, results["other_tasks"]), HELD[held] if scope != GROUPS[held] else ""),
            *(_difference(found.get((arm, scope, role))) for role in roles),
        ]
        for arm, held, scope in places
    ]
    heads = columns("arm", "environment", *(("against", ROLES[role]) for role in roles), words=2)
    pairs = dict.fromkeys((s["arm"], s["against"]) for s in statements if s["role"] == "random")
    notes = [f"Random steps: {', '.join(f'{theirs} for {ours}' for ours, theirs in pairs)}."] if pairs else []
    notes += [results["verdict"]["method"], *_notes_on_names(results)]
    return Table("What each selector gains, in points of success", heads, rows, notes)


def _difference(statement: Mapping[str, Any] | None) -> Cell:
    if statement is None:
        return Cell(percent(None))
    low, high = statement["ci95"]
    words = OUTCOME_WORDS[statement["outcome"]]
    return Cell(points(statement["difference"]), f"[{points(low)}, {points(high)}]", tone=words)


def detail_table(results: Mapping[str, Any]) -> Table:
    """Every cell's counts: episodes, tasks, success, reward and progress, and what was excluded and why."""
    rows = []
    for arm in results["arms"]:
        for cell in arm["environments"]:
            excluded = ", ".join(f"{n} {cause}" for cause, n in sorted(cell["excluded"].items()) if n)
            rows.append(
                [
                    Cell(arm["name"]),
                    Cell(marked(cell["env"], results["other_tasks"])),
                    Cell(str(cell["n"])),
                    Cell(str(cell["distinct_tasks"])),
                    _score(cell, None),
                    Cell(_figure(cell["reward"]), _limits(cell["reward_ci95"])),
                    Cell(_figure(cell["progress"])),
                    Cell(percent(cell.get("overflowed"), 0)),
                    Cell(excluded or ("none" if cell["n"] or cell["flagged"] else "failed")),
                ]
            )
    titles = ("arm", "environment", "episodes", "tasks", "success", "reward", "progress", "context full, %")
    heads = [*columns(*titles, words=2), Column("excluded", align="left")]
    return Table("Every cell", heads, rows, _notes_on_names(results))


def selector_table(results: Mapping[str, Any]) -> Table:
    """How well each selector finds the steps that the expert marked."""
    rows = []
    critical = results["verdict"]["critical"]
    for row in results["selectors"]:
        failed = f"{row['errors']} failed" if row["errors"] else ""
        rows.append(
            [
                Cell(row["name"]),
                *(Cell(_figure(row[key])) for key in ("precision", "recall", "f1")),
                Cell(percent(row["requested"])),
                Cell(percent(row["actual"])),
                Cell(percent(row["overlap"].get(critical))),
                Cell(str(row["trajectories"]), failed),
            ]
        )
    names = [row["name"] for row in results["selectors"]]
    return Table(
        "Selectors against the expert's own marks",
        columns(
            *("selector", "precision", "recall", "F1"),
            *(("steps, %", "asked"), ("steps, %", "chosen"), ("as, %", critical)),
            "trajectories",
        ),
        rows,
        [
            "Gold is the expert's uncut annotation; a budget below its length caps recall.",
            f"As {critical}: Jaccard index of the chosen steps with its own.",
        ],
        names.index(critical) if critical in names else None,
    )


def overlap_table(results: Mapping[str, Any]) -> Table:
    """Test tasks that were trained on, if any."""
    keys = ("train_tasks", "test_tasks", "shared_ids", "shared_first_observations", "distinct_first_observations")
    seen = "test tasks seen in training"
    heads = columns(
        *("environment", ("tasks", "train"), ("tasks", "test"), (seen, "by id"), (seen, "by first observation")),
        "distinct first observations of test tasks",
    )
    rows = [[Cell(row["env"]), *(Cell(str(row[key])) for key in keys)] for row in results["checks"]]
    note = (
        "Different tasks may open with the same words; where the test tasks have few distinct first observations, "
        "only ids can tell."
    )
    return Table("Training and test tasks", heads, rows, [note])


def replay_table(results: Mapping[str, Any]) -> Table:
    """How many of the starts that values were estimated from an environment repeats as recorded."""
    rows = [
        [
            Cell(row["selector"]),
            Cell(row["env"]),
            Cell(str(sum(row["replays"].values()))),
            *(Cell(str(row["replays"].get(kind, 0))) for kind in ("exact", "near", "differs")),
            Cell(percent(row["share"])),
        ]
        for row in results.get("replays", ())
    ]
    titles = ("selector", "environment", "starts", "exactly", "within tolerance", "not at all", "replay, %")
    note = "Rollouts begin where the expert's recorded steps lead: none can where those are answered otherwise."
    return Table("Starts that replay", columns(*titles, words=2), rows, [note])


def print_tables(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints what the arms are, their figures, the selectors and the headline."""
    console = console or output
    for words in (*(f"{arm['name']}: {arm['words']}" for arm in results["arms"] if arm["words"]), GROUP_WORDS):
        console.print(Text(words, "dim"))
    console.print()
    print_table(*(t for t in (success_table(results), selector_table(results)) if t.rows), console=console)
    for sentence in results["verdict"]["headline"]:
        console.print(Text(sentence, "bold"))
    for sentence in results["verdict"]["caveats"]:
        console.print(Text(sentence, "dim"))


def print_table(*tables: Table, console: Console | None = None) -> None:
    """Prints tables with their notes under them."""
    console = console or output
    for table in tables:
        wide = _width(table) > console.width and len(table.columns) > len(table.rows) + 1
        console.print(
            to_rich(turned(table) if wide else table),
            *(Text(note, "dim") for note in table.notes),
            sep="\n",
            end="\n\n",
        )


def turned(table: Table) -> Table:
    """The same with a column a row, for where there are many columns."""
    rows = [
        [Cell(column.title, column.group), *(row[i] for row in table.rows)]
        for i, column in enumerate(table.columns[1:], 1)
    ]
    return Table(table.title, columns("", *(row[0].text for row in table.rows)), rows, table.notes)


def _width(table: Table) -> int:
    """Characters of a line where none is folded."""
    found = 0
    for column, *cells in zip(table.columns, *table.rows, strict=True):
        found += 1 + max(map(len, (column.group, column.title, *(t for cell in cells for t in (cell.text, cell.note)))))
    return found


def to_rich(table: Table) -> RichTable:
    """A table for the terminal: groups stand above each of their columns, best cells are bold."""
    shown = RichTable(
        title=Text(table.title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,
        show_edge=False,
    )
    grouped = any(column.group for column in table.columns)
    for i, column in enumerate(table.columns):
        heading = Text(f"{column.group}\n{column.title}" if grouped else column.title)
        shown.add_column(heading, justify=column.align, no_wrap=i == 0, overflow="fold")
    for i, row in enumerate(table.rows):
        shown.add_row(*map(_rich_cell, row), style="cyan" if i == table.strong else None)
    return shown


def _rich_cell(cell: Cell) -> Text:
    text = Text(cell.text, "bold" if cell.best else "")
    text.append(FLAG * cell.flagged + OVERFLOW * cell.overflowed)
    if cell.note:
        text.append(f"\n{cell.note}", "dim")
    return text


def marked(env: str, other_tasks: Container[str]) -> str:
    """An environment's name, marked where its tasks are not the paper's."""
    return f"{env} §" if env in other_tasks else env


def task_notes(other_tasks: Mapping[str, str]) -> list[str]:
    """Whose tasks were played in environments that are marked: sentences from their names, and the words on each."""
    by_words: dict[str, list[str]] = {}
    for env, words in other_tasks.items():
        by_words.setdefault(words, []).append(env)
    return [f"§ {', '.join(envs)}: {words}." for words, envs in by_words.items()]


_Key = tuple[str, str]


def _by_column(arm: Mapping[str, Any]) -> dict[_Key, Mapping[str, Any]]:
    """An arm's cells by (held, title): environments, then their average, held in before held out."""
    found: dict[_Key, Mapping[str, Any]] = {}
    for held in HELD:
        found.update(((held, cell["env"]), cell) for cell in arm["environments"] if cell["held"] == held)
        found.update(((held, AVERAGE), mean) for mean in arm["averages"] if mean["held"] == held)
    return found


def _best(cells: Iterable[Mapping[str, Any] | None]) -> float | None:
    """The highest success, or None where there is nothing to compare."""
    known = [cell["success"] for cell in cells if cell and cell["success"] is not None]
    return max(known) if len(set(known)) > 1 else None


def _score(cell: Mapping[str, Any] | None, best: float | None) -> Cell:
    if cell is None or cell["success"] is None:
        return Cell(percent(None), flagged=bool(cell and cell.get("flagged")))
    success = cell["success"]
    marks = {"flagged": cell.get("flagged", False), "overflowed": many_overflowed(cell.get("overflowed"))}
    return Cell(percent(success), _limits(cell["ci95"]), success == best, **marks)


def _limits(pair: Sequence[float] | None) -> str:
    return f"[{limits(pair)}]" if pair else ""


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
