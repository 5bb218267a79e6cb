"""Sheet's jobs, the spreadsheet that each should leave, and their solutions by the actions.

The reward is the share of the change that has been made: 0 for the sheet as it was, 1 for the one wanted.
"""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from atlas_ray.environments.builtin.tools import sheet
from atlas_ray.environments.builtin.tools.grid import Sheet, State, as_text, judge_content, label
from atlas_ray.environments.builtin.tools.simulator import (
    ACT,
    SEEN,
    Call,
    Solution,
    ToolTask,
    collect,
    finish,
    tool_spec,
)

N_TEST, N_TRAIN = 100, 300

Rows = list[list[Any]]

_NAMES = "Ann Ben Cleo Dan Eva Finn Gus Hope Ian Joy Kai Lea Max Nora Otto Pia".split  # a copy each time
_PRODUCTS = "beef pork lamb duck salmon shrimp apple banana orange carrot cabbage spinach".split
_GROUPS = {"product": ("Category", ("Meat", "Fish", "Fruit", "Greens")), "student": ("Class", ("A", "B", "C"))}
_GROUPS["staff"] = ("Team", ("Sales", "Support", "Design"))
_NUMBERS = {
    "product": (("Price", 2, 40), ("Quantity", 5, 200), ("Sold", 1, 90)),
    "student": (("Math", 40, 100), ("English", 40, 100), ("Physics", 40, 100)),
    "staff": (("Hours", 20, 45), ("Bonus", 100, 900), ("Projects", 1, 20)),
}


@dataclass(frozen=True)
class Page:
    """A sheet to work on: its name and its rows, the header first; columns 3 to 5 hold distinct numbers."""

    name: str
    kind: str
    rows: Rows

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        return self.rows[0]

    @property
    def body(self) -> Rows:
        """The rows below the header."""
        return self.rows[1:]


def _page(rng: random.Random) -> Page:
    kind = rng.choice(sorted(_NUMBERS))
    group, groups = _GROUPS[kind]
    names = rng.sample(_PRODUCTS() if kind == "product" else _NAMES(), rng.randint(4, 6))
    columns = [rng.sample(range(low, high + 1), len(names)) for _, low, high in _NUMBERS[kind]]
    body = [[name, rng.choice(groups), *(column[n] for column in columns)] for n, name in enumerate(names)]
    header = ["Product" if kind == "product" else "Name", group, *(name for name, _, _ in _NUMBERS[kind])]
    return Page(f"Sheet{rng.randint(1, 99)}", kind, [header, *body])


def _look(page: Page) -> Generator[Call, Any, list[list[str]]]:
    yield Call("open_sheet", {"name": page.name}, f"open {page.name}")
    values: list[list[str]] = yield Call("get_all_values", {}, "look at all values")
    return values


def _do(tool: str, given: dict[str, Any], why: str, *wrong: dict[str, Any]) -> Call:
    """A decisive change; `wrong` are changes to its input that a novice makes."""
    return Call(tool, given, why, ACT if wrong else None, tuple(given | part for part in wrong))


_DONE = finish("done", "report that it is done")
Change = Callable[[State], object]


@dataclass(frozen=True)
class Job:
    """What is asked for: the change that the judge expects, the solution, and how the spreadsheet starts otherwise."""

    goal: str
    change: Change
    solve: Callable[[], Solution]
    prepare: Change = lambda state: None


def _set_rows(page: Page, rows: Rows) -> Change:
    return lambda state: state.sheets.update({page.name: Sheet.of(rows)})


def _sort_and_cut(rng: random.Random, page: Page) -> Job:
    column, order = rng.randint(2, 4), rng.choice(["asc", "des"])
    keep = rng.randint(2, len(page.body) - 1)
    wanted = sorted(page.body, key=lambda row: row[column], reverse=order == "des")[:keep]
    words = "ascending" if order == "asc" else "descending"

    def solve() -> Solution:
        values = yield from _look(page)
        number = values[0].index(page.header[column]) + 1
        given = {"col_num": number, "order": order}
        other = {"order": "des" if order == "asc" else "asc"}
        yield _do("sort_sheet_by_col", given, f"sort by column {number}, {words}", {"col_num": number - 1}, other)
        rows = list(range(keep + 2, len(values) + 1))
        why = f"delete the rows {rows}, which come after the first {keep}"
        late = {"index_list": rows[1:] or [rows[0] - 1]}
        yield _do("delete_batch_data", {"dimension": "row", "index_list": rows}, why, late)
        yield _DONE

    goal = f'In "{page.name}", sort the rows by {page.header[column]} in {words} order and keep only the first {keep} '
    return Job(goal + "below the header.", _set_rows(page, [page.header, *wanted]), solve)


