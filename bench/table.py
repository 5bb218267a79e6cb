"""What every benchmark ends with: a table of entries, on the screen and as `bench/NAME.json`.

Flows in: figures of ours, of a rival, and of this machine at its best; flows out: rows, which `python -m bench` reads.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure beside its rival's.

    Attributes:
        ours, rival: One figure a run, in `unit`; runs of both alternate.
        against: Who the rival is, with version and setting, or which limit is held to.
        better: Which direction is better.
        floor: The best that this machine's own peaks allow, in `unit`; None where nothing tells.
    """

    name: str
    ours: Sequence[float]
    rival: Sequence[float]
    _: KW_ONLY
    against: str
    unit: str
    better: Literal["higher", "lower"] = "higher"
    floor: float | None = None

    @property
    def ratio(self) -> float:
        """Medians compared; above 1 means that ours is better."""
        ours, rival = median(self.ours), median(self.rival)
        return ours / rival if self.better == "higher" else rival / ours

    @property
    def share(self) -> float | None:
        """How much of the floor is reached: 1 where nothing is left to gain."""
        if self.floor is None:
            return None
        return median(self.ours) / self.floor if self.better == "higher" else self.floor / median(self.ours)

    @property
    def row(self) -> Row:
        """As it is written."""
        return (
            asdict(self)
            | {"ours": median(self.ours), "rival": median(self.rival), "ratio": self.ratio, "share": self.share}
            | {"runs": len(self.ours), "all": {"ours": list(self.ours), "rival": list(self.rival)}}
        )


def named(package: str, setting: str) -> str:
    """A rival: the version at hand of the first distribution of this name that is installed, and how it is set."""
    for name in (package, f"{package}-cpu"):
        try:
            return f"{package} {importlib.metadata.version(name)}, {setting}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise SystemExit(f"{package} is not installed: pip install -e '.[bench]'")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, **tiny: Any) -> argparse.Namespace:
    """The options of a benchmark; `--tiny` puts the values of `tiny` in the place of defaults."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tiny", action="store_true", help="as little as shows that it runs; the figures say nothing")
    if parser.parse_known_args(arguments)[0].tiny:
        parser.set_defaults(**tiny)
    return parser.parse_args(arguments)


def path_of(name: str, tiny: bool) -> Path:
    """Where a benchmark's rows are written."""
    return Path(__file__).with_name(f"{name}-tiny.json" if tiny else f"{name}.json")


def write_bench(name: str, entries: Sequence[Entry], tiny: bool) -> None:
    """Prints the entries and writes them."""
    rows = [entry.row for entry in entries]
    path_of(name, tiny).write_text(json.dumps(rows, indent=2) + "\n")
    show({name: rows})


def show(found: dict[str, Iterable[Row]]) -> None:
    """Prints the rows of benchmarks as one table."""
    heads = ("bench", "entry", "ours", "rival", "unit", "ratio", "floor", "of floor", "runs", "rival is")
    table = Table(*heads, title="medians; a ratio above 1: ours is better")
    for name, rows in found.items():
        for row in rows:
            floor, share = row["floor"], row["share"]
            figures = f"{row['ours']:.4g}", f"{row['rival']:.4g}", row["unit"], f"{row['ratio']:.3g}"
            of_floor = ("-", "-") if floor is None else (f"{floor:.4g}", f"{share:.1%}")
            table.add_row(name, row["name"], *figures, *of_floor, str(row["runs"]), row["against"])
    # a file is as wide as it needs to be
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
