"""Sheet: the actions of AgentGym's environment over one episode's own spreadsheet.

Cells hold text; what looks like a number is a number to formulas and sorting. Nothing in a cell is ever evaluated.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_ray.environments.tools.core import CHECK, Tool, Toolbox, ToolError, as_number

MAX_ROWS, MAX_COLUMNS, MAX_CELL = 200, 30, 200


@dataclass
class Cell:
    """A value and a note."""

    value: str = ""
    note: str = ""


@dataclass
class Sheet:
    """A grid whose rows are equally long, and its format."""

    cells: list[list[Cell]]
    frozen: dict[str, int] = field(default_factory=dict)
    merged: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, rows: Sequence[Sequence[object]]) -> Sheet:
        """A sheet of values."""
        return cls([[Cell(as_text(value)) for value in row] for row in rows])

    @property
    def values(self) -> list[list[str]]:
        """The values, row by row."""
        return [[cell.value for cell in row] for row in self.cells]

    def grow(self, rows: int, columns: int) -> None:
        """Adds empty rows and columns up to a size.

        Raises:
            ToolError: If that is more than a sheet holds.
        """
        if rows > MAX_ROWS or columns > MAX_COLUMNS:
            raise ToolError(f"A sheet holds at most {MAX_ROWS} rows and {MAX_COLUMNS} columns.")
        columns = max([columns, *(len(row) for row in self.cells)])
        self.cells += [[] for _ in range(rows - len(self.cells))]
        for row in self.cells:
            row += [Cell() for _ in range(columns - len(row))]


@dataclass
class Desk:
    """A spreadsheet: its sheets by name, and the name of the open one."""

    sheets: dict[str, Sheet]
    current: str | None = None

    def copy(self) -> Desk:
        """A spreadsheet of its own."""
        return copy.deepcopy(self)

    @property
    def open(self) -> Sheet:
        """The open sheet.

        Raises:
            ToolError: If none is open.
        """
        if self.current is None:
            raise ToolError("Please open a sheet before operating it.")
        return self.sheets[self.current]

    @property
    def content(self) -> set[tuple[object, ...]]:
        """Everything in it, item by item: values, notes, frozen parts, merged ranges."""
        found: set[tuple[object, ...]] = set()
        for name, sheet in self.sheets.items():
            found |= {(name, "frozen", *part) for part in sheet.frozen.items()}
            found |= {(name, "merged", part) for part in sheet.merged}
            for r, row in enumerate(sheet.cells):
                found |= {(name, r, c, cell.value) for c, cell in enumerate(row) if cell.value}
                found |= {(name, r, c, "note", cell.note) for c, cell in enumerate(row) if cell.note}
        return found


def likeness(one: set[tuple[object, ...]], other: set[tuple[object, ...]]) -> float:
    """The share of items that both contents have of those that either has."""
    return len(one & other) / max(1, len(one | other))


def as_text(value: object) -> str:
    """A value as a cell holds it: numbers without trailing zeros, to two decimals.

    Raises:
        ToolError: If it is no text or number, or too long.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ToolError("Values must be text or numbers.")
    number = as_number(value)
    if number is not None:
        number = round(number, 2)
        return str(int(number)) if number == int(number) else str(number)
    if len(str(value)) > MAX_CELL:
        raise ToolError(f"A cell holds at most {MAX_CELL} characters.")
    return str(value)


# --- positions ---

_POSITION = re.compile(r"([A-Z]{1,2})([1-9][0-9]{0,2})", re.ASCII)


def position(text: Any) -> tuple[int, int]:
    """Row and column from 0 of a cell such as B3.

    Raises:
        ToolError: If it is no such position.
    """
    found = _POSITION.fullmatch(text.strip().upper()) if isinstance(text, str) else None
    if found is None:
        raise ToolError("A position must be in A1 notation, e.g. B3.")
    column = 0
    for letter in found[1]:
        column = column * 26 + ord(letter) - 64
    return int(found[2]) - 1, column - 1


