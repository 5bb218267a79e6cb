"""Sheet: the actions of AgentGym's environment over one episode's own spreadsheet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from atlas_ray.environments.builtin.tools import grid
from atlas_ray.environments.builtin.tools.core import FINISH, Tool, Toolbox, ToolError, as_number
from atlas_ray.environments.builtin.tools.grid import (
    MAX_CELL,
    MAX_COLUMNS,
    MAX_ROWS,
    Cell,
    State,
    as_text,
    cell_at,
    label,
    span,
    table,
)


def _open(state: State, name: str) -> Any:
    if name not in state.sheets:
        raise ToolError("There is no sheet of this name.")
    state.current = name
    return f"You have opened {name}."


def _delete_sheet(state: State, name: str) -> Any:
    if name not in state.sheets:
        raise ToolError("There is no sheet of this name.")
    del state.sheets[name]
    state.current = None if state.current == name else state.current
    return f"Deleted {name}."


def _freeze(state: State, dimension: str, num: int) -> Any:
    if dimension not in ("rows", "columns") or not 0 <= num <= MAX_COLUMNS:
        raise ToolError("The dimension must be 'rows' or 'columns', and num a small number.")
    state.open.frozen[dimension] = num
    return f"Froze {num} {dimension}."


def _annotation(_: State, row: int, col: int) -> Any:
    if not (1 <= row <= MAX_ROWS and 1 <= col <= MAX_COLUMNS):
        raise ToolError("Rows and columns count from 1.")
    return label(row - 1, col - 1)


def _insert_rows(state: State, values_list: list[Any], row_idx: int) -> Any:
    sheet, rows = state.open, table(values_list)
    if not 1 <= row_idx <= len(sheet.cells) + 1:
        raise ToolError("There is no such row to insert at.")
    sheet.grow(len(sheet.cells), max(len(row) for row in rows))
    if len(sheet.cells) + len(rows) > MAX_ROWS:
        raise ToolError(f"A sheet holds at most {MAX_ROWS} rows.")
    sheet.cells[row_idx - 1 : row_idx - 1] = [[Cell(value) for value in row] for row in rows]
    sheet.grow(len(sheet.cells), 0)
    return sheet.values


def _insert_columns(state: State, values_list: list[Any], col_idx: int) -> Any:
    sheet, columns = state.open, table(values_list)
    width = max((len(row) for row in sheet.cells), default=0)
    if not 1 <= col_idx <= width + 1 or width + len(columns) > MAX_COLUMNS:
        raise ToolError("There is no such column to insert at.")
    sheet.grow(max(len(column) for column in columns), 0)
    for r, row in enumerate(sheet.cells):
        row[col_idx - 1 : col_idx - 1] = [Cell(column[r] if r < len(column) else "") for column in columns]
    return sheet.values


def _delete(state: State, dimension: str, index_list: list[Any]) -> Any:
    sheet = state.open
    indices = {int(n) for n in map(as_number, index_list) if n is not None and n >= 1}
    if dimension not in ("row", "col") or len(indices) != len(index_list):
        raise ToolError("The dimension must be 'row' or 'col', and index_list a list of indices from 1.")
    if dimension == "row":
        sheet.cells = [row for n, row in enumerate(sheet.cells, 1) if n not in indices]
    else:
        sheet.cells = [[cell for n, cell in enumerate(row, 1) if n not in indices] for row in sheet.cells]
    return sheet.values


def _set(state: State, at: str, value: Any) -> None:
    row, column = grid.position(at)
    sheet = state.open
    text = as_text(value)
    sheet.grow(row + 1, column + 1)
    sheet.cells[row][column].value = text


def _update_cell(state: State, position: str, value: Any) -> Any:
    _set(state, position, value)
    return state.open.values


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
    state: State,
    operator: str,
    start_position: str | None = None,
    end_position: str | None = None,
    position_list: list[Any] | None = None,
) -> str:
    sheet = state.open
    if operator not in _OPERATORS:
        raise ToolError(f"The operator must be one of {list(_OPERATORS)}.")
    if position_list is not None:
        cells = [grid.position(one) for one in position_list]
    elif start_position is not None and end_position is not None:
        cells = [cell for row in span(start_position, end_position) for cell in row]
    else:
        raise ToolError("Give either position_list, or start_position and end_position.")
    numbers = [number for at in cells if (number := as_number(cell_at(sheet, *at).value)) is not None]
    if not numbers:
        raise ToolError("There is no number in these cells.")
    result = _OPERATORS[operator](numbers)
    if abs(result) >= 1e15:
        raise ToolError("The result is too large.")
    return as_text(result)


def _update_by_formula(state: State, operator: str, result_position: str, **cells: Any) -> Any:
    _set(state, result_position, _formula(state, operator, **cells))
    return state.open.values


def _update_range(state: State, start_position: str, end_position: str, values_list: list[Any]) -> Any:
    sheet, rows, cells = state.open, table(values_list), span(start_position, end_position)
    if len(rows) != len(cells) or any(len(row) != len(cells[0]) for row in rows):
        raise ToolError("values_list does not have the size of the range.")
    sheet.grow(cells[-1][-1][0] + 1, cells[-1][-1][1] + 1)
    for row, places in zip(rows, cells, strict=True):
        for value, (r, c) in zip(row, places, strict=True):
            sheet.cells[r][c].value = value
    return sheet.values


def _sort(state: State, col_num: int, order: str) -> Any:
    sheet = state.open
    if order not in ("asc", "des") or not 1 <= col_num <= MAX_COLUMNS:
        raise ToolError("col_num counts from 1, and the order must be 'asc' or 'des'.")

    def key(row: list[Cell]) -> tuple[bool, float, str]:
        value = row[col_num - 1].value if col_num <= len(row) else ""
        number = as_number(value)
        return (number is None, number or 0.0, value)

    sheet.cells[1:] = sorted(sheet.cells[1:], key=key, reverse=order == "des")
    return sheet.values


def _merge(state: State, start_position: str, end_position: str) -> Any:
    sheet, cells = state.open, [cell for row in span(start_position, end_position) for cell in row]
    sheet.grow(cells[-1][0] + 1, cells[-1][1] + 1)
    for row, column in cells[1:]:
        sheet.cells[row][column].value = ""
    sheet.merged.add(f"{label(*cells[0])}:{label(*cells[-1])}")
    return sheet.values


def _update_note(state: State, position: str, content: str) -> Any:
    sheet, (row, column) = state.open, grid.position(position)
    if len(content) > MAX_CELL:
        raise ToolError(f"A note holds at most {MAX_CELL} characters.")
    sheet.grow(row + 1, column + 1)
    sheet.cells[row][column].note = content
    return f"Updated the note of {label(row, column)}."


def _find(state: State, query: str, in_row: int | None = None, in_column: int | None = None) -> Any:
    return [
        label(r, c)
        for r, row in enumerate(state.open.values)
        for c, value in enumerate(row)
        if value == as_text(query) and in_row in (None, r + 1) and in_column in (None, c + 1)
    ]


def _note(state: State, position: str) -> Any:
    return cell_at(state.open, *grid.position(position)).note or "There is no note."


def _value(state: State, position: str) -> Any:
    return cell_at(state.open, *grid.position(position)).value


def _values(state: State, start_position: str, end_position: str) -> Any:
    return [[cell_at(state.open, *at).value for at in row] for row in span(start_position, end_position)]


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
    Tool("get_all_values", "all values", lambda state: state.open.values),
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
# AgentGym's lists no actions, and wants no answer at the end
_FINISH = replace(_BOX.tools[FINISH], optional=frozenset({"answer"}))
TOOLBOX = replace(_BOX, tools={tool.name: tool for tool in (*TOOLS, _FINISH)})
