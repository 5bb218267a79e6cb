"""Large data is read in parts: cut between rows, streamed, and as a whole what one reader reads."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.trajectories import decoders
from atlas_ray.trajectories.decoders import decode
from atlas_ray.trajectories.item_ids import UniqueIds
from atlas_ray.trajectories.readers import Part, iter_part, list_parts
from atlas_ray.trajectories.rejected import Rejected
from atlas_ray.types import Trajectory
from tests.support.rows import AGENTTRAJ, SHAREGPT, read, write

in_small_pieces = pytest.mark.parametrize("size", [1, 7, 100_000])


def in_parts(config: DataConfig) -> tuple[list[Part], list[Trajectory], list[Rejected]]:
    """A data set as several workers read it: each part by itself, ids given in the order of the parts."""
    parts: list[Part] = pickle.loads(pickle.dumps(list_parts(config)))  # noqa: S301 (written here)
    read_backwards = [list(iter_part(part, config)) for part in reversed(parts)]
    ids, found, rejected = UniqueIds(config.limit), list[Trajectory](), list[Rejected]()
    for one in (row for rows in reversed(read_backwards) for row in rows):
        if isinstance(one, Rejected):
            rejected.append(one)
        elif (unique := ids.take(one.env, one.id)) is not None:
            found.append(replace(one, id=unique))
    return parts, found, rejected


@pytest.mark.parametrize("span", [1, 900, 2_000])
@pytest.mark.parametrize("last", ["", "\n", "\n\n"])
def test_lines_of_large_files_are_cut_into_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span: int, last: str
) -> None:
    rows = [json.dumps(AGENTTRAJ | {"item_id": f"maze_{number % 5}"}) for number in range(12)]
    (tmp_path / "a.jsonl").write_text("\ufeff" + "\n".join([*rows[:4], "{", "", *rows[4:], "nonsense"]) + last)
    whole = read(tmp_path)
    assert [r.row for r in whole[1]] == [5, 15]
    monkeypatch.setattr(decoders, "SPAN", span)
    monkeypatch.setattr(decoders, "_CHUNK", max(1, span // 3))
    parts, found, rejected = in_parts(DataConfig(path=str(tmp_path)))
    assert len(parts) > 2
    assert (found, rejected) == whole


def test_row_groups_of_large_tables_are_cut_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [AGENTTRAJ | {"item_id": item} for item in ("maze_1", "sqlgym_1", "maze_2", "maze_1", "sqlgym_2", "maze_3")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    whole = read(tmp_path, limit=3)
    assert ([t.id for t in whole[0]], [r.row for r in whole[1]]) == (
        ["maze/maze_1", "maze/maze_2", "maze/maze_1#2"],
        [2, 5],
    )
    monkeypatch.setattr(decoders, "SPAN", 1)
    parts, found, rejected = in_parts(DataConfig(path=str(tmp_path), limit=3))
    assert [(part.span.start, part.span.row) for part in parts] == [(0, 1), (1, 3), (2, 5)]
    assert (found, rejected) == whole


def test_the_format_of_a_file_is_told_from_its_first_rows_in_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jsonl", [AGENTTRAJ, SHAREGPT])
    monkeypatch.setattr(decoders, "SPAN", 1)
    monkeypatch.setattr(decoders, "_CHUNK", 100)
    parts, found, rejected = in_parts(DataConfig(path=str(tmp_path)))
    assert [part.format for part in parts] == ["agenttraj", "agenttraj"]
    assert (len(found), rejected[0].reason) == (1, "turn 2: an assistant turn has no loss flag; mark all or none")


def test_a_part_is_found_where_its_machine_keeps_the_data(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    write(tmp_path / "here" / "a.json", [AGENTTRAJ])
    config = DataConfig(path=str(tmp_path / "here"))
    (part,) = list_parts(config)
    assert len(list(iter_part(replace(part, root="/nowhere/on/this/machine"), config))) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@in_small_pieces
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JSON, max_size=5), indent=st.sampled_from([None, 0, 2]), plain=st.booleans())
def test_a_list_of_json_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, rows: list[Any], indent: int | None, plain: bool
) -> None:
    monkeypatch.setattr(decoders, "_CHUNK", size)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=plain) + "\n", "utf-8")
    assert [tuple(row) for row in decode(tmp_path / "a.json")] == [(n, row, None) for n, row in enumerate(rows, 1)]


@in_small_pieces
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(JSON, min_size=1, max_size=3),
    at=st.floats(0, 1),
    cut=st.integers(0, 3),
    put=st.sampled_from(["", "}", "]", ",", '"', "\\", "x", "1", "\n", ":", "\u00e9"]),
    indent=st.sampled_from([None, 1]),
)
def test_broken_json_is_named_by_its_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    rows: list[Any],
    at: float,
    cut: int,
    put: str,
    indent: int | None,
) -> None:
    """As the standard library names it when it reads the file at once."""
    text = json.dumps(rows, indent=indent)
    where = round(at * len(text))
    text = text[:where] + put + text[where + cut :]
    (tmp_path / "a.json").write_text(text, "utf-8", newline="")
    monkeypatch.setattr(decoders, "_CHUNK", size)
    said, expected = "", None
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        said = f"line {error.lineno}, column {error.colno}: {error.msg}"
    if said:
        with pytest.raises(UserError, match="is not valid JSON") as caught:
            list(decode(tmp_path / "a.json"))
        assert said in caught.value.what
    elif isinstance(expected, list):
        rows_read = zip(decode(tmp_path / "a.json"), expected, strict=True)
        assert all(row.value == value or "stands twice" in str(row.error) for row, value in rows_read)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "_CHUNK", 1000)
    held: list[int] = []

    class Watched(decoders._JsonText):
        def peek(self) -> str:
            held.append(len(self.window))
            return super().peek()

    monkeypatch.setattr(decoders, "_JsonText", Watched)
    write(tmp_path / "a.json", [{"number": n, "text": "x" * 100} for n in range(5_000)])
    assert sum(1 for _ in decode(tmp_path / "a.json")) == 5_000
    assert max(held) < 5_000
    write(tmp_path / "a.json", "[1, " + "2] " * 5_000)  # broken at once: the rest is not read to say so
    held.clear()
    with pytest.raises(UserError, match="line 1, column 8: Extra data"):
        list(decode(tmp_path / "a.json"))
    assert max(held) < 5_000