def _totals(rng: random.Random, page: Page) -> Job:
    operator, title = rng.choice([("SUM", "Total"), ("AVERAGE", "Average"), ("MAX", "Best")])
    first = page.header[2]
    combine: Callable[..., float] = max if operator == "MAX" else sum if operator == "SUM" else statistics.fmean
    wanted = [[*page.header, title], *([*row, round(combine(row[2:]), 2)] for row in page.body)]

    def solve() -> Solution:
        values = yield from _look(page)
        yield _do("update_cell", {"position": "F1", "value": title}, f"write the header {title} into F1")
        for r in range(1, len(values)):
            given = {"operator": operator, "start_position": label(r, 2), "end_position": label(r, 4)}
            given["result_position"] = label(r, 5)
            wrong = {"end_position": label(r, 3)}, {"operator": "COUNT"}
            why = f"compute the {operator} of row {r + 1} into {label(r, 5)}"
            yield _do("update_cell_by_formula", given, why, *(wrong if r == 1 or r == len(values) - 1 else ()))
        yield _DONE

    goal = f'In "{page.name}", add the column {title} after the last one, with the {operator} of {first} to '
    return Job(f"{goal}{page.header[4]} of {page.body[0][0]} and every other row.", _set_rows(page, wanted), solve)


def _delete_group(rng: random.Random, page: Page) -> Job | None:
    group = rng.choice(page.body)[1]
    kept = [row for row in page.body if row[1] != group]
    if not kept:
        return None

    def solve() -> Solution:
        yield Call("open_sheet", {"name": page.name}, f"open {page.name}")
        given = {"query": group, "in_column": 2}
        wrong = (given | {"in_column": 1}, given | {"query": group.lower()})
        cells = yield Call("filter_cells", given, f"find the rows with {group} in column B", SEEN, wrong)
        rows = [int(cell[1:]) for cell in cells]
        early = {"index_list": [row - 1 for row in rows]}
        why = f"delete the rows {rows} of {', '.join(cells)}"
        yield _do("delete_batch_data", {"dimension": "row", "index_list": rows}, why, early)
        yield _DONE

    goal = f'In "{page.name}", delete all rows whose {page.header[1]} is {group}.'
    return Job(goal, _set_rows(page, [page.header, *kept]), solve)


def _rank(rng: random.Random, page: Page) -> Job:
    column = rng.randint(2, 4)
    ordered = sorted(page.body, key=lambda row: row[column], reverse=True)
    title = f"{page.header[column]}_Rank"
    table = [[*page.header, title], *([*row, n] for n, row in enumerate(ordered, 1))]
    moved = [[*row[: column + 1], row[-1], *row[column + 1 : -1]] for row in table]

    def solve() -> Solution:
        values = yield from _look(page)
        number = values[0].index(page.header[column]) + 1
        given = {"col_num": number, "order": "des"}
        yield _do("sort_sheet_by_col", given, f"sort by column {number}, descending", {"order": "asc"})
        ranks = [title, *range(1, len(values))]
        given = {"values_list": [ranks], "col_idx": number + 1}
        yield _do("insert_cols", given, f"insert the ranks as column {number + 1}", {"col_idx": number})
        yield _DONE

    goal = f'In "{page.name}", sort by {page.header[column]} in descending order and insert the column {title} right '
    return Job(goal + f"after {page.header[column]}, with the ranks from 1.", _set_rows(page, moved), solve)


def _summary_row(rng: random.Random, page: Page) -> Job:
    operator, title = rng.choice([("SUM", "Total"), ("MAX", "Highest"), ("MIN", "Lowest")])
    combine: Callable[..., int] = max if operator == "MAX" else min if operator == "MIN" else sum
    numbers = [combine([row[c] for row in page.body]) for c in (2, 3, 4)]

    def solve() -> Solution:
        values = yield from _look(page)
        last = len(values) - 1
        found = []
        for c in (2, 3, 4):
            given = {"operator": operator, "start_position": label(1, c), "end_position": label(last, c)}
            short = (given | {"end_position": label(last - 1, c)}, given | {"operator": "COUNT"})
            why = f"compute the {operator} of {values[0][c]}"
            found.append((yield Call("get_value_by_formula", given, why, SEEN if c == 2 else None, short)))
        row = [title, "", *found]
        given = {"values_list": [row], "row_idx": len(values) + 1}  # type: ignore[dict-item]
        yield _do("insert_rows", given, f"insert {row} below the last row", {"row_idx": 2}, {"row_idx": len(values)})
        yield _DONE

    goal = f'In "{page.name}", add a row at the bottom whose first cell is {title} and which has the {operator} of '
    goal += f"{page.header[2]}, {page.header[3]} and {page.header[4]} below these columns."
    return Job(goal, _set_rows(page, [*page.rows, [title, "", *numbers]]), solve)


