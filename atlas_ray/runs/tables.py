"""The tables on disk: a column for each field of a record, and the way from a record to a row and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import pyarrow as pa

from atlas_ray.types import Category, Episode, GoldStep, Message, Selection, StopReason, ToolCall, Trajectory, Usage

Record = TypeVar("Record")

_USAGE = {"prompt_tokens": "int64", "cached_tokens": "int64", "completion_tokens": "int64", "calls": "int64"}
_CALL = pa.struct({"name": "string", "arguments": "string", "id": "string"})
_MESSAGE = {"role": "string", "content": "string", "trainable": "bool"}
_MESSAGE |= {"thought": "string", "calls": pa.list_(_CALL), "call_id": "string"}
_ARROW: dict[Any, Any] = {
    bool: pa.bool_(),
    int: pa.int32(),
    float: pa.float64(),
    tuple[int, ...]: pa.list_(pa.int32()),
    tuple[float, ...]: pa.list_(pa.float64()),
    tuple[tuple[int, ...], ...]: pa.list_(pa.list_(pa.int32())),
    tuple[tuple[float, ...], ...]: pa.list_(pa.list_(pa.float64())),
    tuple[Message, ...]: pa.list_(pa.struct(_MESSAGE)),
    tuple[GoldStep, ...]: pa.list_(pa.struct({"step": "int32", "rank": "int32", "category": "string"})),
    Usage: pa.struct(_USAGE | {"cost": "float64"}),
}


@dataclass(frozen=True)
class TableSpec(Generic[Record]):
    """One kind of table: its name (also its folder), schema and conversions. The `id` column is the unit's key."""

    name: str
    schema: pa.Schema
    to_row: Callable[[Record], dict[str, Any]]
    from_row: Callable[[dict[str, Any]], Record]

    def to_table(self, records: Iterable[Record]) -> pa.Table:
        """Records to an Arrow table of this schema."""
        return pa.Table.from_pylist([self.to_row(r) for r in records], schema=self.schema)

    def from_table(self, table: pa.Table) -> list[Record]:
        """An Arrow table to records."""
        return [self.from_row(row) for row in table.to_pylist()]


def _messages(rows: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(**row | _since_tools(row)) for row in rows)


def _since_tools(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of a message that older tables do not have."""
    calls = tuple(ToolCall(**call) for call in row.get("calls") or ())
    return {"thought": row.get("thought") or "", "calls": calls, "call_id": row.get("call_id") or ""}


def _gold(rows: list[dict[str, Any]] | None) -> tuple[GoldStep, ...] | None:
    return None if rows is None else tuple(GoldStep(r["step"], r["rank"], Category(r["category"])) for r in rows)


def _gold_rows(gold: tuple[GoldStep, ...] | None) -> list[dict[str, Any]] | None:
    return None if gold is None else [{"step": g.step, "rank": g.rank, "category": str(g.category)} for g in gold]


def _fields(record: Any) -> dict[str, Any]:
    """A slotted dataclass as a row, without `asdict`'s deep copies."""
    return {name: getattr(record, name) for name in record.__slots__}


def _trajectory_row(t: Trajectory) -> dict[str, Any]:
    return _fields(t) | {"messages": [_message_row(m) for m in t.messages], "gold": _gold_rows(t.gold)}


def _message_row(message: Message) -> dict[str, Any]:
    return _fields(message) | {"calls": [_fields(call) for call in message.calls]}


def _trajectory(row: dict[str, Any]) -> Trajectory:
    return Trajectory(**row | {"messages": _messages(row["messages"]), "gold": _gold(row["gold"])})


def _selection_row(s: Selection) -> dict[str, Any]:
    return _fields(s) | {
        "id": s.id,
        "categories": _json({str(step): str(c) for step, c in sorted(s.categories.items())}),
        "excluded": _json(dict(sorted(s.excluded.items()))),
        "replays": _json(dict(sorted(s.replays.items()))),
        "usage": _fields(s.usage),
    }


def _json(counts: Mapping[str, Any]) -> str:
    return json.dumps(counts) if counts else "{}"


def _selection(row: dict[str, Any]) -> Selection:
    row = {k: v for k, v in row.items() if k != "id"}
    return Selection(
        **row
        | {
            "chosen": tuple(row["chosen"]),
            "scores": tuple(row["scores"]),
            "rewards": tuple(tuple(r) for r in row["rewards"]),
            "rounds": tuple(tuple(n) for n in row["rounds"]),
            "probed": tuple(row["probed"]),
            "rejoined": tuple(row["rejoined"]),
            "excluded": json.loads(row["excluded"]),
            "replays": json.loads(row.get("replays") or "{}"),
            "categories": {int(step): Category(c) for step, c in json.loads(row["categories"]).items()},
            "usage": Usage(**row["usage"]),
        }
    )


def _episode_row(e: Episode) -> dict[str, Any]:
    return asdict(e) | {"stop_reason": str(e.stop_reason), "gold": _gold_rows(e.gold)}


def _episode(row: dict[str, Any]) -> Episode:
    return Episode(
        **row
        | {
            "messages": _messages(row["messages"]),
            "stop_reason": StopReason(row["stop_reason"]),
            "usage": Usage(**row["usage"]),
            "gold": _gold(row["gold"]),
        }
    )


def _schema(record: type, **wide: pa.DataType) -> pa.Schema:
    """A dataclass's columns: a field's Arrow type by its annotation, text where there is none, but for those given."""
    types = {
        name: get_args(hint)[0] if type(None) in get_args(hint) else hint
        for name, hint in get_type_hints(record).items()
    }
    return pa.schema({name: wide.get(name) or _ARROW.get(kind, pa.string()) for name, kind in types.items()})


_KEPT = pa.schema([column for column in _schema(Trajectory) if column.name != "budget"])  # which one selection says
TRAJECTORIES: TableSpec[Trajectory] = TableSpec("trajectories", _KEPT, _trajectory_row, _trajectory)
SELECTIONS: TableSpec[Selection] = TableSpec(
    "selections",
    pa.schema([pa.field("id", pa.string()), *_schema(Selection, shortened=pa.int64())]),
    _selection_row,
    _selection,
)
EPISODES: TableSpec[Episode] = TableSpec("episodes", _schema(Episode, seed=pa.int64()), _episode_row, _episode)