def label(row: int, column: int) -> str:
    """The A1 notation of a cell, from row and column from 0."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(65 + rest) + letters
    return f"{letters}{row + 1}"


def _range(start: str, end: str) -> list[list[tuple[int, int]]]:
    (r1, c1), (r2, c2) = position(start), position(end)
    if r1 > r2 or c1 > c2 or r2 >= MAX_ROWS or c2 >= MAX_COLUMNS:
        raise ToolError("The start must be above and left of the end, and both within the sheet.")
    return [[(r, c) for c in range(c1, c2 + 1)] for r in range(r1, r2 + 1)]


def _at(sheet: Sheet, row: int, column: int) -> Cell:
    if row < len(sheet.cells) and column < len(sheet.cells[row]):
        return sheet.cells[row][column]
    return Cell()


def _table(values: list[Any]) -> list[list[str]]:
    if not values or not all(isinstance(row, list) and row for row in values):
        raise ToolError("values_list must be a list of lists.")
    return [[as_text(value) for value in row] for row in values]


# --- the actions ---


def _open(desk: Desk, name: str) -> Any:
    if name not in desk.sheets:
        raise ToolError("There is no sheet of this name.")
    desk.current = name
    return f"You have opened {name}."


def _delete_sheet(desk: Desk, name: str) -> Any:
    if name not in desk.sheets:
        raise ToolError("There is no sheet of this name.")
    del desk.sheets[name]
    desk.current = None if desk.current == name else desk.current
    return f"Deleted {name}."


def _freeze(desk: Desk, dimension: str, num: int) -> Any:
    if dimension not in ("rows", "columns") or not 0 <= num <= MAX_COLUMNS:
        raise ToolError("The dimension must be 'rows' or 'columns', and num a small number.")
    desk.open.frozen[dimension] = num
    return f"Froze {num} {dimension}."


def _annotation(_: Desk, row: int, col: int) -> Any:
    if not (1 <= row <= MAX_ROWS and 1 <= col <= MAX_COLUMNS):
        raise ToolError("Rows and columns count from 1.")
    return label(row - 1, col - 1)


def _insert_rows(desk: Desk, values_list: list[Any], row_idx: int) -> Any:
    sheet, rows = desk.open, _table(values_list)
    if not 1 <= row_idx <= len(sheet.cells) + 1:
        raise ToolError("There is no such row to insert at.")
    sheet.grow(len(sheet.cells), max(len(row) for row in rows))
    if len(sheet.cells) + len(rows) > MAX_ROWS:
        raise ToolError(f"A sheet holds at most {MAX_ROWS} rows.")
    sheet.cells[row_idx - 1 : row_idx - 1] = [[Cell(value) for value in row] for row in rows]
    sheet.grow(len(sheet.cells), 0)
    return sheet.values


def _insert_columns(desk: Desk, values_list: list[Any], col_idx: int) -> Any:
    sheet, columns = desk.open, _table(values_list)
    width = max((len(row) for row in sheet.cells), default=0)
    if not 1 <= col_idx <= width + 1 or width + len(columns) > MAX_COLUMNS:
        raise ToolError("There is no such column to insert at.")
    sheet.grow(max(len(column) for column in columns), 0)
    for r, row in enumerate(sheet.cells):
        row[col_idx - 1 : col_idx - 1] = [Cell(column[r] if r < len(column) else "") for column in columns]
    return sheet.values


def _delete(desk: Desk, dimension: str, index_list: list[Any]) -> Any:
    sheet = desk.open
    indices = {int(n) for n in map(as_number, index_list) if n is not None and n >= 1}
    if dimension not in ("row", "col") or len(indices) != len(index_list):
        raise ToolError("The dimension must be 'row' or 'col', and index_list a list of indices from 1.")
    if dimension == "row":
        sheet.cells = [row for n, row in enumerate(sheet.cells, 1) if n not in indices]
    else:
        sheet.cells = [[cell for n, cell in enumerate(row, 1) if n not in indices] for row in sheet.cells]
    return sheet.values


def _set(desk: Desk, at: str, value: Any) -> None:
    row, column = position(at)
    sheet = desk.open
    text = as_text(value)
    sheet.grow(row + 1, column + 1)
    sheet.cells[row][column].value = text


def _update_cell(desk: Desk, position: str, value: Any) -> Any:
    _set(desk, position, value)
    return desk.open.values


_OPERATORS: dict[str, Callable[[list[float]], float]] = {
    "SUM": math.fsum,
    "AVERAGE": lambda numbers: math.fsum(numbers) / len(numbers),
    "COUNT": lambda numbers: float(len(numbers)),
    "MAX": max,
    "MIN": min,
    "MINUS": lambda numbers: numbers[0] - math.fsum(numbers[1:]),
    "PRODUCT": math.prod,
}


def _formula(
    desk: Desk,
    operator: str,
    start_position: str | None = None,
    end_position: str | None = None,
    position_list: list[Any] | None = None,
) -> str:
    sheet = desk.open
    if operator not in _OPERATORS:
        raise ToolError(f"The operator must be one of {list(_OPERATORS)}.")
    if position_list is not None:
        cells = [position(one) for one in position_list]
    elif start_position is not None and end_position is not None:
        cells = [cell for row in _range(start_position, end_position) for cell in row]
    else:
        raise ToolError("Give either position_list, or start_position and end_position.")
    numbers = [number for at in cells if (number := as_number(_at(sheet, *at).value)) is not None]
    if not numbers:
        raise ToolError("There is no number in these cells.")
    result = _OPERATORS[operator](numbers)
    if abs(result) >= 1e15:
        raise ToolError("The result is too large.")
    return as_text(result)


def _update_by_formula(desk: Desk, operator: str, result_position: str, **cells: Any) -> Any:
    _set(desk, result_position, _formula(desk, operator, **cells))
    return desk.open.values


def _update_range(desk: Desk, start_position: str, end_position: str, values_list: list[Any]) -> Any:
    sheet, rows, cells = desk.open, _table(values_list), _range(start_position, end_position)
    if len(rows) != len(cells) or any(len(row) != len(cells[0]) for row in rows):
        raise ToolError("values_list does not have the size of the range.")
    sheet.grow(cells[-1][-1][0] + 1, cells[-1][-1][1] + 1)
    for row, places in zip(rows, cells, strict=True):
        for value, (r, c) in zip(row, places, strict=True):
            sheet.cells[r][c].value = value
    return sheet.values


def _sort(desk: Desk, col_num: int, order: str) -> Any:
    sheet = desk.open
    if order not in ("asc", "des") or not 1 <= col_num <= MAX_COLUMNS:
        raise ToolError("col_num counts from 1, and the order must be 'asc' or 'des'.")

    def key(row: list[Cell]) -> tuple[bool, float, str]:
        value = row[col_num - 1].value if col_num <= len(row) else ""
        number = as_number(value)
        return (number is None, number or 0.0, value)

    sheet.cells[1:] = sorted(sheet.cells[1:], key=key, reverse=order == "des")
    return sheet.values


def _merge(desk: Desk, start_position: str, end_position: str) -> Any:
    sheet, cells = desk.open, [cell for row in _range(start_position, end_position) for cell in row]
    sheet.grow(cells[-1][0] + 1, cells[-1][1] + 1)
    for row, column in cells[1:]:
        sheet.cells[row][column].value = ""
    sheet.merged.add(f"{label(*cells[0])}:{label(*cells[-1])}")
    return sheet.values


def _update_note(desk: Desk, position: str, content: str) -> Any:
    sheet, (row, column) = desk.open, _place(position)
    if len(content) > MAX_CELL:
        raise ToolError(f"A note holds at most {MAX_CELL} characters.")
    sheet.grow(row + 1, column + 1)
    sheet.cells[row][column].note = content
    return f"Updated the note of {label(row, column)}."


_place = position  # the parameter of some actions has the same name


def _find(desk: Desk, query: str, in_row: int | None = None, in_column: int | None = None) -> Any:
    return [
        label(r, c)
        for r, row in enumerate(desk.open.values)
        for c, value in enumerate(row)
        if value == as_text(query) and in_row in (None, r + 1) and in_column in (None, c + 1)
    ]


def _note(desk: Desk, position: str) -> Any:
    return _at(desk.open, *_place(position)).note or "There is no note."


def _value(desk: Desk, position: str) -> Any:
    return _at(desk.open, *_place(position)).value


def _values(desk: Desk, start_position: str, end_position: str) -> Any:
    return [[_at(desk.open, *at).value for at in row] for row in _range(start_position, end_position)]


_SPAN: dict[str, Any] = {"start_position": "string", "end_position": "string"}
_CELLS: dict[str, Any] = {"operator": "string", **_SPAN, "position_list": "array"}
_EITHER = frozenset({*_SPAN, "position_list"})
_AT: dict[str, Any] = {"position": "string"}
_OF = "of a range or of position_list: operator SUM, AVERAGE, COUNT, MAX, MIN, MINUS or PRODUCT"

TOOLS = [
    Tool("open_sheet", "open a sheet", _open, {"name": "string"}),
    Tool("del_sheet", "delete a sheet", _delete_sheet, {"name": "string"}, changes=True),
    Tool("freeze_data", "freeze 'rows' or 'columns'", _freeze, {"dimension": "string", "num": "integer"}, changes=True),
    Tool("get_A1_annotation", "a cell in A1 notation", _annotation, {"row": "integer", "col": "integer"}),
    Tool(
        "insert_cols",
        "insert columns before a column",
        _insert_columns,
        {"values_list": "array", "col_idx": "integer"},
        changes=True,
    ),
    Tool(
        "insert_rows",
        "insert rows before a row",
        _insert_rows,
        {"values_list": "array", "row_idx": "integer"},
        changes=True,
    ),
    Tool(
        "delete_batch_data",
        "delete rows ('row') or columns ('col')",
        _delete,
        {"dimension": "string", "index_list": "array"},
        changes=True,
    ),
    Tool("update_cell", "set a cell", _update_cell, _AT | {"value": "value"}, changes=True),
    Tool(
        "update_cell_by_formula",
        f"set a cell to a formula {_OF}",
        _update_by_formula,
        _CELLS | {"result_position": "string"},
        _EITHER,
        changes=True,
    ),
    Tool("update_range", "set a range, row by row", _update_range, _SPAN | {"values_list": "array"}, changes=True),
    Tool(
        "sort_sheet_by_col",
        "sort the rows below the first by a column, 'asc' or 'des'",
        _sort,
        {"col_num": "integer", "order": "string"},
        changes=True,
    ),
    Tool("merge_cells", "merge a range into one cell", _merge, _SPAN, changes=True),
    Tool("update_note", "set a cell's note", _update_note, _AT | {"content": "string"}, changes=True),
    Tool("get_all_values", "all values", lambda desk: desk.open.values),
    Tool("get_range_values", "the values of a range", _values, _SPAN),
    Tool("get_cell_value", "a cell's value", _value, _AT),
    Tool("get_value_by_formula", f"a formula {_OF}", _formula, _CELLS, _EITHER),
    Tool(
        "filter_cells",
        "the cells that hold exactly a text",
        _find,
        {"query": "string", "in_row": "integer", "in_column": "integer"},
        frozenset({"in_row", "in_column"}),
    ),
    Tool("get_note", "a cell's note", _note, _AT),
]

_BOX = Toolbox.of(
    "sheet",
    "You edit a spreadsheet with the help of actions. Cells are named as B3; rows and columns count from 1, and the "
    "first row is the header. Open the sheet first.",
    20,
    TOOLS,
)
# AgentGym's has no action that lists the actions
TOOLBOX = Toolbox(_BOX.name, _BOX.about, {name: tool for name, tool in _BOX.tools.items() if name != CHECK}, 20)