def _notes(rng: random.Random, page: Page) -> Job:
    chosen, column = sorted(rng.sample(range(1, len(page.rows)), 2)), rng.randint(2, 4)
    new = {row: rng.randint(210, 400) for row in chosen}
    title = page.header[column]

    def prepare(state: State) -> None:
        for row, value in new.items():
            state.sheets[page.name].cells[row][0].note = f"{title} is now {value}"

    def change(state: State) -> None:
        for row, value in new.items():
            state.sheets[page.name].cells[row][column].value = as_text(value)

    def solve() -> Solution:
        values = yield from _look(page)
        names = [row[0] for row in values]
        for n, row in enumerate(chosen):
            r = names.index(page.rows[row][0])
            note = yield Call("get_note", {"position": label(r, 0)}, f"read the note of {names[r]}")
            value = note.rsplit(maxsplit=1)[-1]
            given, why = {"position": label(r, column), "value": value}, f"set {title} of {names[r]} to {value}"
            other = column - 1 if column > 2 else column + 1
            wrong = {"position": label(r, other)}, {"value": values[r][column]}
            yield _do("update_cell", given, why, *(wrong if n == 0 else ()))
        yield _DONE

    names = " and ".join(page.rows[row][0] for row in chosen)
    goal = f'In "{page.name}", update the {title} of {names} as the notes on these cells of the first column say.'
    return Job(goal, change, solve, prepare)


def _empty_lines(rng: random.Random, page: Page) -> Job:
    row, column = rng.randint(2, len(page.rows) - 1), rng.randint(1, 4)
    gaps = [[*line[:column], "", *line[column:]] for line in page.rows]
    gaps.insert(row, [""] * 6)

    def solve() -> Solution:
        values = yield from _look(page)
        r = next(n for n, line in enumerate(values, 1) if not any(line))
        c = next(n for n in range(1, len(values[0]) + 1) if not any(line[n - 1] for line in values))
        given = {"dimension": "row", "index_list": [r]}
        yield _do("delete_batch_data", given, f"delete row {r}, which is empty", {"index_list": [r - 1]})
        given = {"dimension": "col", "index_list": [c]}
        yield _do("delete_batch_data", given, f"delete column {c}, which is empty", {"index_list": [c + 1]})
        yield _DONE

    goal = (
        f'The table in "{page.name}" from {page.header[0]} to {page.header[4]} has an empty row and an empty column. '
    )
    goal += f"Delete both, and leave the {len(page.body)} others as they are."
    return Job(goal, _set_rows(page, page.rows), solve, _set_rows(page, gaps))


def _sales(rng: random.Random, page: Page) -> Job:
    column, verb = rng.randint(2, 4), rng.choice(["add", "subtract"])
    parts = [rng.randint(1, 30) for _ in page.body]
    sign = 1 if verb == "add" else -1
    listed = rng.sample(list(zip([row[0] for row in page.body], parts, strict=True)), len(parts))
    wanted = [
        [*row[:column], row[column] + sign * part, *row[column + 1 :]]
        for row, part in zip(page.body, parts, strict=True)
    ]

    def solve() -> Solution:
        values = yield from _look(page)
        by_name = dict(listed)
        new = [[int(row[column]) + sign * by_name[row[0]]] for row in values[1:]]
        given = {"start_position": label(1, column), "end_position": label(len(new), column), "values_list": new}
        unsorted = [[int(row[column]) + sign * part] for row, (_, part) in zip(values[1:], listed, strict=True)]
        other = [[int(row[column]) - sign * by_name[row[0]]] for row in values[1:]]
        why = f"write the new values {[value for (value,) in new]} into column {label(0, column)[0]}"
        yield _do("update_range", given, why, {"values_list": unsorted}, {"values_list": other})
        yield _DONE

    preposition = "to" if sign == 1 else "from"
    goal = f'In "{page.name}", {verb} these numbers {preposition} the {page.header[column]} of each row: {listed}.'
    return Job(goal, _set_rows(page, [page.header, *wanted]), solve)


