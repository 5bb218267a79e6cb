"""A spreadsheet in memory: sheets of cells with values and notes, and positions such as B3.

Cells hold text; what looks like a number is a number to formulas and sorting. Nothing in a cell is ever evaluated.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_ray.environments.builtin.tools.core import ToolError, as_number

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
class State:
    """A spreadsheet: its sheets by name, and the name of the open one."""

    sheets: dict[str, Sheet]
    current: str | None = None

    def copy(self) -> State:
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


def span(start: str, end: str) -> list[list[tuple[int, int]]]:
    """The cells of a range, row by row.

    Raises:
        ToolError: If it is none, or beyond what a sheet holds.
    """
    (r1, c1), (r2, c2) = position(start), position(end)
    if r1 > r2 or c1 > c2 or r2 >= MAX_ROWS or c2 >= MAX_COLUMNS:
        raise ToolError("The start must be above and left of the end, and both within the sheet.")
    return [[(r, c) for c in range(c1, c2 + 1)] for r in range(r1, r2 + 1)]


def cell_at(sheet: Sheet, row: int, column: int) -> Cell:
    """A cell; an empty one beyond the sheet."""
    if row < len(sheet.cells) and column < len(sheet.cells[row]):
        return sheet.cells[row][column]
    return Cell()


def table(values: list[Any]) -> list[list[str]]:
    """A list of lists as text.

    Raises:
        ToolError: If it is no such list, or a value is none.
    """
    if not values or not all(isinstance(row, list) and row for row in values):
        raise ToolError("values_list must be a list of lists.")
    return [[as_text(value) for value in row] for row in values]


def judge_content(start: State, wanted: State) -> Callable[[State, Any], float]:
    """How much of the way from the start to the wanted spreadsheet has been made, in content."""
    goal, before = wanted.content, likeness(start.content, wanted.content)

    def judge(state: State, _: Any) -> float:
        return max(0.0, (likeness(state.content, goal) - before) / (1 - before)) if before < 1 else 0.0

    return judge
