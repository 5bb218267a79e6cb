"""What every benchmark ends with: a table on the screen and `bench/<name>.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Entry:
    """One figure beside its rival's.

    Attributes:
        ours, rival: One figure a run, in `unit`; runs of both alternate.
        better: Which direction is better.
    """

    name: str
    ours: Sequence[float]
    rival: Sequence[float]
    unit: str
    better: Literal["higher", "lower"]

    @property
    def ratio(self) -> float:
        """Medians compared; above 1 means that ours is better."""
        ours, rival = median(self.ours), median(self.rival)
        return ours / rival if self.better == "higher" else rival / ours


def write_bench(name: str, entries: Sequence[Entry]) -> None:
    """Prints the entries and writes them to `bench/<name>.json`."""
    table = Table("entry", "ours", "rival", "unit", "ratio", "runs", title=f"bench-{name} (medians; above 1 is better)")
    rows = []
    for entry in entries:
        ours, rival = median(entry.ours), median(entry.rival)
        table.add_row(entry.name, f"{ours:.4g}", f"{rival:.4g}", entry.unit, f"{entry.ratio:.3g}", str(len(entry.ours)))
        rows.append(
            asdict(entry)
            | {"ours": ours, "rival": rival, "ratio": entry.ratio, "runs": len(entry.ours)}
            | {"all": {"ours": list(entry.ours), "rival": list(entry.rival)}}
        )
    Console().print(table)
    Path(__file__).with_name(f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