def _format(rng: random.Random, page: Page) -> Job:
    number, column = rng.randint(1, 3), rng.randint(2, 4)
    dimension = rng.choice(["rows", "columns"])
    best = max(range(len(page.body)), key=lambda n: page.body[n][column])
    text = rng.choice(["Well done", "Highest", "Check this"])

    def change(state: State) -> None:
        mine = state.sheets[page.name]
        mine.frozen[dimension] = number
        mine.cells[best + 1][0].note = text

    def solve() -> Solution:
        values = yield from _look(page)
        why = f"freeze {number} {dimension}"
        other = {"dimension": "rows" if dimension == "columns" else "columns"}
        yield _do("freeze_data", {"dimension": dimension, "num": number}, why, {"num": number + 1}, other)
        top = max(range(1, len(values)), key=lambda r: int(values[r][column]))
        why = f"note it on {values[top][0]} in {label(top, 0)}, which has the highest {page.header[column]}"
        off = {"position": label(top, column)}, {"position": label(top - 1, 0)}
        yield _do("update_note", {"position": label(top, 0), "content": text}, why, *off)
        yield _DONE

    goal = (
        f"In \"{page.name}\", freeze the first {number} {dimension} and put the note '{text}' on the first cell of the "
    )
    return Job(goal + f"row with the highest {page.header[column]}.", change, solve)


def _insert(rng: random.Random, page: Page) -> Job:
    column, order = rng.randint(2, 4), rng.choice(["asc", "des"])
    values_of = [rng.randint(210, 300) + n for n in range(3)]
    record = [rng.choice(["Zora", "Yann", "Vito"]) if page.kind != "product" else "quince", page.body[0][1], *values_of]
    wanted = sorted([*page.body, record], key=lambda row: row[column], reverse=order == "des")
    words = "ascending" if order == "asc" else "descending"

    def solve() -> Solution:
        values = yield from _look(page)
        given = {"values_list": [record], "row_idx": len(values) + 1}
        yield _do("insert_rows", given, f"insert the record as row {len(values) + 1}", {"row_idx": 1})
        number = values[0].index(page.header[column]) + 1
        given = {"col_num": number, "order": order}
        other = {"order": "des" if order == "asc" else "asc"}
        yield _do("sort_sheet_by_col", given, f"sort by column {number}, {words}", other, {"col_num": 1})
        yield _DONE

    goal = (
        f'In "{page.name}", add the record {record} and then sort the rows by {page.header[column]} in {words} order.'
    )
    return Job(goal, _set_rows(page, [page.header, *wanted]), solve)


def _tidy(rng: random.Random, page: Page) -> Job:
    column, old = rng.randint(2, 4), rng.choice(["Old", "Draft", "Backup", "Scratch"])
    operator = rng.choice(["AVERAGE", "SUM", "MIN"])
    column_values = [row[column] for row in page.body]
    found = {"AVERAGE": sum(column_values) / len(column_values), "SUM": sum(column_values), "MIN": min(column_values)}

    def change(state: State) -> None:
        del state.sheets[old]
        state.sheets[page.name].grow(len(page.rows), 8)
        state.sheets[page.name].cells[0][7].value = as_text(found[operator])

    def solve() -> Solution:
        values = yield from _look(page)
        last = len(values) - 1
        given = {"operator": operator, "start_position": label(1, column), "end_position": label(last, column)}
        given["result_position"] = "H1"
        wrong = {"end_position": label(last - 1, column)}, {"result_position": "G1"}
        yield _do("update_cell_by_formula", given, f"write the {operator} of {values[0][column]} into H1", *wrong)
        yield _do("del_sheet", {"name": old}, f"delete the sheet {old}", {"name": page.name})
        yield _DONE

    goal = f'Write the {operator} of {page.header[column]} of all {len(page.body)} rows of "{page.name}" into cell H1, '
    prepare = functools.partial(_add_sheet, old)
    return Job(goal + f'and delete the sheet "{old}".', change, solve, prepare)


def _add_sheet(name: str, state: State) -> None:
    state.sheets[name] = Sheet.of([["Notes"], ["to be deleted"]])


KINDS = (
    *(_sort_and_cut, _totals, _delete_group, _rank, _summary_row, _notes, _empty_lines, _sales, _format, _insert),
    _tidy,
)


def _draw(rng: random.Random) -> ToolTask | None:
    kind, page = rng.choice(KINDS), _page(rng)
    job = kind(rng, page)
    if job is None:
        return None
    start = State({page.name: Sheet.of(page.rows)})
    job.prepare(start)
    wanted = start.copy()
    job.change(wanted)
    return ToolTask(kind.__name__, job.goal, start.copy, job.solve, judge_content(start, wanted))


@functools.cache
def tasks() -> tuple[ToolTask, ...]:
    """All tasks."""
    return collect(N_TEST + N_TRAIN, "sheet", _draw)


SPEC = tool_spec(
    *(sheet.TOOLBOX, "out", 15, tasks, 0.45),
    metric="reward",
    n_train=N_TRAIN,
    n_test=N_TEST,
    probe_actions=('open_sheet with Action Input: {"name": "Sheet1"}',),
)
