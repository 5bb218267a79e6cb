"""The report as a static folder: `index.html`, `assets/`, and `data/` in scripts that are loaded as they are needed.

Flows in: results and the records that the report is about; flows out: files, the same bytes for the same input. Records
are written shard by shard, so that memory holds one shard and the word index beside what it was given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from atlas_ray.report import records
from atlas_ray.report.drawing import Figure
from atlas_ray.report.shards import DATA, RowShards, WordIndex, encode, write_meta, write_rows
from atlas_ray.report.tables import Table
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Episode, Selection, StopReason, Trajectory

EPISODES_PER_MODEL = 1000
ASSETS = "assets"


@dataclass(frozen=True, slots=True)
class SiteInput:
    """What the viewer shows beside the results.

    Attributes:
        trajectories: The expert's.
        selections: By selector's name, in the order of the view.
        episodes: By model's name, in the order of the tables.
        tables: Shown before those that are made of the results.
        figures: Shown before those that are made of the results.
        downloads: Paths of further files in the report's folder, e.g. `tables/table1.csv`.
        episodes_per_model: At most so many are embedded, the same tasks of every model; the page says so.
    """

    trajectories: Sequence[Trajectory] = ()
    selections: Mapping[str, Sequence[Selection]] = field(default_factory=dict)
    episodes: Mapping[str, Sequence[Episode]] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    downloads: Sequence[str] = ()
    episodes_per_model: int = EPISODES_PER_MODEL


def write_data(folder: RunFolder, site: SiteInput, critical: str) -> dict[str, Any]:
    """Writes `data/` anew.

    Args:
        critical: Name of the selector that is shown first.

    Returns:
        What `data/meta.js` holds: names, counts, and where rows and words lie.
    """
    folder.child(DATA).delete()
    envs: dict[str, int] = {}
    meta = {
        "selectors": [
            {"name": name, "ratio": next((s.ratio for s in chosen), None)} for name, chosen in site.selections.items()
        ],
        "critical": critical,
        "models": list(site.episodes),
        "stops": [str(stop) for stop in StopReason],
        "outcomes": {"trajectories": records.TRAJECTORY_OUTCOMES, "episodes": records.EPISODE_OUTCOMES},
        "trajectories": _write_trajectories(folder, site, envs),
        "episodes": _write_episodes(folder, site, envs),
        "envs": list(envs),
        "episodes_per_model": site.episodes_per_model,
        "episodes_left_out": sum(max(0, len(e) - site.episodes_per_model) for e in site.episodes.values()),
    }
    write_meta(folder, meta)
    return meta


def write_assets(folder: RunFolder) -> None:
    """Copies the page's scripts and style sheet."""
    for name in asset_names():
        folder.write_bytes(f"{ASSETS}/{name}", (resources.files(__package__) / ASSETS / name).read_bytes())


def asset_names() -> list[str]:
    """Names of the files under `assets/`."""
    entries = (resources.files(__package__) / ASSETS).iterdir()
    return sorted(entry.name for entry in entries if entry.name.endswith((".js", ".css")))


def _write_trajectories(folder: RunFolder, site: SiteInput, envs: dict[str, int]) -> dict[str, Any]:
    by_id = [{s.trajectory_id: s for s in chosen} for chosen in site.selections.values()]
    ordered = sorted(site.trajectories, key=lambda t: (t.env, records.natural(t.id)))
    shards, index = RowShards(folder, "trajectories"), WordIndex()
    lines: list[str] = []
    for number, trajectory in enumerate(ordered):
        chosen = [selections.get(trajectory.id) for selections in by_id]
        env = envs.setdefault(trajectory.env, len(envs))
        lines.append(encode(records.trajectory_line(trajectory, env, chosen)))
        shards.add(records.trajectory_record(trajectory, chosen))
        index.add(number, records.trajectory_texts(trajectory, chosen))
    return _finish(folder, "trajectories", lines, shards, index)


def _write_episodes(folder: RunFolder, site: SiteInput, envs: dict[str, int]) -> dict[str, Any]:
    shards, index = RowShards(folder, "episodes"), WordIndex()
    lines: list[str] = []
    stops = list(StopReason)
    for model, episodes in enumerate(site.episodes.values()):
        kept = sorted(episodes, key=_drawn)[: site.episodes_per_model]
        for episode in sorted(kept, key=lambda e: (e.env, records.natural(e.id))):
            env, stop = envs.setdefault(episode.env, len(envs)), stops.index(episode.stop_reason)
            index.add(len(lines), records.episode_texts(episode))
            lines.append(encode(records.episode_line(episode, env, model, stop)))
            shards.add(records.episode_record(episode))
    return _finish(folder, "episodes", lines, shards, index)


def _finish(folder: RunFolder, name: str, lines: list[str], shards: RowShards, index: WordIndex) -> dict[str, Any]:
    shards.close()
    write_rows(folder, f"{name}-index", lines)
    return {"count": len(lines), "starts": shards.starts, "words": index.write(folder, f"{name}-words")}


def _drawn(episode: Episode) -> tuple[bytes, str]:
    """A fixed order by chance: the same of every model, and fair to every environment."""
    return hashlib.sha256(episode.id.encode("utf-8", "surrogatepass")).digest(), episode.id
